"""Monitored metrics: a misspelt one is refused within seconds, a late one is waited for."""

import logging
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from ..errors import UserError, did_you_mean
from ..resume.state import model_checkpoints

log = logging.getLogger(__name__)

HOOKS = ("on_validation_end", "on_train_epoch_end")


class Monitors(Callback):
    """Let EarlyStopping and ModelCheckpoint wait for a metric that is logged late.

    Lightning ends a run if their metric is missing at the end of the first validation, and if that
    of ReduceLROnPlateau is missing at the end of an epoch, which may be one without a validation.
    """

    def __init__(self) -> None:
        self.validated = False

    def on_fit_start(self, trainer: Trainer, task: LightningModule) -> None:
        if any(not one.monitor for one in trainer.early_stopping_callbacks):
            raise UserError(
                "monitor=null is no metric to stop by. Add '~callbacks.early_stopping'."
            )
        if trainer.check_val_every_n_epoch != 1:
            for schedule in trainer.lr_scheduler_configs:
                schedule.strict = False
        for one in _monitoring(trainer):
            for hook in HOOKS:
                vars(one)[hook] = partial(_call_if_logged, getattr(one, hook), one)

    def on_sanity_check_end(self, trainer: Trainer, task: LightningModule) -> None:
        logged = trainer.callback_metrics  # what a validation logs
        for one in _monitoring(trainer):
            # Another metric may be logged later, or in training: train/loss resembles val/loss.
            missing = one.monitor not in logged
            if missing and get_close_matches(one.monitor, logged, cutoff=0.8):
                hint = did_you_mean(one.monitor, logged)
                raise UserError(f"monitor={one.monitor} is not logged{hint}")

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.sanity_checking or self.validated:
            return
        self.validated, logged = True, trainer.callback_metrics
        for name in sorted({one.monitor for one in _monitoring(trainer)} - set(logged)):
            log.warning(
                f"monitor={name} is not logged yet{did_you_mean(name, logged)} Until it is, no"
                " checkpoint counts as the best."
            )

    def teardown(self, trainer: Trainer, task: LightningModule, stage: str) -> None:
        for one in _monitoring(trainer):
            for hook in HOOKS:
                vars(one).pop(hook, None)


def _monitoring(trainer: Trainer) -> list[Any]:
    callbacks: list[Any] = [*trainer.early_stopping_callbacks, *model_checkpoints(trainer)]
    return [one for one in callbacks if one.monitor]


def _call_if_logged(
    hook: Callable[..., None], callback: Any, trainer: Trainer, task: LightningModule
) -> None:
    if callback.monitor in trainer.callback_metrics:
        hook(trainer, task)
