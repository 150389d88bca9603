"""The pictures of a run. They draw on no screen, so they work without one."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

COLOURS = {"train": "#0072B2", "val": "#D55E00"}  # of Okabe and Ito, told apart by everybody
TITLES = {"loss": "Loss", "acc": "Accuracy"}


def draw_curves(metrics: Path, picture: Path) -> None:
    """Every metric of training and validation over the optimizer steps.

    Args:
        metrics: a metrics.csv with columns such as train/loss and val/loss.
        picture: the PNG to write.
    """
    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = [name for name in rows[0] if name.startswith(("train/", "val/"))] if rows else []
    # The loss first, the others by name.
    names = sorted(
        {name.partition("/")[2] for name in columns}, key=lambda name: (name != "loss", name)
    )
    if not names:
        return
    figure = Figure(figsize=(5.5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for split, colour in COLOURS.items():
            points = [
                (int(row["step"]), float(row[f"{split}/{name}"]))
                for row in rows
                if row.get(f"{split}/{name}")
            ]
            if not points:
                continue
            steps, values = np.array(points).T
            width = (
                len(points) // 30 + 1
            )  # what is logged every few steps is noisy: its mean is on top
            if width > 2:
                axes.plot(steps, values, color=colour, alpha=0.25)
                values = np.convolve(values, np.ones(width) / width, "valid")
                steps = steps[(width - 1) // 2 :][: len(values)]
            axes.plot(steps, values, "-" if width > 2 else ".-", color=colour, label=split)
            axes.legend()
        title = TITLES.get(name, name)
        axes.set(title=title, xlabel="optimizer step", ylabel=title.lower())
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=150)


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], picture: Path) -> None:
    """Which class was taken for which: colour by row share, the counts written in.

    Args:
        counts: (class, class) integers, a row for each true class, a column for each predicted one.
        class_names: a name for each class.
        picture: the PNG to write.
    """
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 0.45 * len(counts)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set(
        title=f"Test set: {accuracy:.1%} of {counts.sum()} right",
        xlabel="predicted class",
        ylabel="true class",
        xticks=range(len(counts)),
        yticks=range(len(counts)),
        xticklabels=class_names,
        yticklabels=class_names,
    )
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    figure.savefig(picture, dpi=150)
