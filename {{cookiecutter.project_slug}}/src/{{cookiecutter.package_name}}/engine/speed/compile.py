"""Compile a task in place, so that its checkpoints do not show that the run was compiled."""

import logging
import time
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torchmetrics import Metric

log = logging.getLogger(__name__)


def compile_in_place(task: LightningModule, *, same_bits: bool) -> None:
    """Compile the task's child modules, which are its models and losses, but not its metrics.

    Args:
        same_bits: Forbid the compiler to choose kernels by measuring, so that every process runs
            the same code.
    """
    if same_bits:
        torch._inductor.config.deterministic = True
    for module in task.children():
        if not isinstance(module, Metric):
            module.compile()


class FirstStep(Callback):
    """Log how long the first step took. Most of that is compiling."""

    def __init__(self) -> None:
        self.started = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = self.started or time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.started >= 0:
            if trainer.strategy.root_device.type != "cpu":
                torch.accelerator.synchronize()
            log.info(f"The first step took {time.monotonic() - self.started:.0f} s to compile")
            self.started = -1.0
