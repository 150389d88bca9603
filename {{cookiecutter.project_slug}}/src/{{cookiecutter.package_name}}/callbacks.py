"""Our own callbacks; Lightning's are used as they are, by configs/callbacks."""

import logging
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    ProgressBar,
    RichProgressBar,
)
from lightning.pytorch.callbacks.progress.rich_progress import (
    CustomBarColumn,
    MetricsTextColumn,
)
from rich.progress import ProgressColumn, Task, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from .cli import did_you_mean
from .errors import UserError
from .figures import draw_curves

log = logging.getLogger(__name__)


def progress() -> ProgressBar:
    """A bar in a terminal; elsewhere, in a file or a cluster's log, one line an epoch."""
    return Bar() if sys.stdout.isatty() else EpochLines()


class Metrics(MetricsTextColumn):
    """Lightning's, which breaks over several lines what a narrow terminal has no room for."""

    def _generate_metrics_texts(self) -> Generator[str, None, None]:
        for text in super()._generate_metrics_texts():
            yield text.replace(": ", " ", 1)

    def render(self, task: Task) -> Text:
        text = super().render(task)
        text.no_wrap, text.overflow = True, "ellipsis"
        return text


class Bar(RichProgressBar):
    """Lightning's, in one line, and counting epochs from 1; it leaves log.txt its lines."""

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        description, _, batches, *_ = super().configure_columns(trainer)
        bar = CustomBarColumn(
            bar_width=None,
            complete_style=self.theme.progress_bar,
            finished_style=self.theme.progress_bar_finished,
            pulse_style=self.theme.progress_bar_pulse,
            table_column=Column(ratio=1),  # the room that the others leave
        )
        left = TimeRemainingColumn(compact=True, elapsed_when_finished=True)
        return [description, bar, batches, left]

    def _init_progress(self, trainer: L.Trainer) -> None:
        before = self.progress
        super()._init_progress(trainer)
        if self.progress is not None and self.progress is not before:
            self.progress.expand = True
            look = self.theme.metrics, " ", self.theme.metrics_format
            self._metric_component = Metrics(trainer, *look)
            self.progress.columns = (*self.progress.columns[:-1], self._metric_component)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        log.debug(epoch_line(trainer))


class EpochLines(ProgressBar):
    def disable(self) -> None:
        """Nothing: only the first rank logs, and Lightning calls this on the others."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        log.info(epoch_line(trainer))


def epoch_line(trainer: L.Trainer) -> str:
    """`epoch 3/30  train/acc 0.9620  val/acc 0.9410  val/loss 0.2130`: what goes to a bar, too."""
    shown = sorted(trainer.progress_bar_metrics.items())
    metrics = "".join(f"  {name} {value:.4f}" for name, value in shown)
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}{metrics}"


class BestCheckpoint(ModelCheckpoint):
    """Lightning's, which forgets the best score when the folder of the run has moved.

    Here it counts if its weights are in this folder: they are not where `ckpt_path` is another run.
    """

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say after seconds what would else be found after an epoch."""
        logged, wanted = trainer.callback_metrics, str(self.monitor)
        if wanted.startswith("val/") and wanted not in logged:
            raise UserError(f"monitor={wanted} is not logged{did_you_mean(wanted, logged)}")

    def on_train_batch_end(self, *args: Any) -> None:
        if self._every_n_train_steps or self._train_time_interval:  # else it is a look in vain
            super().on_train_batch_end(*args)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if Path(self.format_checkpoint_name({})).is_file():
            super().load_state_dict({**state_dict, "dirpath": self.dirpath})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if validated(trainer):
            super().on_train_epoch_end(trainer, pl_module)


class StopEarly(EarlyStopping):
    """Lightning's, which forgets on a resume that it had stopped, and trains an epoch more."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
            log.info("It had stopped early, and stays so.")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if validated(trainer):
            super().on_train_epoch_end(trainer, pl_module)


def validated(trainer: L.Trainer) -> bool:
    """Whether this epoch was: max_steps may end one before, with nothing to compare."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


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
