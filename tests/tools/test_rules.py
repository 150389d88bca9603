"""Rules that keep a project portable, checked by reading its sources."""

import ast
from pathlib import Path

import image_project
import pytest
import text_project
from image_project.tools.rehearse.sources import vendor_literals

PACKAGES = [Path(package.__file__).parent for package in (image_project, text_project)]
MAY_KNOW = ("engine", "tools")  # which name hardware
SOURCES = [
    source
    for package in PACKAGES
    for source in sorted(package.rglob("*.py"))
    if source.relative_to(package).parts[0] not in MAY_KNOW
]


def name(source: Path) -> str:
    return f"{source.parent.name}/{source.name}"


@pytest.mark.parametrize("source", SOURCES, ids=name)
def test_no_source_is_tied_to_one_kind_of_device(source: Path) -> None:
    """Tensors are made on `self.device`, and Lightning moves batches."""
    assert vendor_literals([source]) == []


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_models_know_neither_lightning_nor_hydra(package: Path) -> None:
    for source in (package / "models").glob("*.py"):
        tree = ast.parse(source.read_text(encoding="utf-8"))
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        imported |= {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not {one.partition(".")[0] for one in imported} & {"lightning", "hydra", "omegaconf"}
