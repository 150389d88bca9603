"""A text as one long row of tokens, which may be larger than memory.

Read once, some megabytes at a time, and kept as a file of tokens, which later runs map into memory.
"""

import codecs
import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from ..engine.errors import UserError
from ..engine.files import is_leftover
from .tokenizer import BpeTokenizer, ByteTokenizer

log = logging.getLogger(__name__)

PIECE = 4 * 2**20  # bytes read at a time
ENDS = (".txt", ".md")  # of the files that are read in a folder


def python_topics(tokenizer: ByteTokenizer | BpeTokenizer) -> Tensor:
    """The English reference that Python's `help('TOPIC')` shows; another in each version of Python.

    Topics repeat parts of one another: each paragraph is here once, so that none is in two splits.
    """
    from pydoc_data.topics import topics

    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    text = "\n\n".join(dict.fromkeys(paragraphs))
    return torch.from_numpy(tokenizer.encode(text).copy())


def read_corpus(path: Path, tokenizer: ByteTokenizer | BpeTokenizer, cache: Path) -> Tensor:
    """The tokens of a file, or of all .txt and .md files below a folder, by name.

    Copies that editors and the like leave in the folder (see `is_leftover`) are skipped.

    Args:
        path: what to read, UTF-8.
        tokenizer: turns text into tokens.
        cache: the folder for the file of tokens, whose name follows from the names, sizes and times
            of what was read, and from the tokenizer.

    Raises:
        UserError: nothing is there, or it is not UTF-8.
    """
    files = text_files(path)
    digest = hashlib.sha256(tokenizer.name.encode())
    for file in files:
        now = file.stat()
        digest.update(f"\0{file.absolute()}\0{now.st_size}\0{now.st_mtime_ns}".encode())
    target = cache / f"{path.absolute().name}-{digest.hexdigest()[:16]}.tokens"
    if not target.is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            with contextlib.ExitStack() as lock:
                try:
                    lock.enter_context(
                        FileLock(f"{target}.lock")
                    )  # of several processes, one reads
                except (OSError, NotImplementedError):  # a disk without locks: each of them does
                    part = target.with_suffix(f".{os.getpid()}.part")
                if not target.is_file():
                    log.info(f"Reading {path}, once, to {target}")
                    with part.open("wb") as out:
                        _write_tokens(files, tokenizer, out)
                    part.replace(target)  # a kill leaves no half of it under its name
        except PermissionError as error:
            raise UserError(
                f"{cache} cannot be written: say data.cache=FOLDER of another one."
            ) from error
    size = target.stat().st_size // tokenizer.dtype.itemsize
    if size == 0:
        return torch.empty(0, dtype=tokenizer.dtype)
    return torch.from_file(str(target), size=size, dtype=tokenizer.dtype)


def text_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in ENDS and not is_leftover(file.relative_to(path))
        )
        if not files:
            raise UserError(f"There is no {' or '.join(ENDS)} file in data.path={path}.")
        return files
    if not path.is_file():
        raise UserError(
            f"There is no data.path={path}: say a UTF-8 file, or a folder of {' and '.join(ENDS)}."
        )
    return [path]


def _write_tokens(files: list[Path], tokenizer: ByteTokenizer | BpeTokenizer, out: Any) -> None:
    for number, file in enumerate(files):
        if number:
            out.write(tokenizer.encode("\n\n").tobytes())
        for text in _pieces(file):
            out.write(tokenizer.encode(text).tobytes())


def _pieces(file: Path) -> Iterator[str]:
    """Yield the file's text in pieces that end at line ends (but for lines longer than PIECE)."""
    decoder = codecs.getincrementaldecoder("utf-8")()  # keeps a character that is cut
    position = 0
    with file.open("rb") as stream:
        while True:
            piece = stream.read(PIECE) + stream.readline(PIECE)
            start = position - len(decoder.getstate()[0])
            try:
                yield decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file} is not UTF-8 at byte {start + error.start}"
                    f" (0x{error.object[error.start]:02x}): save it as UTF-8, or leave it out."
                ) from error
            if not piece:
                break
            position += len(piece)


def read_prompt(given: str) -> str:
    """The text of the file of that name, or, where there is none, `given` itself."""
    path = Path(given)
    with contextlib.suppress(OSError):  # a text may be no possible name of a file
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not UTF-8: {error.reason} at {error.start}.") from error
    if path.suffix in (".txt", ".md"):
        raise UserError(f"There is no {path}: say input=FILE.txt or input='some words'.")
    return given


def fingerprint(tokens: Tensor) -> str:
    """Of a short text every token, of a long one its length and a sample."""
    digest = hashlib.sha256(str(len(tokens)).encode())
    block = 4096
    for start in range(0, len(tokens), max(block, len(tokens) // 256)):
        digest.update(tokens[start : start + block].numpy().tobytes())
    return digest.hexdigest()
