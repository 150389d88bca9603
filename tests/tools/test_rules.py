"""Rules that keep the code portable, checked by reading the sources."""

import ast
from pathlib import Path

import pytest

import {{ cookiecutter.package_name }} as package

VENDOR_CALLS = ("cuda", "mps", "set_default_device")
MAY_KNOW = ("benchmark", "doctor", "rehearse")
SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_no_source_is_tied_to_one_vendor(source: Path) -> None:
    """Tensors are made on `self.device`; Lightning moves batches, and device.py pins them."""
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in VENDOR_CALLS:
            found.append(f"line {node.lineno}: .{node.attr}")
        if isinstance(node, ast.keyword) and node.arg == "non_blocking":
            found.append(f"line {node.lineno}: non_blocking=")
        if isinstance(node, ast.Constant) and node.value in ("cuda", "mps", "cuda:0"):
            found.append(f"line {node.lineno}: {node.value!r}")
    knows_hardware = source.name == "device.py" or source.parent.name in MAY_KNOW
    assert knows_hardware or not found


MODELS = [source for source in SOURCES if source.parent.name == "models"]


@pytest.mark.parametrize("source", MODELS, ids=lambda path: path.name)
def test_models_know_neither_lightning_nor_hydra(source: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.partition(".")[0])
    assert not imported & {"lightning", "hydra", "omegaconf"}
