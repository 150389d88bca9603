"""Classification: cross-entropy and accuracy."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer


class ClassificationTask(L.LightningModule):
    """
    Args:
        model: takes inputs (batch, ...) to logits (batch, num_classes).
        optimizer: takes parameters to an optimizer, `_partial_: true` in its YAML.
        scheduler: the `lr_scheduler` dict of Lightning, with a `_partial_` under `scheduler`, which
            gets the optimizer; with `interval: step` also `total_steps`.
        label_smoothing: how much of the target probability is spread over all classes in training.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        scheduler: dict[str, Any],
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing} must be from 0 to 1.")
        self.save_hyperparameters("label_smoothing")
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.label_smoothing = label_smoothing

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        logits = self(inputs)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss)
        acc = accuracy(logits, targets)
        self.log("train/acc", acc, on_step=False, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return class probabilities, (batch, num_classes)."""
        return self(batch[0]).softmax(dim=-1)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        options = {}
        if self.scheduler["interval"] == "step":
            options = {"total_steps": int(self.trainer.estimated_stepping_batches)}
        scheduler = self.scheduler["scheduler"](optimizer, **options)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {**self.scheduler, "scheduler": scheduler},
        }

    def _evaluate(self, batch: list[Tensor], split: str) -> Tensor:
        """Log loss and accuracy; return the logits, which callbacks/confusion.py counts."""
        inputs, targets = batch
        logits = self(inputs)
        metrics = {
            f"{split}/loss": F.cross_entropy(logits, targets),
            f"{split}/acc": accuracy(logits, targets),
        }
        self.log_dict(metrics, prog_bar=True, sync_dist=True)
        return logits


def accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the fraction of samples whose largest logit is that of their class."""
    return (logits.argmax(dim=-1) == targets).float().mean()
