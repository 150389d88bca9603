"""Write files whole or not at all, also if the process is killed or the disk is full.

Checksums find bits that have flipped since. `Lock` is a lock, where the disk has locks.
`is_leftover` tells the files of a folder from the copies that editors and the like leave there.
"""

import contextlib
import errno
import functools
import json
import logging
import os
import re
import shutil
import threading
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, which has locks of its own
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # NFS, Lustre, mounts of containers
# What editors, macOS and programs that synchronize leave beside a file: copies and notes of their
# own. Hidden files and folders (._x.py, .#x.py, .ipynb_checkpoints) are others.
LEFTOVER = re.compile(
    r"\..*|__MACOSX|__pycache__|#.*#|~.*|.*~|.*(conflicted copy|sync-conflict).*", re.I
)
# In a checkpoint that is a folder, which several processes have written.
CHECKSUMS = "checksums.json"


def is_url(place: str) -> bool:
    """Return whether it is a URL, as remote/url.py understands it: s3://bucket/prefix."""
    return "://" in place


def on_this_machine(runs_dir: str) -> Path:
    """Return the local folder in which the runs of `runs_dir` are trained."""
    return Path("runs" if is_url(runs_dir) else runs_dir)


def is_leftover(path: PurePath) -> bool:
    """Return whether a file in a folder is no part of it, such as a copy that an editor keeps.

    Args:
        path: relative to the folder.
    """
    return any(LEFTOVER.fullmatch(part) for part in path.parts)


def write_whole(path: Path, write: Callable[[Any], None]) -> None:
    """Call `write` with a binary file; afterwards `path` is that file, even if the power goes.

    The file is written beside its target and renamed. /tmp may be another disk, from which a move
    is a copy that a kill would cut.

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
    _sync(path.parent)


def _sync(directory: Path) -> None:
    with contextlib.suppress(OSError):  # Windows and some network disks cannot do this
        folder = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def commit_folder(part: Path, folder: Path) -> None:
    """Write the checksums into the finished folder `part`, and rename it to `folder`."""
    sums = {path.name: _checksum(path) for path in part.iterdir()}
    write_whole(part / CHECKSUMS, lambda file: file.write(json.dumps(sums, indent=2).encode()))
    remove(folder)
    part.replace(folder)
    _sync(folder.parent)


def _checksum(path: Path) -> int:
    sum_so_far = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            sum_so_far = zlib.crc32(block, sum_so_far)
    return sum_so_far


def remove(path: Path) -> None:
    """Remove a file or folder; a folder is renamed first, so that no half of it keeps its name."""
    if path.is_dir():
        part = path.with_name(f"{path.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        path = path.replace(part) if path != part else path
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class Lock:
    """A file that is locked against other processes, and against this one's threads.

    Where the file system has no locks, it is locked against the threads alone, with a warning.

    Args:
        path: the file, which is created.
        timeout: seconds to wait for the lock; -1: for ever.
    """

    def __init__(self, path: Path, timeout: float = -1) -> None:
        self.path, self.timeout = path, timeout
        self.lock: Any = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            Timeout: somebody else has it.
            OSError: the file cannot be written.
        """
        from filelock import FileLock, Timeout  # the rest of this file needs Python alone

        if _has_locks(self.path):
            self.lock = FileLock(self.path, timeout=self.timeout)
            self.lock.acquire()
            return
        _warn_of_no_locks(self.path.parent)
        self.lock = _thread_locks[self.path.absolute()]
        if not self.lock.acquire(timeout=self.timeout):
            raise Timeout(str(self.path))

    def release(self) -> None:
        self.lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


_thread_locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)


def _has_locks(path: Path) -> bool:
    if fcntl is None:
        return True
    try:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # also of a lock that somebody has
        return error.errno not in NO_LOCKS
    return True


@functools.cache
def _warn_of_no_locks(folder: Path) -> None:
    log.warning(f"{folder} is on a disk without locks: two runs in it at once are not noticed.")


def checksum_matches(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written: torch.load checks no checksum."""
    try:
        if path.is_dir():
            sums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
            with ThreadPoolExecutor() as pool:
                return all(pool.map(lambda name: _checksum(path / name) == sums[name], sums))
        with zipfile.ZipFile(path) as parts:
            return parts.testzip() is None
    except Exception:  # zipfile has many kinds for what is no zip file any more
        return False
