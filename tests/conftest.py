"""Projects made from the template, as a person makes them: by the command line."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[1]


def run(*command: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """A command without a terminal; its output is kept, its status is not checked."""
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )


def bake(folder: Path, **answers: object) -> Path:
    """A project in `folder`."""
    given = [f"{question}={answer}" for question, answer in answers.items()]
    options = ("--no-input", "--default-config", "--output-dir", folder)
    done = run(sys.executable, "-m", "cookiecutter", *options, TEMPLATE, *given)
    assert done.returncode == 0, done.stderr
    (project,) = folder.iterdir()
    return project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The project of the default answers, its package and commands installed here."""
    baked = bake(tmp_path_factory.mktemp("baked"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    install = run(*pip, "install", "--no-deps", "--no-build-isolation", "--editable", baked)
    assert install.returncode == 0, install.stderr
    yield baked
    run(*pip, "uninstall", "--yes", baked.name)
