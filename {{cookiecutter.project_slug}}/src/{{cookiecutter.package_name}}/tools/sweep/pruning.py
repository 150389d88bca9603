"""Ends a run of a search when its validations are worse than those of the runs before.

The run ends as by SIGTERM, with a checkpoint, so that `train` can still finish it.
"""

import json
import logging
import signal
from pathlib import Path
from typing import Any

import lightning as L
import optuna
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback

from ...engine.run import RunFolder, write_json
from .storage import PRUNER, STUDY, storage

log = logging.getLogger(__name__)


class Pruning(Callback):
    """Reports each validation to Optuna, and ends the run if Optuna's pruner says so.

    Args:
        study: the sweep's folder.
        trial: the number of this run there.
        monitor: the metric to judge it by.
        folder: the run's, for pruned.json.
    """

    def __init__(self, study: str, trial: int, monitor: str, folder: str) -> None:
        self.sweep = Path(study)
        self.trial = trial
        self.monitor = monitor
        self.run = RunFolder(Path(folder))
        self.validations = 0  # so far: runs are compared after as many

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            if self.is_pruned():
                # By another process, for whose lock this one has waited.
                signal.raise_signal(signal.SIGTERM)
            pruner = instantiate(json.loads((self.sweep / PRUNER).read_text(encoding="utf-8")))
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            self.storage = storage(self.sweep)
            self.study = optuna.load_study(study_name=STUDY, storage=self.storage, pruner=pruner)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validations += 1
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.is_global_zero and value is not None and self._is_hopeless(float(value)):
            log.info(f"Pruned: after {self.validations} validations the other runs were better.")
            why = {"study": self.sweep.as_posix(), "trial": self.trial, self.monitor: float(value)}
            write_json(self.run.pruned, why | {"validations": self.validations})
            signal.raise_signal(signal.SIGTERM)

    def is_pruned(self) -> bool:
        """Return whether this trial has been pruned before."""
        if not self.run.pruned.is_file():
            return False
        written = json.loads(self.run.pruned.read_text(encoding="utf-8"))
        return bool(written["study"] == self.sweep.as_posix() and written["trial"] == self.trial)

    def _is_hopeless(self, value: float) -> bool:
        study = self.storage.get_study_id_from_name(STUDY)
        key = self.storage.get_trial_id_from_study_id_trial_number(study, self.trial)
        if self.storage.get_trial(key).state.is_finished():
            return False  # somebody trains it by hand, to the end
        step = self.validations - 1  # Optuna counts from 0
        self.storage.set_trial_intermediate_value(key, step, value)
        trial = self.storage.get_trial(key)
        # A run that a kill has set back is not judged again before its latest validation.
        return step == trial.last_step and self.study.pruner.prune(self.study, trial)
