"""What a language model is measured against: byte trigrams, counted in the training text."""

import logging
import math
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback

log = logging.getLogger(__name__)

MAX_COUNTED = 50_000_000  # of a longer training text only its last tokens are counted
COUNT_BYTES = 5_000_000  # at a time


def trigram_probabilities(train: np.ndarray, text: np.ndarray) -> np.ndarray:
    """How likely each byte of `text` was, from the third on, by the two before it.

    Trigrams fall back to bigrams, these to bytes, these to chance, by Witten and Bell's rule: in a
    context seen n times, with d different bytes after it, the shorter context weighs d / (n + d).

    Args:
        train: the bytes that are counted, uint8.
        text: the bytes that are predicted, uint8, three at least.
    """
    trigrams = np.zeros(256**3, np.int64)
    for start in range(0, len(train), COUNT_BYTES):
        trigrams += np.bincount(_keys(train[start : start + COUNT_BYTES + 2]), minlength=256**3)
    after_two = trigrams.reshape(256**2, 256)
    after_one = after_two.reshape(256, 256, 256).sum(0)
    first, second, third = (text[i : len(text) - 2 + i].astype(np.int64) for i in range(3))

    likely = np.full(len(third), 1 / 256)  # (bytes,), float64
    after_none = after_one.sum(0, keepdims=True)
    for counts, context in (
        (after_none, np.zeros_like(third)),
        (after_one, second),
        (after_two, first * 256 + second),
    ):
        seen, different = counts.sum(1)[context], (counts > 0).sum(1)[context]
        mixed = counts[context, third] + different * likely
        likely = np.where(seen > 0, mixed / np.maximum(seen + different, 1), likely)
    return likely


def _keys(text: np.ndarray) -> np.ndarray:
    """Each three bytes in a row as one number."""
    wide = text.astype(np.int64)
    return (wide[:-2] * 256 + wide[1:-1]) * 256 + wide[2:]


class TrigramBaseline(Callback):
    """Logs once the loss of byte trigrams, which a model that learns clearly beats."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step or not trainer.is_global_zero or not has_bytes(trainer):
            return
        nats = self._loss(trainer, "val")
        bits = nats / math.log(2)
        log.info(f"To be beaten: byte trigrams, val/loss {nats:.4f} nats ({bits:.4f} bits) a byte")
        for logger in trainer.loggers:
            logger.log_metrics({"baseline/val_bits_per_byte": bits}, step=0)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not has_bytes(trainer):
            return
        bits = self._loss(trainer, "test") / math.log(2)
        pl_module.log("baseline/test_bits_per_byte", bits, sync_dist=True)

    def _loss(self, trainer: L.Trainer, split: str) -> float:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        train, text = datamodule.bytes_of("train", MAX_COUNTED), datamodule.bytes_of(split)
        return float(-np.log(trigram_probabilities(train, text)).mean())


def has_bytes(trainer: L.Trainer) -> bool:
    """Return whether the data is text; other data has no byte trigrams."""
    return hasattr(trainer.datamodule, "bytes_of")  # type: ignore[attr-defined]
