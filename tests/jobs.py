"""Jobs as users of Lightning write them, for faults.py: `data._target_=jobs.DigitsInWorkers`."""

import importlib
import os
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset


def __getattr__(name: str) -> Any:
    """Make a class on top of the project's own, whose package PACKAGE names."""
    package = os.environ["PACKAGE"]
    if name == "DigitsInWorkers":
        return in_workers(importlib.import_module(f"{package}.data.digits").DigitsDataModule)
    if name == "TextInWorkers":
        return in_workers(importlib.import_module(f"{package}.data.text").TextDataModule)
    raise AttributeError(name)


def in_workers(base: Any) -> Any:
    class InWorkers(base):
        """The same data, loaded by two processes."""

        def train_dataloader(self) -> DataLoader[Any]:
            dataset = super().train_dataloader().dataset
            return DataLoader(dataset, self.batch_size, shuffle=True, drop_last=True, num_workers=2)

    return InWorkers


def blobs(size: int, seed: int) -> TensorDataset:
    """Points around four centres."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 4, (size,), generator=generator)
    centres = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    return TensorDataset(centres[targets] + torch.randn(size, 16, generator=generator), targets)


class Blobs(L.LightningDataModule):
    def __init__(self, batch_size: int = 16) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> Any:
        return DataLoader(blobs(164, 1), self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(blobs(50, 2), self.hparams.batch_size)

    def test_dataloader(self) -> Any:
        return DataLoader(blobs(50, 3), self.hparams.batch_size)


class Classifier(L.LightningModule):
    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        trained = filter(lambda p: p.requires_grad, self.parameters())
        optimizer = torch.optim.AdamW(trained, lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.7)
        return [optimizer], [scheduler]


class Pictures(Dataset[dict[str, Tensor]]):
    """Dict samples, of which the training ones are augmented."""

    def __init__(self, data: TensorDataset, *, augment: bool = False) -> None:
        self.data, self.augment = data, augment

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.data[index]
        if self.augment:
            x = x + 0.3 * torch.randn(16)
            x = x.flip(0) if torch.rand(()) < 0.2 else x
        return {"image": x, "label": y}


class DictBlobs(Blobs):
    def train_dataloader(self) -> Any:
        data = Pictures(blobs(164, 1), augment=True)
        return DataLoader(data, self.hparams.batch_size, shuffle=True, num_workers=2)

    def val_dataloader(self) -> Any:
        return DataLoader(Pictures(blobs(50, 2)), self.hparams.batch_size)

    def test_dataloader(self) -> Any:
        return DataLoader(Pictures(blobs(50, 3)), self.hparams.batch_size)


class DictClassifier(Classifier):
    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch["image"]), batch["label"])


class Lines(IterableDataset[Any]):
    """A stream, shuffled within a buffer as streams are."""

    def __iter__(self) -> Iterator[Any]:
        buffer: list[Any] = []
        for sample in blobs(164, 1):
            buffer.append(sample)
            if len(buffer) == 40:
                yield buffer.pop(int(torch.randint(40, ())))
        yield from buffer


class StreamedBlobs(Blobs):
    def train_dataloader(self) -> Any:
        return DataLoader(Lines(), self.hparams.batch_size)


class GAN(L.LightningModule):
    """As in Lightning's documentation: two optimizers, by hand."""

    def __init__(self, lr: float = 0.005) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16))
        self.discriminator = nn.Sequential(nn.Linear(16, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def judged(self, x: Tensor, real: bool) -> Tensor:
        logits = self.discriminator(x)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        real, _ = batch
        g_opt, d_opt = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4, device=self.device))
        d_loss = self.judged(real, True) + self.judged(fake.detach(), False)
        d_opt.zero_grad()
        self.manual_backward(d_loss)
        d_opt.step()
        g_loss = self.judged(fake, True)
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)
        return g_loss.detach()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        noise = torch.randn(16, 4, device=self.device)
        self.log("val/loss", self.judged(self.generator(noise), True))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.judged(batch[0], True))

    def configure_optimizers(self) -> Any:
        g = torch.optim.Adam(self.generator.parameters(), self.hparams.lr, betas=(0.5, 0.999))
        d = torch.optim.Adam(self.discriminator.parameters(), self.hparams.lr, betas=(0.5, 0.999))
        return [g, d], []


def unfreeze() -> BackboneFinetuning:
    return BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.5)


class TwoValidations(Blobs):
    def val_dataloader(self) -> Any:
        return [super().val_dataloader(), DataLoader(blobs(50, 4), self.hparams.batch_size)]
