"""Learning to tell classes apart: cross-entropy and accuracy."""

import csv
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from .. import optimization
from ..checkpoint import load_task
from ..data.images import read_images
from ..data.tensors import TensorBatches, take_batch
from ..errors import UserError
from ..sharded import shard

log = logging.getLogger(__name__)


class ClassificationTask(LightningModule):
    """
    Args:
        model: takes inputs (batch, ...) to logits (batch, num_classes).
        optimizer: takes parameters to an optimizer, `_partial_: true` in its YAML.
        scheduler: Lightning's `lr_scheduler` dict; its `scheduler` takes an optimizer.
        num_classes: how many classes there are.
        label_smoothing: how much of the target probability is spread over all classes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        scheduler: dict[str, Any],
        *,
        num_classes: int,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.label_smoothing = label_smoothing
        self.train_acc, self.val_acc, self.test_acc = (Average() for _ in range(3))
        self.val_loss, self.test_loss = Average(), Average()
        # Not validated: that reads every target, and a GPU would have to wait for it.
        self.confusion = MulticlassConfusionMatrix(num_classes, validate_args=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.model(inputs)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self._step(batch, "train")
        # A call of self.log takes as long as a small step, so there are none in between.
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss)
        if self.trainer.is_last_batch:
            self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._step(batch, "val")
        self._log_averages(batch_idx, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        # Not in mixed precision: a result is the same on each device, but for float32's rounding.
        with torch.autocast(self.device.type, enabled=False):
            self._step(batch, "test")
        self._log_averages(batch_idx, "test")

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Class probabilities, float32, (batch, num_classes)."""
        with torch.autocast(self.device.type, enabled=False):
            return self(batch[0]).float().softmax(dim=-1)

    def _step(self, batch: list[Tensor], split: str) -> Tensor:
        inputs, targets = batch
        logits = self(inputs)
        smoothing = self.label_smoothing if split == "train" else 0.0
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        samples = targets.numel()
        getattr(self, f"{split}_acc").update((logits.argmax(dim=1) == targets).sum(), samples)
        if split != "train":
            getattr(self, f"{split}_loss").update(loss.float() * samples, samples)
        if split == "test":
            self.confusion.update(logits, targets)
        return loss

    def _log_averages(self, batch_idx: int, split: str) -> None:
        if batch_idx == 0:  # what is logged is the metric, and its value is asked for at the end
            averages = {name: getattr(self, f"{split}_{name}") for name in ("loss", "acc")}
            for name, average in averages.items():
                self.log(f"{split}/{name}", average, on_step=False, on_epoch=True, prog_bar=True)

    def answer(self, cfg: DictConfig, trainer: Trainer, datamodule: Any, folder: Path) -> Path:
        """What `predict` does: a CSV with a line for each image, its class and the probabilities.

        Args:
            cfg: configs/predict.yaml; `input` is an image, a folder of images, or a .npy array.
            trainer: of the device that computes.
            datamodule: says the size of an image and the names of the classes.
            folder: for the CSV, unless `cfg.output` names a file.
        """
        for needed in ("image_shape", "class_names"):
            if not hasattr(datamodule, needed):
                raise UserError(
                    f"{type(datamodule).__name__} has no {needed}, which predict needs: give it"
                    " one, as data/digits.py has."
                )
        names, inputs = read_images(Path(cfg.input), datamodule.image_shape)
        batches = DataLoader(TensorBatches(inputs), datamodule.batch_size, collate_fn=take_batch)
        probabilities = torch.cat(trainer.predict(self, batches))  # type: ignore[arg-type]
        output = Path(cfg.output or folder / "predictions.csv")
        output.parent.mkdir(parents=True, exist_ok=True)
        classes = datamodule.class_names
        lines = []
        with output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["input", "class", *(f"p({name})" for name in classes)])
            for name, row in zip(names, probabilities.tolist(), strict=True):
                best = max(range(len(classes)), key=row.__getitem__)
                writer.writerow([name, classes[best], *(f"{p:.6f}" for p in row)])
                lines.append(f"  {name}: {classes[best]} ({row[best]:.2f})")
        log.info("\n".join(lines[:10] + [f"  ... {len(lines) - 10} more"] * (len(lines) > 10)))
        return output

    def configure_model(self) -> None:
        shard(self)

    def configure_optimizers(self) -> Any:
        return optimization.configure(self, self.parameters())

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        optimization.clip(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Path) -> LightningModule:  # type: ignore[override]
        """The task of a checkpoint; the file has all that it is built from."""
        return load_task(checkpoint_path)


class Average(Metric):
    """Of a sum over each batch.

    torchmetrics' own look for nan, or count class by class, which takes as long as a small model.
    """

    full_state_update = False
    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "samples"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, total: Tensor, samples: int) -> None:
        self.total += total.detach()
        self.samples += samples

    def compute(self) -> Tensor:
        return self.total / self.samples
