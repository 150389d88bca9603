"""Text to learn to continue: what ships with Python, or one's own."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError
from .corpus import fingerprint, python_topics, read_corpus
from .tensors import ReplayableSampler, TensorBatches, take_batch
from .tokenizer import ByteTokenizer, make_tokenizer

DECODED = 2**20  # tokens that are turned into bytes at a time


class TextDataModule(L.LightningDataModule):
    """Inputs (batch, context) and targets, which are one token on, int64.

    The first part of the text is for training, then comes the validation's, the last is the test's.

    Args:
        batch_size: windows of `context` tokens a step and device.
        context: how many tokens a model sees at once.
        path: a UTF-8 file, or a folder of .txt and .md files; None: the English that Python brings.
        tokenizer: `bytes`, or a tokenizer.json.
        val_size: fraction of the tokens for validation.
        test_size: fraction of the tokens for testing.
        cache: the folder where the tokens of `path` are kept.
        seed: of the order of the training windows.
    """

    in_memory = True  # or mapped into it: tells device.py that workers would gain nothing

    def __init__(
        self,
        batch_size: int,
        context: int,
        *,
        path: str | None = None,
        tokenizer: str = "bytes",
        val_size: float = 0.05,
        test_size: float = 0.05,
        cache: str = "data/tokens",
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("data.batch_size", batch_size), ("model.context", context)):
            if value < 1:
                raise UserError(f"{name}={value} is too small: use 1 or more.")
        if val_size <= 0 or test_size <= 0 or val_size + test_size >= 1:
            raise UserError(
                "data.val_size and data.test_size must be fractions that leave some to train on."
            )
        if path == "":
            raise UserError("data.path= is empty: say a file or folder, or leave it out.")
        self.batch_size = batch_size
        self.context = context
        self.path = path
        self.tokenizer = make_tokenizer(tokenizer)
        self.val_size = val_size
        self.test_size = test_size
        self.cache = Path(cache)
        self.seed = seed
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers
        self.tokens: dict[str, Tensor] = {}  # by split
        self.fingerprint = ""
        self.token_sizes: dict[str, float] = {}

    def setup(self, stage: str) -> None:
        if self.tokens:
            return
        if self.path is None:
            tokens = python_topics(self.tokenizer)
        else:
            tokens = read_corpus(Path(self.path), self.tokenizer, self.cache)
        self.fingerprint = fingerprint(tokens)
        test = int(len(tokens) * (1 - self.test_size))
        val = int(len(tokens) * (1 - self.test_size - self.val_size))
        self.tokens = {"train": tokens[:val], "val": tokens[val:test], "test": tokens[test:]}
        if min(map(len, self.tokens.values())) <= self.context:
            raise UserError(
                f"A text of {len(tokens)} tokens is too short for a window of {self.context} in"
                " each split: take a longer one (data.path), or a smaller model.context."
            )
        windows = len(self._windows("train"))
        if self.batch_size > windows:
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {windows} training windows."
            )

    def train_dataloader(self) -> DataLoader[Any]:
        windows = self._windows("train")
        return self._loader(windows, sampler=ReplayableSampler(windows, self.seed), drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self._windows("val"))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self._windows("test"))

    def _windows(self, split: str) -> "Windows":
        return Windows(self.tokens[split], self.context)

    def _loader(
        self, windows: "Windows", sampler: ReplayableSampler | None = None, drop_last: bool = False
    ) -> DataLoader[Any]:
        return DataLoader(
            windows,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            persistent_workers=self.persistent_workers,
            collate_fn=take_batch,
        )

    def bytes_of(self, split: str, at_most: int | None = None) -> np.ndarray:
        """The text of a split as the bytes of UTF-8; of its last `at_most` tokens."""
        tokens = self.tokens[split][-(at_most or 0) :].numpy()
        if isinstance(self.tokenizer, ByteTokenizer):
            return tokens
        pieces = (tokens[i : i + DECODED] for i in range(0, len(tokens), DECODED))
        text = b"".join(self.tokenizer.decode(piece.tolist()).encode() for piece in pieces)
        return np.frombuffer(text, np.uint8)

    def bytes_per_token(self, split: str) -> float:
        """Makes losses of different tokenizers comparable."""
        if split not in self.token_sizes:
            self.token_sizes[split] = len(self.bytes_of(split)) / len(self.tokens[split])
        return self.token_sizes[split]

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the run that goes on here.

        Raises:
            UserError: it learned another text.
        """
        if state_dict["fingerprint"] != self.fingerprint:
            raise UserError(
                f"The text of this run has changed ({self.path or 'Python has another version'}):"
                " take resume=never to start anew, or init_from=RUN to go on with its weights."
            )


class Windows(TensorBatches):
    """Rows of `context` tokens that follow each other, and the same rows one token on, int64."""

    def __init__(self, tokens: Tensor, context: int) -> None:
        end = (len(tokens) - 1) // context * context
        super().__init__(tokens[:end].view(-1, context), tokens[1 : end + 1].view(-1, context))

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(self.__getitems__([index]))

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [rows.long() for rows in super().__getitems__(indices)]
