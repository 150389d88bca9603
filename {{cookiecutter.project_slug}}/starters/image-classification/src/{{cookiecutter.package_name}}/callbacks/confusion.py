"""confusion.png: which class was taken for which; of many classes, the most frequent mistakes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib as mpl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

MOST_CLASSES = 30  # of more, a matrix could not be read
MOST_MISTAKES = 30


class Pairs(Metric):
    """The true and the predicted class of each sample, of all ranks.

    A matrix would grow with the square of the classes.
    """

    pairs: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("pairs", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        self.pairs.append(torch.stack([targets, logits.argmax(1)], 1))

    def compute(self) -> Tensor:
        """Return int64 (sample, 2)."""
        return dim_zero_cat(self.pairs)


class ConfusionMatrix(Callback):
    """Draws confusion.png in `folder` when a test ends, if `test_step` returns logits.

    It needs batches of inputs and one class each. For others it draws nothing.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.pairs: Pairs | None = None
        self.num_classes = 0

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        targets = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
        if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
            return  # a task of another kind
        logits = outputs.ndim == 2 and outputs.shape[1] > 1
        if not logits or targets.is_floating_point() or targets.shape != outputs.shape[:1]:
            return
        if self.pairs is None:
            self.pairs, self.num_classes = Pairs().to(outputs.device), outputs.shape[1]
        self.pairs.update(outputs, targets)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.pairs is None:
            return
        pairs = self.pairs.compute().cpu().numpy()  # of all ranks
        self.pairs = None
        if trainer.is_global_zero:
            datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
            names = getattr(datamodule, "class_names", range(self.num_classes))
            pairs = pairs[pairs[:, 0] >= 0]  # -100: left out of the loss, too
            self.folder.mkdir(parents=True, exist_ok=True)
            draw_confusion(pairs, [*map(str, names)], self.folder / "confusion.png")


def draw_confusion(pairs: np.ndarray, class_names: Sequence[str], picture: Path) -> None:
    """Draw which class was taken for which.

    Args:
        pairs: (sample, 2) integers, the true and the predicted class of each sample.
        class_names: a name for each class.
        picture: the PNG to write.
    """
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in class_names]
    figure = Figure(layout="constrained")
    with mpl.rc_context({"text.parse_math": False}):  # names may have a $
        draw = _draw_matrix if len(names) <= MOST_CLASSES else _draw_mistakes
        axes = draw(figure, pairs, names)
        axes.set_title(f"Test set: {(pairs[:, 0] == pairs[:, 1]).mean():.1%} of {len(pairs)} right")
        figure.savefig(picture, dpi=150)


def _draw_mistakes(figure: Figure, pairs: np.ndarray, names: Sequence[str]) -> Axes:
    """Draw the most frequent mistakes, with their share of the true class."""
    wrong, counts = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MOST_MISTAKES]
    figure.set_size_inches(8, 2 + 0.25 * len(most))
    axes = figure.subplots()
    labels = [f"{names[true]} → {names[taken]}" for true, taken in wrong[most]]
    bars = axes.barh(range(len(most)), counts[most])
    shares = [counts[i] / (pairs[:, 0] == wrong[i, 0]).sum() for i in most]
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3)
    axes.set(xlabel="samples, and their share of the true class", ylabel="true → predicted class")
    axes.set_yticks(range(len(most)), labels)
    axes.invert_yaxis()
    axes.margins(0.12, 0.01)
    return axes


def _draw_matrix(figure: Figure, pairs: np.ndarray, names: Sequence[str]) -> Axes:
    """Draw a row for each true class: colour by its share, the counts written in."""
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = 2.5 + 0.45 * len(counts)
    figure.set_size_inches(size + 0.6, size)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if share[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    axes.set(
        xlabel="predicted class",
        ylabel="true class",
        xticks=range(len(counts)),
        yticks=range(len(counts)),
        xticklabels=names,
        yticklabels=names,
    )
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    return axes
