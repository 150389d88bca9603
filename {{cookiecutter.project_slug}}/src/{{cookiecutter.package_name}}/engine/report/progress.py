"""What a person sees while a run trains: a bar in a terminal, lines elsewhere."""

import logging
import sys
from collections.abc import Generator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
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

log = logging.getLogger(__name__)


def progress() -> ProgressBar:
    """A bar in a terminal; elsewhere, in a file or a cluster's log, one line an epoch."""
    return Bar() if sys.stdout.isatty() else EpochLines()


class OneLineMetrics(MetricsTextColumn):
    """Lightning's metrics column, but in one line, cut where a narrow terminal ends."""

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
            self._metric_component = OneLineMetrics(trainer, *look)
            self.progress.columns = (*self.progress.columns[:-1], self._metric_component)

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1}/{self.trainer.max_epochs}"

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        log.debug(epoch_line(trainer))


class EpochLines(ProgressBar):
    is_enabled, is_disabled = True, False  # `self.print` of a task asks

    def disable(self) -> None:
        """Nothing: only rank 0 logs, and Lightning calls this on the others."""

    def enable(self) -> None:
        """Nothing: the tuner's callbacks disable a bar while they search, and enable it again."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        log.info(" ".join(map(str, args)))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        log.info(epoch_line(trainer))


def epoch_line(trainer: L.Trainer) -> str:
    """`epoch 3/30  train/acc 0.9620  val/acc 0.9410  val/loss 0.2130`: what goes to a bar, too."""
    shown = sorted(trainer.progress_bar_metrics.items())
    metrics = "".join(f"  {name} {value:.4f}" for name, value in shown)
    return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}{metrics}"
