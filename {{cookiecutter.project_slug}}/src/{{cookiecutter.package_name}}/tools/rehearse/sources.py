"""Literals that tie code to one kind of device, found in the syntax tree of the user's files."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from .findings import Finding
from .places import is_users

DEVICE = re.compile(r"(cuda|mps)(:\d+)?")
CALLS = {
    "cuda": ".cuda() is there on CUDA only",
    "set_default_device": "set_default_device changes where PyTorch and Lightning make their own",
    "pin_memory": ".pin_memory() pins for CUDA, and on a Mac makes a tensor of the GPU",
}
FIX = "leave it to Lightning, or use self.device, or a tensor's own .device"


def vendor_literals(files: Iterable[Path]) -> list[Finding]:
    """Return a warning for each. If such a line runs on another device, the steps will fail."""
    return [
        Finding("vendor", "warning", said, FIX, str(file), line)
        for file in sorted(set(files))
        for line, said in _found(ast.parse(file.read_text(encoding="utf-8")))
    ]


def _found(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr=name, value=value)) if name in CALLS:
                if not _asks_about_hardware(value):
                    yield node.lineno, CALLS[name]
            case ast.keyword(arg="non_blocking", value=ast.Constant(value=True)):
                yield node.value.lineno, "non_blocking= races with the copy on MPS"
            case ast.Constant(value=str(text)) if DEVICE.fullmatch(text):
                yield node.lineno, f"{text!r} names one kind of device"


def _asks_about_hardware(value: ast.expr) -> bool:
    return isinstance(value, ast.Attribute) and value.attr == "backends"


def loaded_beside(names: Iterable[str]) -> list[Path]:
    """Return the user's files that are loaded, of the packages that these modules are in."""
    packages = {name.partition(".")[0] for name in names if _users_file(name) is not None}
    loaded = [name for name in sys.modules if name.partition(".")[0] in packages]
    return [file for name in loaded if (file := _users_file(name)) is not None]


def _users_file(module: str) -> Path | None:
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if file and file.endswith(".py") and is_users(file) else None


def line_of_call(file: str, name: str, inside: str = "") -> int | None:
    """Return the first line of a file that calls `name`, in the class `inside` if given."""
    tree: ast.AST = ast.parse(Path(file).read_text(encoding="utf-8"))
    if inside:
        classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == inside]
        tree = classes[0] if classes else tree
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (getattr(node.func, "attr", None) == name or getattr(node.func, "id", None) == name)
    ]
    return min(lines, default=None)
