"""Which line of the user's code is running, and where something is defined."""

import contextlib
import functools
import inspect
import sys
import sysconfig
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

PACKAGE = Path(__file__).parents[2]
MACHINERY = (PACKAGE / "engine", PACKAGE / "tools", PACKAGE / "__main__.py")
INSTALLED = (
    Path(torch.__file__).parents[1],
    *(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib", "scripts")),
)

Place = tuple[str, int]  # file, line


@functools.cache
def is_users(file: str) -> bool:
    """Return whether a file is the user's own: not of Python, a library, engine/ or tools/."""
    path = Path(file)
    if file.startswith("<") or any(map(path.is_relative_to, MACHINERY)):
        return False
    # The project itself may be installed, too.
    return path.is_relative_to(PACKAGE) or not any(map(path.is_relative_to, INSTALLED))


@functools.cache
def _library(file: str) -> str:
    """Return what a file belongs to, if that acts by itself: lightning, torchmetrics, an optimizer.

    The rest of PyTorch does what the line that calls it says.
    """
    for folder in INSTALLED:
        if Path(file).is_relative_to(folder):
            top, *rest = Path(file).relative_to(folder).parts
            if top in ("site-packages", "dist-packages"):
                top, *rest = rest or [""]
            if top == "torch":
                part = ".".join(rest[:2]) if rest[0] == "nn" else rest[0]
                return part if part in ("optim", "amp", "utils", "autograd", "nn.modules") else ""
            return "" if top.endswith(".py") else top
    return ""


def current() -> tuple[Place | None, str]:
    """Return the innermost line of the user's code, and the library that it has called."""
    frame: FrameType | None = sys._getframe(1)
    through = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if is_users(file):
            return (file, frame.f_lineno), through
        through = through or _library(file)
        frame = frame.f_back
    return None, through


def of_error(traceback: TracebackType | None) -> Place | None:
    """Return the innermost line of the user's code that an error came through."""
    place = None
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if is_users(file):
            place = (file, traceback.tb_lineno)
        traceback = traceback.tb_next
    return place


def defined_at(thing: Any) -> Place | None:
    """Return where a function, or the class of an object, stands in the user's code."""
    for candidate in (thing, type(thing)):
        with contextlib.suppress(TypeError, OSError):
            file = inspect.getsourcefile(candidate)
            if file is not None and is_users(file):
                return file, inspect.getsourcelines(candidate)[1]
    return None
