"""confusion.png: which class was taken for which."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure


class ConfusionMatrix(Callback):
    """confusion.png in `folder`, from the test of a task that has a `confusion` metric."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not hasattr(pl_module, "confusion"):  # a task of another kind
            return
        counts = pl_module.confusion.compute().cpu().numpy()  # of all ranks
        pl_module.confusion.reset()
        if trainer.is_global_zero:
            names = getattr(trainer.datamodule, "class_names", [*map(str, range(len(counts)))])  # type: ignore[attr-defined]
            draw_confusion(counts, names, self.folder / "confusion.png")


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
