"""Text to learn to continue: what ships with Python, or one's own."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..engine.errors import UserError
from .corpus import fingerprint, python_topics, read_corpus, read_prompt
from .tokenizer import ByteTokenizer, make_tokenizer

log = logging.getLogger(__name__)

DECODE_TOKENS = 2**20  # at a time


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
        vocab_size: of the model, to refuse a tokenizer with more tokens; None: no check.
    """

    predictions_file = "continued.txt"  # of `predict`, in the run's folder

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
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("data.batch_size", batch_size), ("model.context", context)):
            if value < 1:
                raise UserError(f"{name}={value} is too small. Use 1 or more.")
        if val_size <= 0 or test_size <= 0 or val_size + test_size >= 1:
            raise UserError(
                "data.val_size and data.test_size must be fractions that leave some to train on."
            )
        if path == "":
            raise UserError("data.path= is empty. Name a file or a folder, or leave it out.")
        self.batch_size = batch_size
        self.context = context
        self.path = path
        self.tokenizer = make_tokenizer(tokenizer)
        self.val_size = val_size
        self.test_size = test_size
        self.cache = Path(cache)
        if vocab_size is not None and vocab_size < self.tokenizer.num_tokens:
            raise UserError(
                f"model.vocab_size={vocab_size} is too small for this tokenizer. Use"
                f" {self.tokenizer.num_tokens}."
            )
        self.tokens: dict[str, Tensor] = {}  # by split
        self.fingerprint = ""
        self.prompt = ""  # of `predict`
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
        return DataLoader(self._windows("train"), self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._windows("val"), self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self._windows("test"), self.batch_size)

    def _windows(self, split: str) -> "Windows":
        return Windows(self.tokens[split], self.context)

    def read_inputs(self, source: str) -> DataLoader[Any]:
        """Return the tokens of what `predict` is given: some words, or a text file."""
        self.prompt = read_prompt(source)
        tokens = torch.from_numpy(self.tokenizer.encode(self.prompt).astype("int64"))
        if not len(tokens):
            raise UserError("There is no text to continue. Give one word at least.")
        return DataLoader([(tokens, self.tokenizer.num_tokens)])  # type: ignore[arg-type]

    def write_predictions(self, predictions: list[list[list[int]]], output: Path) -> None:
        """Write the prompt and what the model has written after it."""
        text = self.prompt + self.tokenizer.decode(predictions[0][0])
        log.info(f"{text}\n")
        output.write_text(text, encoding="utf-8")

    def bytes_of(self, split: str, at_most: int | None = None) -> np.ndarray:
        """Return the text of a split as UTF-8 bytes; with `at_most`, of its last tokens only."""
        tokens = self.tokens[split].numpy()
        if at_most is not None:
            tokens = tokens[-at_most:]
        if isinstance(self.tokenizer, ByteTokenizer):
            return tokens
        pieces = (tokens[i : i + DECODE_TOKENS] for i in range(0, len(tokens), DECODE_TOKENS))
        text = b"".join(self.tokenizer.decode(piece.tolist()).encode() for piece in pieces)
        return np.frombuffer(text, np.uint8)

    def bytes_per_token(self, split: str) -> float:
        """Return the mean length of a token, which makes losses of tokenizers comparable."""
        if split not in self.token_sizes:
            self.token_sizes[split] = len(self.bytes_of(split)) / len(self.tokens[split])
        return self.token_sizes[split]

    def state_dict(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume on another text.

        Raises:
            UserError: the run was trained on another text.
        """
        if state_dict["fingerprint"] != self.fingerprint:
            raise UserError(
                f"The text of this run has changed ({self.path or 'Python has another version'})."
                " Use resume=never to start anew, or init_from=RUN to start from its weights."
            )


class Windows(Dataset[list[Tensor]]):
    """Rows of `context` tokens that follow each other, and the same rows one token on, int64."""

    def __init__(self, tokens: Tensor, context: int) -> None:
        self.tokens, self.context = tokens, context

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: int) -> list[Tensor]:
        window = self.tokens[index * self.context :][: self.context + 1].long()
        return [window[:-1], window[1:]]
