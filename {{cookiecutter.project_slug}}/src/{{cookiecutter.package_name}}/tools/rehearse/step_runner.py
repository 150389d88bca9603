"""A task's steps under Lightning's own Trainer, on stand-ins in place of a device."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import (
    DoublePrecision,
    HalfPrecision,
    MixedPrecision,
    Precision,
)
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils._pytree import tree_map

from .meta_mode import MetaMode
from .recorder import WIDE, Recorder

STEPS = 2  # of the optimizer, whose state is made by the first
TRAINER = {"max_epochs": 1000, "gradient_clip_val": None, "gradient_clip_algorithm": None}


@dataclass(frozen=True)
class Part:
    """One call of the Trainer.

    Args:
        run: makes the call.
        borrows_batch: `predict_step` gets a batch of another split, which may not be what it takes.
    """

    run: Callable[[], Any]
    borrows_batch: bool = False


class StepRunner:
    """Run each stage that a task has."""

    def __init__(
        self,
        task: LightningModule,
        datamodule: LightningDataModule,
        recorder: Recorder,
        mode: MetaMode,
        *,
        precision: str,
        settings: dict[str, Any],
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.task, self.datamodule, self.recorder, self.mode = task, datamodule, recorder, mode
        self.precision = _precision(precision, mode.target.type)
        self.settings = {**TRAINER, **{k: v for k, v in settings.items() if k in TRAINER}}
        accumulated = min(settings.get("accumulate_grad_batches", 1), 2)  # more takes only time
        self.settings["accumulate_grad_batches"] = accumulated
        self.callbacks = [*callbacks, Cues(recorder, STEPS * accumulated)]
        self.fitted: Trainer | None = None

    def move_in(self) -> None:
        """Do what `.to(device)` does to parameters, buffers and metrics, without a copy.

        Lightning calls it after the hooks that may make more of them.
        """
        for name, tensor in (*self.task.named_parameters(), *self.task.named_buffers()):
            if tensor.dtype in WIDE and self.mode.target.type == "mps":
                self.recorder.add(
                    "dtype", "fails", f"{name} is {WIDE[tensor.dtype]}", "make it float32"
                )
        self.task._apply(self.mode.moved)
        for module in self.task.modules():
            if isinstance(module, LightningModule):
                module._device = self.mode.target
        self.recorder.meter.made([*self.task.parameters(), *self.task.buffers()])

    def parts(self, taken: dict[str, Any]) -> Iterator[Part]:
        if "train" in taken and is_overridden("training_step", self.task):
            yield Part(self._fit)
        if "test" in taken and is_overridden("test_step", self.task):
            yield Part(lambda: self._trainer().test(self.task, self.datamodule, verbose=False))
        own = "predict" in taken
        loaders = taken["predict"] if own else taken.get("test", taken.get("val"))
        if loaders is not None and is_overridden("predict_step", self.task):
            yield Part(lambda: self._trainer().predict(self.task, loaders), borrows_batch=not own)

    def optimizers(self) -> list[Any]:
        return [] if self.fitted is None else self.fitted.optimizers

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of optimizers, schedulers and hooks, without tensors."""
        states: dict[str, Any] = {}
        if self.fitted is not None:
            owners: list[Any] = list(self.fitted.optimizers)
            owners += [config.scheduler for config in self.fitted.lr_scheduler_configs]
            for owner in owners:
                states[f"the state of {type(owner).__name__}"] = owner.state_dict()
        weights = self.task.state_dict(keep_vars=True)
        states["the extra state"] = {
            key: value for key, value in weights.items() if not isinstance(value, torch.Tensor)
        }
        added: dict[str, Any] = {"state_dict": {}}
        self.task.on_save_checkpoint(added)
        states["what on_save_checkpoint adds"] = added
        states["the state of the datamodule"] = self.datamodule.state_dict()
        return tree_map(lambda leaf: 0 if isinstance(leaf, torch.Tensor) else leaf, states)

    def _fit(self) -> None:
        self.fitted = self._trainer()
        self.fitted.fit(self.task, datamodule=self.datamodule)

    def _trainer(self) -> Trainer:
        return Trainer(
            accelerator=NoHardware(),
            strategy=StandInStrategy(self.mode.target, self.move_in),
            plugins=[self.precision],
            callbacks=list(self.callbacks),
            logger=DummyLogger(),  # whatever is called on it: a task may use self.logger
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            min_epochs=0,
            limit_val_batches=1,
            limit_test_batches=1,
            limit_predict_batches=1,
            default_root_dir=os.devnull,
            **self.settings,
        )


class NoHardware(CPUAccelerator):
    """An accelerator without hardware to set up."""

    def setup_device(self, device: torch.device) -> None:
        pass


class StandInStrategy(SingleDeviceStrategy):
    """One device, to which the task moves by becoming stand-ins, and where it stays."""

    def __init__(self, device: torch.device, move_in: Callable[[], None]) -> None:
        super().__init__(device=device)
        self.move_in = move_in

    def model_to_device(self) -> None:
        self.move_in()

    def teardown(self) -> None:
        pass


class Cues(Callback):
    """Tell the recorder which step runs, and end the training after a few."""

    def __init__(self, recorder: Recorder, num_batches: int) -> None:
        self.recorder = recorder
        self.left = num_batches

    def on_train_batch_start(self, *args: Any) -> None:
        self.recorder.stage = "train"

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.recorder.stage = ""
        self.left -= 1
        if self.left <= 0:
            trainer.should_stop = True

    def on_validation_batch_start(self, *args: Any) -> None:
        self.recorder.stage = "val"

    def on_test_batch_start(self, *args: Any) -> None:
        self.recorder.stage = "test"

    def on_predict_batch_start(self, *args: Any) -> None:
        self.recorder.stage = "predict"

    def on_validation_batch_end(self, *args: Any) -> None:
        self.recorder.stage = ""

    def on_test_batch_end(self, *args: Any) -> None:
        self.recorder.stage = ""

    def on_predict_batch_end(self, *args: Any) -> None:
        self.recorder.stage = ""


def _precision(precision: str, target: str) -> Precision:
    if precision in ("16-mixed", "bf16-mixed"):
        return MixedPrecision(precision, device=target)  # type: ignore[arg-type]
    if precision in ("16-true", "bf16-true"):
        return HalfPrecision(precision)  # type: ignore[arg-type]
    return DoublePrecision() if precision == "64-true" else Precision()


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence Lightning's hints, which are for a training."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
