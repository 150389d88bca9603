"""Files that are there whole or not at all, whatever is killed, full or flipped in between."""

import contextlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Any], None]) -> None:
    """Call `write` with a binary file; afterwards `path` is that file, even if the power goes.

    The part stands beside its target: a move from another disk, where a system's temporary files
    may be, is a copy, and a kill would tear it.

    Raises:
        OSError: it could not be written, and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # torch.save reports a full disk as "unexpected pos".
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    with contextlib.suppress(OSError):  # Windows and some network disks cannot do this
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def is_sound(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written: torch.load checks no checksum."""
    try:
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except Exception:  # zipfile has many kinds for what is no zip file any more
        return False
