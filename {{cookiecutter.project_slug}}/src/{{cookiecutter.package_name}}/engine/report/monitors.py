"""Says within seconds that a monitored metric is misspelt, in place of after an epoch."""

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from ..errors import UserError, did_you_mean


class Monitors(Callback):
    """Looks after the sanity check, which logs what a validation logs."""

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logged = trainer.callback_metrics
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(callback, EarlyStopping | ModelCheckpoint):
                continue
            wanted = callback.monitor
            # A metric that resembles no other may be logged later, or in training.
            if wanted and wanted not in logged and (hint := did_you_mean(wanted, logged)) != ".":
                raise UserError(f"monitor={wanted} is not logged{hint}")
