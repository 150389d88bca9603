"""Text to tokens and back. Nothing here downloads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..engine.errors import UserError


class ByteTokenizer:
    """The bytes of UTF-8: any text in 256 tokens."""

    num_tokens = 256
    dtype = torch.uint8  # of stored tokens
    name = "bytes"

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8)

    def decode(self, tokens: Sequence[int]) -> str:
        """What is no UTF-8, such as half a letter, becomes U+FFFD."""
        return bytes(tokens).decode(errors="replace")


class BpeTokenizer:
    """A tokenizer.json, of one's own or of a published model, read by the library `tokenizers`."""

    dtype = torch.int32

    def __init__(self, file: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError(
                f"data.tokenizer={file} needs a library: pip install -e '.[bpe]'"
            ) from error
        try:
            content = file.read_bytes()
            self.tokenizer: Any = Tokenizer.from_str(content.decode())
        except OSError as error:
            raise UserError(
                f"data.tokenizer={file} cannot be read ({error.strerror}): say bytes, or a file."
            ) from error
        except Exception as error:  # the library has no kind of its own
            raise UserError(f"data.tokenizer={file} is no tokenizer.json: {error}") from error
        self.num_tokens: int = self.tokenizer.get_vocab_size()
        self.name = content.decode()  # by its content: a file can be written anew

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=False))


def make_tokenizer(name: str) -> ByteTokenizer | BpeTokenizer:
    """`bytes`, or a file."""
    return ByteTokenizer() if name == "bytes" else BpeTokenizer(Path(name))
