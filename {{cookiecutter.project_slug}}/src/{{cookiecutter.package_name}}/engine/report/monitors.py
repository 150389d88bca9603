"""Refuse a misspelt monitored metric within seconds, instead of after an epoch."""

from difflib import get_close_matches

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from ..errors import UserError, did_you_mean


class RefuseMisspeltMonitors(Callback):
    """Runs after the sanity check, which logs what a validation logs."""

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logged = trainer.callback_metrics
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if not isinstance(callback, EarlyStopping | ModelCheckpoint):
                continue
            wanted = callback.monitor
            # Another metric may be logged later, or in training: train/loss resembles val/loss.
            if wanted and wanted not in logged and get_close_matches(wanted, logged, cutoff=0.8):
                raise UserError(f"monitor={wanted} is not logged{did_you_mean(wanted, logged)}")
