"""Our own callbacks; Lightning's are used as they are, by configs/callbacks."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar

from .figures import draw_confusion, draw_curves

log = logging.getLogger(__name__)


def progress() -> ProgressBar:
    """A bar in a terminal; elsewhere, in a file or a cluster's log, one line an epoch."""
    return RichProgressBar() if sys.stdout.isatty() else EpochLines()


class EpochLines(ProgressBar):
    """`epoch 3/30  train/acc 0.9620  val/acc 0.9410  val/loss 0.2130  1.2 s`"""

    def disable(self) -> None:
        """Nothing: only the first rank logs, and Lightning calls this on the others."""

    def on_train_epoch_start(self, *_: Any) -> None:
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        shown = {k: v for k, v in sorted(trainer.callback_metrics.items()) if "/" in k}
        metrics = "".join(f"  {name} {value:.4f}" for name, value in shown.items())
        seconds = time.monotonic() - self.start
        log.info(
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}{metrics}  {seconds:.1f} s"
        )


class Curves(Callback):
    """curves.png in `folder`, from the metrics.csv there, when training has ended."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.save()
        metrics = self.folder / "metrics.csv"
        if trainer.is_global_zero and metrics.is_file():  # there is none after a fast_dev_run
            draw_curves(metrics, self.folder / "curves.png")


class ConfusionMatrix(Callback):
    """confusion.png in `folder`, from the test of a task with a `confusion` metric."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        counts = pl_module.confusion.compute().cpu().numpy()  # of all ranks
        pl_module.confusion.reset()
        if trainer.is_global_zero:
            names = trainer.datamodule.class_names  # type: ignore[attr-defined]
            draw_confusion(counts, names, self.folder / "confusion.png")
