"""The task and the data that most scenarios share, written as a user of Lightning writes them."""

import random
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, TensorDataset

NUM_SAMPLES = 52  # 7 batches of 8, the last one of 4
INPUTS = torch.randn(NUM_SAMPLES, 4, generator=torch.Generator().manual_seed(9))
TARGETS = (INPUTS.sum(1) > 0).long()


class Task(LightningModule):
    """Draws from each source of random numbers, and logs in the usual ways."""

    def __init__(self, schedule: str | None = "step", **options: Any) -> None:
        super().__init__()
        self.schedule, self.options = schedule, options
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
        )

    def loss(self, inputs: Tensor) -> Tensor:
        return self.model(inputs).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch[0]) * (1 + 0.1 * random.random() + 0.1 * np.random.rand())
        self.log("train/loss", loss)
        self.log("train/mean", loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/both", loss, on_step=True, on_epoch=True)
        self.log("train/max", loss, on_step=False, on_epoch=True, reduce_fx="max")
        if batch_idx == 0:
            self.log("train/first", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val/loss", self.loss(batch[0]) + torch.rand(()))
        self.log("val/sum", batch[0].sum(), on_step=True, on_epoch=False)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        if self.schedule is None:
            return optimizer
        if self.schedule == "plateau":
            plateau = lr_scheduler.ReduceLROnPlateau(
                optimizer, patience=0, factor=0.5, threshold=0.3
            )
            how = {"scheduler": plateau, "monitor": "val/loss"}
        elif self.schedule == "one cycle":
            steps = int(self.trainer.estimated_stepping_batches)
            cycle = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
            how = {"scheduler": cycle, "interval": "step"}
        else:
            cosine = lr_scheduler.CosineAnnealingLR(optimizer, 20)
            how = {"scheduler": cosine, "interval": self.schedule}
        return {"optimizer": optimizer, "lr_scheduler": how | self.options}


class NoBatchNorm(Task):
    def __init__(self, schedule: str | None = "step", **options: Any) -> None:
        super().__init__(schedule, **options)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))


def samples() -> TensorDataset:
    return TensorDataset(INPUTS, TARGETS)


class Augmented(Dataset[Any]):
    """Each sample is random, from each source."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(4) * random.random() + np.random.rand()
        return INPUTS[index] + noise, TARGETS[index]


def loaders(**options: Any) -> dict[str, Any]:
    return {
        "train_dataloaders": DataLoader(samples(), 8, shuffle=True, **options),
        "val_dataloaders": DataLoader(samples(), 16, shuffle=True),
    }


def trained_on(loader: Any) -> dict[str, Any]:
    return {"train_dataloaders": loader, "val_dataloaders": DataLoader(samples(), 16)}
