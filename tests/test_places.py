"""Wherever it runs: odd paths, locales and machines give the same project, or one line that says why."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from command_line import (
    COMMAND,
    EXCERPT,
    PROJECT,
    QUIET,
    SLUG,
    assert_refused,
    commit,
    contents,
    cookiecutter,
    copy_template,
    git,
)

needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such thing")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_template(tmp_path_factory.mktemp("places") / "template", EXCERPT)


@pytest.fixture(scope="module")
def expected(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("expected")
    assert cookiecutter(template, *QUIET, cwd=out).returncode == 0
    return contents(out / SLUG)


@pytest.mark.parametrize(
    "folder",
    [
        "new/er/est",
        "with two  spaces",
        "Ünïcödé 日本 🚀",
        "{{ 7 * 7 }} {% x",
        "{{cookiecutter.package_name}}",
        "{{ oops",
        'it\'s "quoted"; $(touch canary) `touch canary` %PATH%',
        "-o",
        "[glob]*?",
    ],
)
def test_odd_folders_of_the_output_and_of_the_template(
    template: Path, tmp_path: Path, expected: dict, folder: str
) -> None:
    if os.name == "nt" and set(folder) & set('"*?'):
        pytest.skip("Windows has no such names")
    assert cookiecutter(template, *QUIET, "-o", folder, cwd=tmp_path).returncode == 0
    assert [entry.name for entry in tmp_path.iterdir()] == [Path(folder).parts[0]]
    assert contents(tmp_path / folder) == {
        f"{SLUG}/{name}": text for name, text in expected.items()
    }
    odd = shutil.copytree(template, tmp_path / folder / "template")
    assert cookiecutter(odd, *QUIET, cwd=odd).returncode == 0
    assert contents(odd / SLUG) == expected


def test_what_is_in_the_output_folder_stays(template: Path, tmp_path: Path, expected: dict) -> None:
    """A file, and a git repository around it."""
    (tmp_path / "mine.txt").write_text("mine")
    git("init", "-q", cwd=tmp_path)
    commit(tmp_path, "mine")
    before = git("rev-parse", "HEAD", cwd=tmp_path)
    assert cookiecutter(template, *QUIET, cwd=tmp_path).returncode == 0
    assert git("status", "--porcelain", cwd=tmp_path) == f"?? {SLUG}/\n"
    assert git("rev-parse", "HEAD", cwd=tmp_path) == before
    assert contents(tmp_path / SLUG) == expected


IN_THE_WAY = {
    "a file": (lambda path: path.write_text("mine"), f"has a file {SLUG}"),
    "a broken link": (lambda path: path.symlink_to("nowhere"), f"has a file {SLUG}"),
    "a folder": (lambda path: path.mkdir(), "already exists"),
}


@needs_posix
@pytest.mark.parametrize("thing", IN_THE_WAY)
@pytest.mark.parametrize("more", [(), ("--overwrite-if-exists",)])
def test_what_is_in_the_way_is_kept(
    template: Path, tmp_path: Path, thing: str, more: tuple
) -> None:
    make, says = IN_THE_WAY[thing]
    make(tmp_path / SLUG)
    if thing == "a folder":
        if more:
            return  # overwriting a folder is what was asked for
        (tmp_path / SLUG / "mine").write_text("mine")
    before = contents(tmp_path)
    assert_refused(cookiecutter(template, *QUIET, *more, cwd=tmp_path), says)
    assert contents(tmp_path) == before and os.path.lexists(tmp_path / SLUG)


@pytest.mark.parametrize("options", [("-f", "-s"), ("-fs",), ("-f", "--skip-if-file-exists")])
def test_skipping_what_exists_is_refused_since_sources_would_be_overwritten(
    template: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / SLUG / "src").mkdir(parents=True)
    (tmp_path / SLUG / "src" / "train.py").write_text("mine")
    before = contents(tmp_path)
    done = cookiecutter(template, *QUIET, *options, cwd=tmp_path)
    assert_refused(done, "cruft update")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("folder", ["file", "file/below", "x" * 300, "read-only"])
def test_an_output_folder_that_cannot_be_is_refused(
    template: Path, tmp_path: Path, folder: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "read-only").mkdir(mode=0o555)
    if folder == "read-only" and os.access(tmp_path / folder, os.W_OK):
        pytest.skip("root, and anyone on Windows, may write to any folder")
    done = cookiecutter(template, *QUIET, "-o", folder, cwd=tmp_path)
    assert_refused(done, "cannot be written to")
    assert contents(tmp_path) == {"file": b"mine"}


def test_an_output_folder_inside_the_template_is_refused(template: Path) -> None:
    before = contents(template)
    done = cookiecutter(".", *QUIET, "-o", PROJECT, cwd=template)
    assert_refused(done, "is inside the template")
    assert contents(template) == before


def test_a_checkout_with_windows_line_endings_gives_the_same_bytes(tmp_path: Path) -> None:
    template = copy_template(tmp_path / "template")
    git("init", "-q", cwd=template)
    commit(template, "template")
    windows = ("-c", "core.autocrlf=true", "-c", "core.eol=crlf")
    git("clone", "-q", *windows, template, tmp_path / "clone", cwd=tmp_path)
    for name in ("template", "clone"):
        done = cookiecutter(tmp_path / name, *QUIET, "-o", f"{name}-out", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "template-out") == contents(tmp_path / "clone-out")


def test_a_template_rewritten_with_windows_line_endings_works_too(
    template: Path, tmp_path: Path, expected: dict
) -> None:
    template = shutil.copytree(template, tmp_path / "template")
    for path in template.rglob("*"):
        copied = "src" in path.parts or path.suffix == ".yml"  # not rendered
        if path.is_file() and not copied:
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert cookiecutter(template, *QUIET, cwd=tmp_path).returncode == 0
    assert contents(tmp_path / SLUG) == expected
    done = cookiecutter(template, *QUIET, "description={{ 1 }}", cwd=tmp_path)
    assert_refused(done, "run as code")


def test_without_hooks_the_project_is_there_and_answers_are_checked(
    template: Path, tmp_path: Path
) -> None:
    """The chosen starter then waits in starters/, and nothing is deleted."""
    done = cookiecutter(template, *QUIET, "--accept-hooks=no", "deploy=no", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {"deploy", "starters"} <= {entry.name for entry in (tmp_path / SLUG).iterdir()}


MACHINES = {
    "LC_ALL=C": {"LC_ALL": "C"},
    "LC_ALL=POSIX": {"LC_ALL": "POSIX"},
    "a locale that is not there": {"LC_ALL": "tlh_KL.UTF-8"},
    "ASCII only": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ASCII output": {"PYTHONIOENCODING": "ascii"},
    "no colours": {"NO_COLOR": "1", "TERM": "dumb"},
    "random hashes": {"PYTHONHASHSEED": "7"},
    "another time zone": {"TZ": "Asia/Kathmandu", "SOURCE_DATE_EPOCH": "0"},
}


@pytest.mark.parametrize("machine", MACHINES)
def test_every_locale_gives_the_same_bytes(
    template: Path, tmp_path: Path, expected: dict, machine: str
) -> None:
    done = cookiecutter(template, *QUIET, cwd=tmp_path, **MACHINES[machine])
    assert done.returncode == 0 and "make train" in done.stderr and done.stderr.isascii()
    assert contents(tmp_path / SLUG) == expected


@needs_posix
def test_text_that_an_ascii_locale_cannot_read_is_refused(template: Path, tmp_path: Path) -> None:
    words = (template, *QUIET, "author_name=Zoë")
    done = cookiecutter(*words, cwd=tmp_path, **MACHINES["ASCII only"])
    assert_refused(done, "author_name contains U+DCC3")
    assert cookiecutter(*words, cwd=tmp_path, **MACHINES["LC_ALL=C"]).returncode == 0
    assert "Zoë".encode() in (tmp_path / SLUG / "pyproject.toml").read_bytes()


@needs_posix
def test_without_a_home_it_works(template: Path, tmp_path: Path, expected: dict) -> None:
    (tmp_path / "config.yaml").write_text(f"replay_dir: {tmp_path}/replay\n")
    words = [*COMMAND, str(template), "--no-input", "--config-file", "config.yaml"]
    subprocess.run(["env", "-u", "HOME", *words], cwd=tmp_path, capture_output=True, check=True)
    assert contents(tmp_path / SLUG) == expected


@needs_posix
def test_a_closed_stdin_is_no_answer(template: Path, tmp_path: Path, expected: dict) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = (*COMMAND, str(template), "--default-config", *more)
        words = ["bash", "-c", 'exec "$@" <&-', "bash", *command]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert run().stderr.strip() == "Aborted!"
    assert list(tmp_path.iterdir()) == []
    assert run("--no-input").returncode == 0
    assert contents(tmp_path / SLUG) == expected


@pytest.mark.parametrize(
    ("typed", "says"), [("", "Aborted!"), ("Zo\udceb\n", "project_name contains U+DCEB")]
)
def test_what_is_typed_may_end_or_be_of_another_encoding(
    template: Path, tmp_path: Path, typed: str, says: str
) -> None:
    done = cookiecutter(template, "--default-config", cwd=tmp_path, typed=typed)
    assert done.returncode == 1 and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_leave_one_whole_project(
    template: Path, tmp_path: Path, expected: dict
) -> None:
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(cookiecutter, template, *QUIET, cwd=tmp_path) for _ in range(2)]
    ended = sorted((run.result() for run in runs), key=lambda done: done.returncode)
    assert ended[0].returncode == 0, ended
    if ended[1].returncode:
        assert_refused(ended[1])
    assert contents(tmp_path) == {f"{SLUG}/{name}": text for name, text in expected.items()}
