"""confusion.png: which class was taken for which."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class ConfusionMatrix(Callback):
    """Draws confusion.png in `folder` when a test ends, if `test_step` returns logits.

    It needs batches of inputs and one class each. For others it draws nothing.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.counts: MulticlassConfusionMatrix | None = None

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
        if self.counts is None:
            # Not validated: that reads every target, and a GPU would have to wait for it.
            counts = MulticlassConfusionMatrix(outputs.shape[1], validate_args=False)
            self.counts = counts.to(outputs.device)
        self.counts.update(outputs, targets)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.counts is None:
            return
        counts = self.counts.compute().cpu().numpy()  # of all ranks
        self.counts = None
        if trainer.is_global_zero:
            datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
            names = getattr(datamodule, "class_names", [*map(str, range(len(counts)))])
            draw_confusion(counts, names, self.folder / "confusion.png")


def draw_confusion(counts: np.ndarray, class_names: Sequence[str], picture: Path) -> None:
    """Draw which class was taken for which: colour by row share, the counts written in.

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
