"""torch.compile, in place: a checkpoint does not tell that it comes from a compiled run."""

import logging
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torchmetrics import Metric

log = logging.getLogger(__name__)


def compile_in_place(task: L.LightningModule, *, same_bits: bool) -> None:
    """Compile the modules of a task for training, and neither itself nor its metrics.

    Validation and tests run as written: each has forms of its own that would be compiled anew.

    Args:
        same_bits: the compiler measures nothing, so that each process gets the same code.
    """
    if same_bits:
        torch._inductor.config.deterministic = True
    for module in task.children():
        if not isinstance(module, Metric):
            module.compile()


class FirstStep(Callback):
    """Says how long the first step took, most of which was compiling."""

    def __init__(self) -> None:
        self.started = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = self.started or time.monotonic()

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.started >= 0:
            if trainer.strategy.root_device.type != "cpu":
                torch.accelerator.synchronize()
            log.info(f"The first step took {time.monotonic() - self.started:.0f} s, to compile it")
            self.started = -1.0
