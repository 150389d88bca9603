"""Imports go one way: tools -> train -> engine, and within the engine from floor to floor."""

import shutil
import sys
from pathlib import Path

import pytest
from conftest import run

OWNERS = ("callbacks", "data", "models", "tasks")
# A module imports only what stands below it. `:` stands between rooms that may import each other.
PACKAGE = ("__main__", "tools", "train | evaluate | predict", " : ".join((*OWNERS, "configs")))
ENGINE = (
    *("cli", "config", "trainer", "report", "speed", "resume", "run", "remote", "device"),
    *("parallel", "errors : files : limits"),
)
CONTRACTS = """
[importlinter]
root_package = {package}

[importlinter:contract:package]
name = From the tools down to the engine
type = layers
containers = {package}
exhaustive = true
layers =
    {package_layers}

[importlinter:contract:engine]
name = Within the engine, only a lower floor is imported
type = layers
containers = {package}.engine
exhaustive = true
layers =
    {engine_layers}

[importlinter:contract:owners]
name = No command, tool or engine imports what is the owner's
type = forbidden
source_modules =
    {machinery}
forbidden_modules =
    {owners}

[importlinter:contract:errors]
name = Of the engine, the owner's code imports errors and files at most
type = forbidden
source_modules =
    {owners}
forbidden_modules =
    {all_but_two}

[importlinter:contract:tasks]
name = A task knows nothing of the engine
type = forbidden
source_modules =
    {package}.tasks
forbidden_modules =
    {package}.engine

[importlinter:contract:circles]
name = No circles
type = acyclic_siblings
ancestors =
    {package}
"""


def contracts(package: str, engine: Path) -> str:
    """Return what import-linter is told; new rooms of the engine are found in its folder."""

    def lines(*names: str) -> str:
        return "\n    ".join(names)

    rooms = [path.stem for path in engine.iterdir() if not path.stem.startswith(("_", "README"))]
    return CONTRACTS.format(
        package=package,
        package_layers=lines(*PACKAGE, "engine"),
        engine_layers=lines(*ENGINE),
        machinery=lines(
            *(f"{package}.{name}" for name in ("train", "evaluate", "predict", "engine", "tools"))
        ),
        owners=lines(*(f"{package}.{name}" for name in OWNERS)),
        all_but_two=lines(
            *(f"{package}.engine.{name}" for name in rooms if name not in ("errors", "files"))
        ),
    )


def checked(sources: Path, package: str, folder: Path) -> str:
    """Return what import-linter says of a package; an empty text if it keeps every contract."""
    config = folder / "importlinter.ini"
    config.write_text(contracts(package, sources / package / "engine"), encoding="utf-8")
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    options = (config, "--no-cache")
    # In front of PYTHONPATH, so that a copy is read in place of the project itself.
    done = run(sys.executable, "-c", lint, *options, cwd=sources, PYTHONPATH=str(sources))
    return "" if done.returncode == 0 else done.stdout.partition("Contracts\n")[2] + done.stderr


@pytest.mark.parametrize("package", ["image_project", "text_project"])
def test_the_arrows_go_one_way(
    request: pytest.FixtureRequest, tmp_path: Path, package: str
) -> None:
    fixture = {"image_project": "project", "text_project": "text_project"}[package]
    project: Path = request.getfixturevalue(fixture)
    said = checked(project / "src", package, tmp_path)
    assert not said, said


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("train", "from .tools import runs", "From the tools down"),
        ("engine/files", "from .device import probe", "only a lower floor"),
        ("engine/new", "import os", "only a lower floor"),  # on no floor
        ("engine/trainer", "from ..data import digits", "what is the owner's"),
        ("data/digits", "from ..engine.run import Run", "errors and files at most"),
        ("tasks/classification", "from ..engine.errors import UserError", "knows nothing"),
        ("models/mlp", "from . import convnet, mlp_parts\n", "No circles"),
    ],
)
def test_an_arrow_that_goes_another_way_is_found(
    project: Path, tmp_path: Path, module: str, line: str, broken: str
) -> None:
    sources = tmp_path / "src"
    shutil.copytree(project / "src", sources, ignore=shutil.ignore_patterns("__pycache__"))
    source = sources / "image_project" / f"{module}.py"
    before = source.read_text(encoding="utf-8") if source.exists() else ""
    source.write_text(f"{before}\n{line}\n", encoding="utf-8")
    if "mlp_parts" in line:
        source.with_name("mlp_parts.py").write_text("from .mlp import MLP\n", encoding="utf-8")
    said = checked(sources, "image_project", tmp_path)
    assert any(broken in line and "BROKEN" in line for line in said.splitlines()), said
    assert module.rpartition("/")[2] in said.partition("Broken contracts")[2]


@pytest.mark.parametrize("module", ["errors", "files", "limits"])
def test_the_lowest_floor_needs_the_standard_library_alone(project: Path, module: str) -> None:
    """`doctor` runs where nothing is installed."""
    path = project / "src/image_project/engine" / f"{module}.py"
    # -I -S: without site-packages and PYTHONPATH.
    done = run(sys.executable, "-I", "-S", path)
    assert done.returncode == 0, done.stderr
