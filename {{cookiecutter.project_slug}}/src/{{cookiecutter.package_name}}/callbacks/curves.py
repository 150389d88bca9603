"""curves.png: every metric of training and validation over the optimizer steps."""

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib as mpl
import numpy as np
from lightning.pytorch.callbacks import Callback
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PANELS_IN_A_ROW = 4
MOST_PANELS = 12  # the others are in metrics.csv only
COLOURS = {"train": "#0072B2", "val": "#D55E00"}  # colour-blind safe (Okabe and Ito)
TITLES = {"loss": "Loss", "acc": "Accuracy", "bits_per_byte": "Bits per byte"}


class Curves(Callback):
    """Draws curves.png in `folder` from the metrics.csv there, when training has ended."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.save()
        metrics = self.folder / "metrics.csv"
        if trainer.is_global_zero and metrics.is_file():  # there is none after a fast_dev_run
            draw_curves(metrics, self.folder / "curves.png")


def draw_curves(metrics: Path, picture: Path) -> None:
    """Every metric of training and validation over the optimizer steps.

    Args:
        metrics: a metrics.csv with columns such as train/loss and val/loss. If it has
            baseline/val_loss, that is drawn as a line.
        picture: the PNG to write.
    """
    with metrics.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = columns_by_name(rows[0] if rows else [])
    # The loss first, the others by name.
    names = sorted({name for _, name in columns}, key=lambda name: (name != "loss", name))
    if not names:
        return
    with mpl.rc_context({"text.parse_math": False}):  # names may have a $
        _draw_panels(rows, columns, names[:MOST_PANELS]).savefig(picture, dpi=150)


def _draw_panels(
    rows: list[dict[Any, Any]], columns: dict[tuple[str, str], str], names: list[str]
) -> Figure:
    """Draw a panel for each of `names`, some in a row."""
    width = min(len(names), PANELS_IN_A_ROW)
    height = -(-len(names) // width)
    figure = Figure(figsize=(5.5 * width, 4 * height), layout="constrained")
    panels = figure.subplots(height, width, squeeze=False, sharex=True).flat
    for axes in panels[len(names) :]:
        axes.remove()
    for axes, name in zip(panels, names, strict=False):
        for split, colour in COLOURS.items():
            column = columns.get((split, name))
            points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
            if points:
                _draw(axes, np.array(points).T, colour, split)
        beaten = [row[f"baseline/val_{name}"] for row in rows if row.get(f"baseline/val_{name}")]
        if beaten:
            axes.axhline(float(beaten[0]), color="0.4", linestyle="--", label="val, baseline")
        axes.legend()
        title = TITLES.get(name, name)
        axes.set(title=title, xlabel="optimizer step", ylabel=title.lower())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    panels[0].set_xlim(left=0)
    return figure


def columns_by_name(columns: Iterable[str]) -> dict[tuple[str, str], str]:
    """Return the column of each split and metric: of train/loss, or train_loss.

    Of a metric that was logged with on_step and on_epoch, only the means of epochs are drawn.
    """
    found: dict[tuple[str, str], str] = {}
    for column in columns:
        if match := re.fullmatch("(train|val)[/_](.+)", column):
            found[match[1], match[2]] = column
    for split, name in list(found):
        base = name.removesuffix("_epoch")
        if base != name and (split, f"{base}_step") in found:
            del found[split, f"{base}_step"]
            found.setdefault((split, base), found.pop((split, name)))
    return found


def _draw(axes: Axes, points: np.ndarray, colour: str, label: str) -> None:
    steps, values = points
    width = len(values) // 30 + 1  # what is logged every few steps is noisy: its mean is on top
    if width > 2:
        axes.plot(steps, values, color=colour, alpha=0.25, label=label)
        label += ", smoothed"
        values = np.convolve(values, np.ones(width) / width, "valid")
        steps = steps[(width - 1) // 2 :][: len(values)]
    style = "-" if width > 2 else ".-" if len(values) > 1 else "o"
    axes.plot(steps, values, style, color=colour, label=label)
