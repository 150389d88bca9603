"""Projects made from the template, as a person makes them: by the command line.

A project of each starter is baked once, before the first test: the packages `image_project` and
`text_project` can be imported by every test, and by what a test starts.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parents[1]
STARTERS = {"image": "image-classification", "text": "language-modeling"}


def run(*command: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal; keep its output, and do not check its status."""
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
    """Make a project in `folder`."""
    given = [f"{question}={answer}" for question, answer in answers.items()]
    options = ("--no-input", "--default-config", "--output-dir", folder)
    done = run(sys.executable, "-m", "cookiecutter", *options, TEMPLATE, *given)
    assert done.returncode == 0, done.stderr
    (project,) = folder.iterdir()
    return project


def pytest_configure(config: pytest.Config) -> None:
    # The workers of pytest-xdist share the cores: threads would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A shell that starts this in the background ignores Ctrl-C, which tests send.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "BAKED" not in os.environ:  # not in the workers of pytest-xdist, which inherit it
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        config.add_cleanup(folder.cleanup)
        os.environ["BAKED"] = folder.name
        for name, starter in STARTERS.items():
            bake(Path(folder.name) / name, project_slug=f"{name}-project", starter=starter)
        sources = [str(path) for path in Path(folder.name).glob("*/*/src")]
        paths = [*sources, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        config.add_cleanup(lambda: os.environ.pop("BAKED", None) and None)
    for source in Path(os.environ["BAKED"]).glob("*/*/src"):
        if str(source) not in sys.path:
            sys.path.insert(0, str(source))


@pytest.fixture(scope="session")
def project() -> Path:
    """The project of the image starter; its package is `image_project`."""
    return Path(os.environ["BAKED"], "image", "image-project")


@pytest.fixture(scope="session")
def text_project() -> Path:
    """The project of the language starter; its package is `text_project`."""
    return Path(os.environ["BAKED"], "text", "text-project")
