"""What these measurements share: a project's own trainer, and a clock for its steps."""

import importlib
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


def synchronize() -> None:
    """Wait until the GPU, if there is one, has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def build(package: str, overrides: list[str], folder: Path) -> tuple[Any, Any]:
    """Return a run, and what the project's own factory builds for it, as `train` would.

    Args:
        package: of the generated project.
        overrides: of its `train` command.
        folder: where the run writes.
    """
    from hydra import compose, initialize_config_module

    device, run, trainer = (
        importlib.import_module(f"{package}.engine.{name}") for name in ("device", "run", "trainer")
    )
    with initialize_config_module(f"{package}.configs", version_base="1.3"):
        cfg = compose("train", overrides)
    settings = device.resolve(device.requested(cfg), device.probe())
    opened = run.Run(cfg, settings, run.RunFolder(folder))
    return opened, trainer.build(opened)


class StepClock(Callback):
    """Time the optimizer steps after the first `warm_up`, up to the end of the training."""

    def __init__(self, warm_up: int = 0) -> None:
        self.warm_up, self.started, self.seconds, self.steps = warm_up, 0.0, 0.0, 0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if not self.started and trainer.global_step == self.warm_up:
            synchronize()
            self.started = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize()
        self.seconds = time.perf_counter() - self.started
        self.steps = trainer.global_step - self.warm_up

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps
