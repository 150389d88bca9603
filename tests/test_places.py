"""Wherever it runs: odd paths, locales and machines give the same project, or one line that says why."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TEMPLATE, run
from tiny_template import PROJECT, make_template

SLUG = "my-lightning-project"
COMMAND = (sys.executable, "-m", "cookiecutter")
QUIET = ("--no-input", "--default-config")
needs_posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such thing")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("places") / "tiny")


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("expected")
    assert run(*COMMAND, tiny, *QUIET, "-o", out).returncode == 0
    return contents(out / SLUG)


def copy_template(folder: Path) -> Path:
    """The real template, without what a run leaves beside it."""
    shutil.copytree(
        TEMPLATE / PROJECT,
        folder / PROJECT,
        ignore=shutil.ignore_patterns("__pycache__", "runs", "outputs", ".*_cache"),
    )
    shutil.copytree(TEMPLATE / "hooks", folder / "hooks")
    for name in ("cookiecutter.json", "local_extensions.py", ".gitattributes"):
        shutil.copy(TEMPLATE / name, folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def git(*words: object, cwd: Path) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = run("git", *identity, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_refused(done, says: str) -> None:
    assert done.returncode == 1, done.stderr
    said = done.stdout + done.stderr
    assert len(said.splitlines()) == 1 and says in said, said


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
def test_an_odd_output_folder_holds_the_whole_project(tmp_path, folder):
    if os.name == "nt" and set(folder) & set('"*?'):
        pytest.skip("Windows has no such names")
    out = tmp_path / folder
    done = run(*COMMAND, TEMPLATE, *QUIET, "-o", out, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [entry.name for entry in out.iterdir()] == [SLUG]
    assert [entry.name for entry in tmp_path.iterdir()] == [Path(folder).parts[0]]
    assert (out / SLUG / "src" / "my_lightning_project" / "configs" / "train.yaml").is_file()
    assert (out / SLUG / ".github" / "workflows" / "ci.yml").is_file()


def test_an_output_folder_with_files_keeps_them(tiny, tmp_path, expected):
    (tmp_path / "mine.txt").write_text("mine")
    assert run(*COMMAND, tiny, *QUIET, cwd=tmp_path).returncode == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mine.txt", SLUG]
    assert contents(tmp_path / SLUG) == expected


def test_inside_another_git_repository_that_one_stays_as_it_is(tiny, tmp_path, expected):
    git("init", "-q", cwd=tmp_path)
    git("commit", "-q", "--allow-empty", "-m", "mine", cwd=tmp_path)
    before = git("rev-parse", "HEAD", cwd=tmp_path)
    assert run(*COMMAND, tiny, *QUIET, cwd=tmp_path).returncode == 0
    assert git("status", "--porcelain", cwd=tmp_path) == f"?? {SLUG}/\n"
    assert git("rev-parse", "HEAD", cwd=tmp_path) == before
    assert contents(tmp_path / SLUG) == expected


@pytest.mark.parametrize("more", [(), ("--overwrite-if-exists",)])
def test_a_file_of_that_name_is_refused_and_kept(tiny, tmp_path, more):
    (tmp_path / SLUG).write_text("mine")
    is_refused(run(*COMMAND, tiny, *QUIET, *more, cwd=tmp_path), f"has a file {SLUG}")
    assert contents(tmp_path) == {SLUG: b"mine"}


@needs_posix
def test_a_broken_link_of_that_name_is_refused(tiny, tmp_path):
    (tmp_path / SLUG).symlink_to("nowhere")
    is_refused(run(*COMMAND, tiny, *QUIET, cwd=tmp_path), f"has a file {SLUG}")


def test_a_folder_of_that_name_is_refused_and_kept(tiny, tmp_path):
    (tmp_path / SLUG).mkdir()
    (tmp_path / SLUG / "mine").write_text("mine")
    is_refused(run(*COMMAND, tiny, *QUIET, cwd=tmp_path), "already exists")
    assert contents(tmp_path) == {f"{SLUG}/mine": b"mine"}


@pytest.mark.parametrize("folder", ["file", "file/below", "x" * 300])
def test_an_output_folder_that_cannot_be_is_refused(tiny, tmp_path, folder):
    (tmp_path / "file").write_text("mine")
    is_refused(run(*COMMAND, tiny, *QUIET, "-o", folder, cwd=tmp_path), "cannot be written to")
    assert contents(tmp_path) == {"file": b"mine"}


@needs_posix
def test_a_read_only_output_folder_is_refused(tiny, tmp_path):
    tmp_path.chmod(0o555)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("root may write to any folder")
        is_refused(run(*COMMAND, tiny, *QUIET, "-o", tmp_path), "cannot be written to")
    finally:
        tmp_path.chmod(0o755)


def test_an_output_folder_inside_the_template_is_refused(tmp_path):
    template = make_template(tmp_path / "tiny")
    before = contents(template)
    is_refused(run(*COMMAND, ".", *QUIET, "-o", PROJECT, cwd=template), "is inside the template")
    assert contents(template) == before


@pytest.mark.parametrize("name", ["a b", "Ünïcödé 日本 🚀", "{{ 7 * 7 }}", "it's $(touch canary)"])
def test_a_template_in_an_odd_folder_gives_the_same(tmp_path, expected, name):
    template = make_template(tmp_path / name)
    assert run(*COMMAND, template, *QUIET, cwd=tmp_path).returncode == 0
    assert contents(tmp_path / SLUG) == expected
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([name, SLUG])


def test_a_checkout_with_windows_line_endings_gives_the_same_bytes(tmp_path):
    template = copy_template(tmp_path / "template")
    git("init", "-q", cwd=template)
    git("add", ".", cwd=template)
    git("commit", "-qm", "template", cwd=template)
    windows = ("-c", "core.autocrlf=true", "-c", "core.eol=crlf")
    git("clone", "-q", *windows, template, tmp_path / "clone", cwd=tmp_path)
    for name in ("template", "clone"):
        assert (
            run(*COMMAND, tmp_path / name, *QUIET, "-o", tmp_path / f"{name}-out").returncode == 0
        )
    assert contents(tmp_path / "template-out") == contents(tmp_path / "clone-out")


def test_a_template_rewritten_with_windows_line_endings_works_too(tmp_path, expected):
    template = make_template(tmp_path / "tiny")
    for path in template.rglob("*.*"):
        if path.is_file() and path.suffix != ".yml":  # copied, not rendered
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert run(*COMMAND, template, *QUIET, cwd=tmp_path).returncode == 0
    assert contents(tmp_path / SLUG) == expected
    is_refused(run(*COMMAND, template, *QUIET, "description={{ 1 }}", cwd=tmp_path), "run as code")


def test_without_hooks_the_project_is_whole_and_answers_are_checked(tiny, tmp_path, expected):
    quiet = (*QUIET, "--accept-hooks=no")
    is_refused(run(*COMMAND, tiny, *quiet, "project_slug=../x", cwd=tmp_path), "project_slug ")
    done = run(*COMMAND, tiny, *quiet, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert contents(tmp_path / SLUG) == expected
    # Only what a hook would have deleted is there.
    done = run(*COMMAND, tiny, *quiet, "github_actions=no", "-o", tmp_path / "no")
    assert done.returncode == 0 and contents(tmp_path / "no" / SLUG) == expected


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
def test_every_locale_gives_the_same_bytes(tiny, tmp_path, expected, machine):
    done = run(*COMMAND, tiny, *QUIET, cwd=tmp_path, **MACHINES[machine])
    assert done.returncode == 0 and done.stdout.isascii(), done.stderr
    assert contents(tmp_path / SLUG) == expected


@needs_posix
def test_text_that_an_ascii_locale_cannot_read_is_refused(tiny, tmp_path):
    answer = "author_name=Zoë"
    done = run(*COMMAND, tiny, *QUIET, answer, cwd=tmp_path, **MACHINES["ASCII only"])
    is_refused(done, "author_name contains U+DCC3")
    done = run(*COMMAND, tiny, *QUIET, answer, cwd=tmp_path, **MACHINES["LC_ALL=C"])
    assert done.returncode == 0 and "Zoë".encode() in (tmp_path / SLUG / "a.toml").read_bytes()


@needs_posix
def test_without_a_home_it_works(tiny, tmp_path, expected):
    (tmp_path / "config.yaml").write_text(f"replay_dir: {tmp_path}/replay\n")
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "USERPROFILE")}
    subprocess.run(
        [*COMMAND, tiny, "--no-input", "--config-file", "config.yaml"],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    assert contents(tmp_path / SLUG) == expected


@needs_posix
def test_a_closed_stdin_is_no_answer(tiny, tmp_path, expected):
    closed = ("bash", "-c", 'exec "$@" <&-', "bash", *COMMAND, tiny, "--default-config")
    done = run(*closed, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.strip() == "Aborted!", done.stderr
    assert list(tmp_path.iterdir()) == []
    assert run(*closed, "--no-input", cwd=tmp_path).returncode == 0
    assert contents(tmp_path / SLUG) == expected


def test_an_empty_stdin_ends_at_the_first_question(tiny, tmp_path):
    done = run(*COMMAND, tiny, "--default-config", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.strip() == "Aborted!", done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_posix
def test_bytes_typed_in_another_encoding_are_refused(tiny, tmp_path):
    done = subprocess.run(
        [*COMMAND, tiny, "--default-config"],
        cwd=tmp_path,
        input="Zoë\n".encode("latin-1"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr == b"", done.stderr
    assert done.stdout.splitlines()[-1].count(b"project_name contains U+DCEB") == 1
    assert list(tmp_path.iterdir()) == []


def test_two_runs_at_once_leave_one_whole_project(tiny, tmp_path, expected):
    words = [*COMMAND, tiny, *QUIET]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    runs = [subprocess.Popen(words, cwd=tmp_path, text=True, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in runs]
    assert 0 in [process.returncode for process in runs], said
    for process, text in zip(runs, said, strict=True):
        assert process.returncode == 0 or len(text.splitlines()) == 1, text
        assert "Traceback" not in text
    assert contents(tmp_path) == {f"{SLUG}/{name}": text for name, text in expected.items()}
