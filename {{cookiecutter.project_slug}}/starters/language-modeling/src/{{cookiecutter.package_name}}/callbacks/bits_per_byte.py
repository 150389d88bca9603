"""val/bits_per_byte and test/bits_per_byte: losses that different tokenizers can be compared by."""

import math
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback


class BitsPerByte(Callback):
    """Logs the loss, which is in nats a token, in bits a byte of the text, too."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._log(trainer, pl_module, "test")

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        loss = trainer.callback_metrics.get(f"{split}/loss")
        if loss is None or not hasattr(datamodule, "bytes_per_token"):  # another task, other data
            return
        bits = loss / math.log(2) / datamodule.bytes_per_token(split)
        pl_module.log(f"{split}/bits_per_byte", bits, prog_bar=True, sync_dist=True)
