"""cookiecutter's command line, copies of the template, and what a run leaves."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess
from types import ModuleType

import pytest
import yaml
from conftest import TEMPLATE, run

PROJECT = "{{cookiecutter.project_slug}}"
SLUG = "my-lightning-project"
COMMAND = (sys.executable, "-m", "cookiecutter")
QUIET = ("--no-input", "--default-config")
CONTEXT = json.loads((TEMPLATE / "cookiecutter.json").read_text(encoding="utf-8"))
QUESTIONS = {name: value for name, value in CONTEXT.items() if name[0] != "_"}
DEFAULTS = {
    name: value[0] if isinstance(value, list) else value for name, value in QUESTIONS.items()
}
CHANNELS = ("key=value", "config", "replay", "typed")
# What makes a project a template's, and of the project one file of each kind: those with free text,
# those of each choice, and sources.
SOURCES = ("cookiecutter.json", "constraints.txt", ".gitattributes", "local_*.py", "hooks", PROJECT)
EXCERPT = (
    "pyproject.toml",
    "LICENSE",
    "README.md",
    "ci.yml",
    "slurm.sbatch",
    "train.py",
    "models/*",
)


def load(name: str) -> ModuleType:
    """Import a module of the template, which is no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TEMPLATE)
        return importlib.import_module(name)


def git(*words: object, cwd: Path) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = run("git", *identity, *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def commit(repository: Path, message: str) -> None:
    git("add", "--all", ".", cwd=repository)
    git("commit", "-qm", message, cwd=repository)


def give(answers: dict, channel: str) -> tuple[list[str], str]:
    """Put answers where cookiecutter finds them; return its arguments and what is typed."""
    config = {"replay_dir": "replay", "default_context": answers if channel == "config" else {}}
    Path("config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    words = ["--config-file", "config.yaml", "--output-dir", "out"]
    if channel == "key=value":
        return [*words, "--no-input", *(f"{name}={answers[name]}" for name in answers)], ""
    if channel == "config":
        return [*words, "--no-input"], ""
    if channel == "replay":  # the answers of an earlier run, here edited by hand
        earlier = {**CONTEXT, **DEFAULTS, "project_slug": "aa", "package_name": "aa"}
        Path("replay").mkdir(exist_ok=True)
        replay = {"cookiecutter": {**earlier, **answers}}
        Path("replay/template.json").write_text(json.dumps(replay), encoding="utf-8")
        return [*words, "--replay"], ""
    typed = {**dict.fromkeys(QUESTIONS, ""), **answers}  # an empty line takes the default
    for name, options in QUESTIONS.items():
        if isinstance(options, list) and name in answers:
            typed[name] = options.index(answers[name]) + 1
    return words, "".join(f"{line}\n" for line in typed.values())


def cookiecutter(
    *words: object, cwd: Path | None = None, typed: str = "", **env: str
) -> CompletedProcess[str]:
    """Run it as a person does; its status is not checked."""
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env},
        input=typed,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
    )


def copy_template(folder: Path, patterns: tuple[str, ...] = ("*",)) -> Path:
    """Copy the template, with the files of the project that match one of `patterns`."""
    listed = git("ls-files", "-zco", "--exclude-standard", "--", *SOURCES, cwd=TEMPLATE)
    for name in filter(None, listed.split("\0")):
        source = TEMPLATE / name
        in_project = name.startswith(PROJECT)
        if source.is_file() and (not in_project or any(map(source.match, patterns))):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def assert_refused(done: CompletedProcess[str], *says: str) -> None:
    """It ended with one line: ours and Python's are on stderr, cookiecutter's own on stdout."""
    line = done.stderr or done.stdout
    assert done.returncode == 1 and len(line.splitlines()) == 1, done.stdout + done.stderr
    assert all(text in line for text in says) and line.isascii(), line
