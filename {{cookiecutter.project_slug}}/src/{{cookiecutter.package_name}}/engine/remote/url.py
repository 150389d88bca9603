"""Files at a URL, as far as fsspec knows its kind; each mistake and fault there is one sentence.

s3://bucket/prefix    gs://bucket/prefix    file:///mnt/disk/prefix    memory://prefix
"""

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ..errors import UserError
from ..files import Lock, write_whole


@contextlib.contextmanager
def _as_user_errors(url: str) -> Iterator[None]:
    """Turn every error of the storage into a UserError."""
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        hint = "pip install -e '.[s3]'" if url.startswith("s3") else error
        raise UserError(f"{url} needs a package that is not here: {hint}") from error
    except FileNotFoundError as error:
        raise UserError(f"{url} is not there: make the bucket, or correct its name.") from error
    except Exception as error:  # each kind of storage has its own
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = str(error) or type(error).__name__
        if isinstance(error, PermissionError) or "credentials" in reason:
            says = f"may not be used ({reason}): check the keys, and what they allow."
        else:
            says = f"cannot be used: {reason}"
        raise UserError(f"{url} {says}") from error


class Folder:
    """What is below a URL. Names are relative to it, with slashes.

    Raises:
        UserError: here and in every method, if it cannot be used.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with _as_user_errors(self.url):
            self.files, self.path = url_to_fs(self.url, use_listings_cache=False)

    def names(self) -> dict[str, int]:
        """All files, with their sizes; none if it is not there."""
        with _as_user_errors(self.url):
            found = self.files.find(self.path, detail=True)
        return {
            path.removeprefix(self.path).lstrip("/"): info["size"]
            for path, info in found.items()
            if not path.endswith("/")  # an empty object that a web page shows as a folder
        }

    def folders(self) -> set[str]:
        """The names of the folders in it."""
        return {name.partition("/")[0] for name in self.names()}

    def modified(self, name: str) -> float:
        with _as_user_errors(self.url):
            return float(self.files.modified(f"{self.path}/{name}").timestamp())

    def read(self, name: str) -> bytes | None:
        """A small file, or None where there is none."""
        with _as_user_errors(self.url), contextlib.suppress(FileNotFoundError):
            return bytes(self.files.cat_file(f"{self.path}/{name}"))
        return None

    def get(self, name: str, to: Path) -> None:
        """Bring a file here, whole, and as old as it is there."""
        when = self.modified(name)
        with _as_user_errors(self.url), self.files.open(f"{self.path}/{name}", "rb") as source:
            write_whole(to, partial(shutil.copyfileobj, source, length=2**24))
        os.utime(to, (when, when))

    def put(self, name: str, source: Path | bytes) -> None:
        """Take a file there; on object storage and on a disk it is seen whole or not at all."""
        path = f"{self.path}/{name}"
        with _as_user_errors(self.url):
            if isinstance(source, bytes):
                if isinstance(self.files, LocalFileSystem):
                    write_whole(Path(path), lambda file: file.write(source))
                else:
                    self.files.pipe_file(path, source)
            elif isinstance(self.files, LocalFileSystem):  # its own put can be seen half done
                with source.open("rb") as content:
                    write_whole(Path(path), partial(shutil.copyfileobj, content, length=2**24))
            else:
                self.files.put_file(str(source), path)

    def remove(self, name: str) -> None:
        """A file, or a folder with all that is in it."""
        with _as_user_errors(self.url):
            self.files.rm(f"{self.path}/{name}", recursive=True)


def latest(url: str) -> str:
    """The URL of the run, among those below `url`, that has the newest checkpoint.

    Raises:
        UserError: there is none.
    """
    runs = Folder(url)
    found = [name for name in runs.names() if "/checkpoints/" in name]
    if not found:
        raise UserError(f"No run in {url} has a checkpoint: train, or say runs_dir=FOLDER.")
    return f"{runs.url}/{max(found, key=runs.modified).partition('/')[0]}"


def fetch_checkpoint(url: str, folder: Path) -> Path:
    """Bring one checkpoint, a file or a folder, below `folder`; again only if it has changed."""
    parent, _, name = url.rstrip("/").rpartition("/")
    there = Folder(parent)
    with _as_user_errors(url):
        found = there.files.find(f"{there.path}/{name}")
        if not found:
            raise UserError(f"There is no {url}.")
        state = repr([(path, there.files.ukey(path)) for path in found])
    folder = folder / hashlib.sha256(state.encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    with Lock(folder / "fetch.lock"):  # of several processes one is the first
        for path in found:
            relative = path.removeprefix(there.path).lstrip("/")
            if not (folder / relative).is_file():
                there.get(relative, folder / relative)
    return folder / name
