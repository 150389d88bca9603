"""A project's life: made twice, replayed, and kept up to date with its template by cruft."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from command_line import (
    COMMAND,
    PROJECT,
    QUIET,
    assert_refused,
    commit,
    contents,
    cookiecutter,
    copy_template,
    git,
    load,
)
from conftest import TEMPLATE, run

PACKAGE = "{{cookiecutter.package_name}}"
CRUFT = (sys.executable, "-m", "cruft")
AWKWARD = {
    "project_name": 'Zoë\'s "Net" 🚀 \\',
    "description": "a: b # ${x} <b>_c_</b> \\u0041",
    "author_name": 'O\'Neil, "Z" 日本',
    "license": "BSD-3-Clause",
}
GIVEN = [f"{field}={answer}" for field, answer in AWKWARD.items()]


@pytest.fixture
def template(tmp_path):
    """The real template, in a git repository of its own."""
    folder = copy_template(tmp_path / "template")
    git("init", "-q", cwd=folder)
    commit(folder, "first")
    return folder


def cruft(*words: object, cwd: Path) -> str:
    done = run(*CRUFT, *words, cwd=cwd, COOKIECUTTER_CONFIG=str(no_config(cwd)))
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def no_config(folder: Path) -> Path:
    """Whoever runs the tests may have answers of their own in ~/.cookiecutterrc."""
    path = folder.parent / "no-config.yaml"
    path.write_text("default_context: {}\n", encoding="utf-8")
    return path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new), encoding="utf-8", newline="\n")


def improve(template: Path) -> None:
    """What a later version may bring: a changed line, a new question with its file, a file less."""
    source = template / PROJECT
    edit(source / "README.md", "\n## Commands\n", "\n## All commands\n")
    edit(source / "pyproject.toml", "[tool.mypy]\n", "[tool.mypy]\npretty = true\n")
    edit(template / "cookiecutter.json", '  "__prompts__"', '  "topic": "digits",\n  "__prompts__"')
    edit(template / "local_extensions.py", "markdown, ", "markdown, ascii, ")
    (source / "TOPIC.md").write_text("About {{ cookiecutter.topic | ascii }}.\n", encoding="utf-8")
    starter = source / "starters" / "image-classification" / "src" / PACKAGE / "configs" / "model"
    edit(starter / "mlp.yaml", "num_layers: 2", "num_layers: 3")
    (source / ".env.example").unlink()
    (source / "src" / PACKAGE / "configs" / "debug" / "limit.yaml").unlink()
    edit(source / ".gitattributes", "*.npy binary\n", "*.npy binary\n*.npz binary\n")
    commit(template, "second")


def work_on(project: Path) -> dict[str, str]:
    """What a person did in the meantime; what must still be there later."""
    package = next((project / "src").iterdir())
    with (project / "README.md").open("a", encoding="utf-8", newline="\n") as readme:
        readme.write("\n## Mine\n\nMy own words: Zoë 🚀\n")
    edit(project / "pyproject.toml", 'version = "0.1.0"', 'version = "3.2.1"')
    edit(package / "configs" / "train.yaml", "seed: ", "seed: 1")
    (package / "models" / "mine.py").write_text("MINE = 1\n", encoding="utf-8")
    (project / ".gitattributes").unlink()
    commit(project, "mine")
    return {
        "README.md": "\n## Mine\n\nMy own words: Zoë 🚀\n",
        "pyproject.toml": 'version = "3.2.1"',
        f"src/{package.name}/configs/train.yaml": "seed: 1",
        f"src/{package.name}/models/mine.py": "MINE = 1\n",
    }


def is_up_to_date(project: Path, mine: dict[str, str]) -> None:
    """The change arrived, a person's own is there, and nothing is left to mend."""
    package = next((project / "src").iterdir())
    read = contents(project).items()
    files = {path: text.decode("utf-8") for path, text in read if not path.startswith(".git/")}
    assert "\n## All commands\n" in files["README.md"]
    assert "pretty = true" in files["pyproject.toml"]
    assert files["TOPIC.md"] == "About 'digits'.\n"
    assert "num_layers: 3" in files[f"src/{package.name}/configs/model/mlp.yaml"]
    assert ".env.example" not in files
    assert f"src/{package.name}/configs/debug/limit.yaml" not in files
    assert ".gitattributes" not in files  # what a person has deleted does not come back
    assert all(text in files[path] for path, text in mine.items())
    assert not [path for path in files if path.endswith((".rej", ".orig"))]
    assert not any("<<<<<<<" in text for text in files.values())
    assert json.loads(files[".cruft.json"])["context"]["cookiecutter"]["topic"] == "digits"


def test_a_project_of_cruft_receives_what_the_template_has_new(template, tmp_path):
    extra = json.dumps(AWKWARD)
    cruft("create", template, "--no-input", "--extra-context", extra, cwd=tmp_path)
    [project] = set(tmp_path.iterdir()) - {template}
    git("init", "-q", cwd=project)
    commit(project, "made")
    assert "up to date" in cruft("check", cwd=project)
    assert cruft("diff", cwd=project) == ""
    mine = work_on(project)
    patch = cruft("diff", cwd=project)
    assert (
        patch.startswith("diff --git ") and "-My own words: Zoë 🚀" in patch
    )  # from here to there

    improve(template)
    check = run(*CRUFT, "check", cwd=project, COOKIECUTTER_CONFIG=str(no_config(project)))
    assert check.returncode == 1 and "out of date" in check.stdout
    cruft("update", "--skip-apply-ask", cwd=project)
    is_up_to_date(project, mine)
    assert "up to date" in cruft("check", cwd=project)
    assert "All commands" not in cruft("diff", cwd=project)


def test_a_project_of_cookiecutter_is_linked_and_then_receives_it_too(template, tmp_path):
    out = tmp_path / "out"
    assert run(*COMMAND, template, *QUIET, *GIVEN, "-o", out).returncode == 0
    [project] = out.iterdir()
    git("init", "-q", cwd=project)
    commit(project, "made")
    made_from = git("rev-parse", "HEAD", cwd=template).strip()
    mine = work_on(project)
    improve(template)

    extra = json.dumps(AWKWARD)
    link = ("link", template, "--no-input", "--checkout", made_from, "--extra-context", extra)
    cruft(*link, cwd=project)
    commit(project, "linked")
    # A checkout that is stored would be where the project stays.
    edit(project / ".cruft.json", f'"checkout": "{made_from}"', '"checkout": null')
    commit(project, "follow the newest")
    cruft("update", "--skip-apply-ask", cwd=project)
    is_up_to_date(project, mine)


@pytest.mark.parametrize(
    ("field", "answer"),
    [("project_slug", "../x"), ("description", "{{ 7 * 7 }}"), ("author_email", "ann")],
)
def test_a_bad_answer_is_refused_by_cruft_in_one_line(template, tmp_path, field, answer):
    extra = json.dumps({field: answer})
    config = str(no_config(tmp_path / "template"))
    words = ("create", template, "--no-input", "--extra-context", extra)
    done = run(*CRUFT, *words, cwd=tmp_path, COOKIECUTTER_CONFIG=config)
    assert_refused(done, f"{field} ")
    assert {entry.name for entry in tmp_path.iterdir()} == {"template", "no-config.yaml"}


def test_two_generations_and_a_replay_are_the_same_bytes(template, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"replay_dir: {(tmp_path / 'replay').as_posix()}\n", encoding="utf-8")
    made = []
    for number, words in enumerate([("--no-input", *GIVEN), ("--no-input", *GIVEN), ("--replay",)]):
        out = tmp_path / str(number)
        env = {"PYTHONHASHSEED": str(number), "TZ": f"UTC{number}"}
        done = run(*COMMAND, template, *words, "--config-file", config, "-o", out, **env)
        assert done.returncode == 0, done.stderr
        made.append((contents(out), [path.stat().st_mode for path in sorted(out.rglob("*"))]))
    assert made[0] == made[1] == made[2]
    assert len(made[0][0]) > 50
    texts = b"".join(made[0][0].values())
    assert str(tmp_path).encode() not in texts


def test_answers_of_an_earlier_version_are_replayed_into_the_newer(template, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"replay_dir: {(tmp_path / 'replay').as_posix()}\n", encoding="utf-8")
    options = ("--config-file", config)
    first = run(*COMMAND, template, "--no-input", *options, *GIVEN, "-o", tmp_path / "first")
    assert first.returncode == 0, first.stderr
    improve(template)
    words = (template, "--replay", *options, "-o", tmp_path / "second")
    # `python -m` would import from the current folder first.
    done = cookiecutter(*words, typed="\n", cwd=tmp_path)
    assert done.returncode == 0 and "[1/1] topic (digits)" in done.stdout, done.stderr
    [project] = (tmp_path / "second").iterdir()
    assert (project / "TOPIC.md").read_text(encoding="utf-8") == "About 'digits'.\n"


def a_python(version: str) -> str:
    """One of that version, as it would be typed. pyenv's need to be told that they are meant."""
    found = shutil.which(f"python{version}")
    if found:
        said = run(found, "-c", "import sys; print(*sys.version_info[:2])", PYENV_VERSION=version)
        if said.returncode == 0 and said.stdout.split() == version.split("."):
            return run(
                found, "-c", "import sys; print(sys.executable)", PYENV_VERSION=version
            ).stdout.strip()
    pytest.skip(f"there is no python{version} here")


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_each_python_makes_the_same_project(tmp_path, version):
    pins = (TEMPLATE / "constraints.txt").as_uri()
    assert run(a_python(version), "-m", "venv", tmp_path / "venv").returncode == 0
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = run(python, "-m", "pip", "install", "-q", "cookiecutter", PIP_CONSTRAINT=pins)
    assert install.returncode == 0, install.stderr
    made = []
    for number, maker in enumerate([sys.executable, python]):
        command = (maker, "-W", "error::SyntaxWarning", "-m", "cookiecutter", TEMPLATE, *QUIET)
        out = tmp_path / str(number)
        done = run(*command, *GIVEN, "github_actions=no", "-o", out)
        assert done.returncode == 0, done.stderr
        assert "make train" in done.stderr and "Traceback" not in done.stderr
        made.append(contents(out))
        assert_refused(run(*command, "project_slug=../x", "-o", out), "project_slug is '../x'")
        assert_refused(run(*command, "description={{ 7 }}", "-o", out), "run as code")
    assert made[0] == made[1]
    modules = run(python, "-c", "import sys; print(*sys.stdlib_module_names)").stdout.split()
    assert {name for name in modules if name[0] != "_"} <= load("local_extensions").TAKEN
    compiled = run(python, "-W", "error", "-m", "compileall", "-q", tmp_path / "1")
    assert compiled.returncode == 0, compiled.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "answers",
    [AWKWARD, {"project_name": "3D"}, {"project_name": "test"}, {"project_name": "x" * 80}],
    ids=lambda answers: ascii(answers["project_name"][:8]),
)
def test_an_awkward_project_trains(tmp_path, answers):
    given = [f"{field}={answer}" for field, answer in answers.items()]
    out = tmp_path / "o u't"
    assert run(*COMMAND, TEMPLATE, *QUIET, *given, "-o", out).returncode == 0
    [project] = out.iterdir()
    package = next((project / "src").iterdir()).name
    train = (
        sys.executable,
        "-m",
        f"{package}.train",
        "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    )
    done = run(*train, cwd=project, PYTHONPATH=str(project / "src"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(project.glob("runs/*/metrics.json"))
