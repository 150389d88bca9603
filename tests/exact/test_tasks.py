"""Kinds of tasks: metrics, logging in many hooks, several losses and optimizers, changes on the way."""

from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAUROC, MulticlassAccuracy

from .harness import Place, Scenario, by_scenario, check
from .tasks import INPUTS, NUM_SAMPLES, TARGETS, NoBatchNorm, Task, loaders


class Metrics(Task):
    """torchmetrics in each usual way."""

    def __init__(self) -> None:
        super().__init__("plateau")
        self.accuracy = MulticlassAccuracy(2)
        self.auroc = BinaryAUROC()
        self.sometimes = MulticlassAccuracy(2)
        self.collection = MetricCollection(
            {"macro": MulticlassAccuracy(2), "micro": MulticlassAccuracy(2, average="micro")},
            prefix="train/",
        )
        self.by_hand = MeanMetric()
        self.val_accuracy = MulticlassAccuracy(2, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.model(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.accuracy(logits, batch[1])
        self.log("train/acc", self.accuracy, on_step=False, on_epoch=True)
        self.auroc.update(logits[:, 1].detach(), batch[1])
        self.log("train/auroc", self.auroc, on_step=False, on_epoch=True)
        self.sometimes.update(logits, batch[1])
        if batch_idx == 1:
            self.log("train/sometimes", self.sometimes, on_step=False, on_epoch=True)
        self.collection.update(logits, batch[1])
        self.log_dict(self.collection, on_step=False, on_epoch=True)
        self.by_hand.update(loss.detach())
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/by_hand", self.by_hand.compute())
        self.by_hand.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.model(batch[0])
        self.val_accuracy.update(logits, batch[1])
        self.log("val/acc", self.val_accuracy)
        self.log("val/loss", F.cross_entropy(logits, batch[1]), prog_bar=True)


class LogsEverywhere(Task):
    """Logs in many hooks, some of them several times a batch."""

    def on_train_epoch_start(self) -> None:
        self.log("epoch start", 3.0)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.log("batch start", batch[0].mean(), on_step=False, on_epoch=True)

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        loss = self.loss(batch[0])
        for k in range(3):
            self.log("many", loss * (k + 0.3), on_step=False, on_epoch=True, batch_size=3 + k)
        self.log("sum", loss, on_step=False, on_epoch=True, reduce_fx="sum")
        self.log("min", loss, on_step=True, on_epoch=True, reduce_fx="min")
        if batch_idx % 3 == 1:
            self.log("sometimes", loss, on_step=True, on_epoch=True)
        self.log_dict({"a": loss, "b": 2 * loss}, on_epoch=True, on_step=False, sync_dist=True)
        return {"loss": loss, "more": 1}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        gradients = [one.grad for one in self.parameters() if one.grad is not None]
        self.log("norm", nn.utils.get_total_norm(gradients), on_epoch=True, on_step=False)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("batch end", outputs["loss"], on_epoch=True, on_step=True)

    def on_train_epoch_end(self) -> None:
        self.log("epoch end", np.random.rand())
        self.logger.log_metrics({"direct": np.random.rand()}, self.global_step)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch[0]), on_step=True, on_epoch=True)
        self.log("val/sum", batch[0].sum(), reduce_fx="sum")

    def on_validation_epoch_end(self) -> None:
        self.log("val/end", torch.rand(()))


class Dictionaries(Dataset[Any]):
    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": {"deep": INPUTS[index]}, "y": TARGETS[index], "name": str(index)}


class DictTask(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch["x"]["deep"])
        self.log("loss", loss, on_epoch=True, batch_size=len(batch["y"]))
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        loss = self.loss(batch["x"]["deep"]) + torch.rand(())
        self.log("val/loss", loss, on_step=True, on_epoch=True, batch_size=len(batch["y"]))
        mean = batch["y"].float().mean()
        self.log(f"val/own{dataloader_idx}", mean, add_dataloader_idx=False)


def dictionaries() -> dict[str, Any]:
    few = Subset(Dictionaries(), range(5))
    val = [DataLoader(Dictionaries(), 16), DataLoader(Dictionaries(), 8), DataLoader(few, 2)]
    train = DataLoader(Dictionaries(), 8, shuffle=True)
    return {"train_dataloaders": train, "val_dataloaders": val}


class GAN(Task):
    """Two optimizers by hand; the generator's gradients may be accumulated."""

    def __init__(self, accumulate: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.accumulate = accumulate
        del self.model
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))

    def judge(self, images: Tensor, target: float) -> Tensor:
        logits = self.discriminator(images)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        generator, discriminator = self.optimizers()
        self.toggle_optimizer(discriminator)
        fake = self.generator(torch.randn(len(batch[0]), 3))
        loss = self.judge(batch[0], 1) + self.judge(fake.detach(), 0)
        self.log("discriminator", loss, on_epoch=True, prog_bar=True)
        discriminator.zero_grad()
        self.manual_backward(loss)
        discriminator.step()
        self.untoggle_optimizer(discriminator)
        self.toggle_optimizer(generator)
        loss = self.judge(self.generator(torch.randn(len(batch[0]), 3)), 1)
        self.log("generator", loss)
        self.manual_backward(loss / self.accumulate)
        if (batch_idx + 1) % self.accumulate == 0:
            self.clip_gradients(generator, 0.5)
            generator.step()
            generator.zero_grad()
        self.untoggle_optimizer(generator)
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.judge(self.generator(torch.randn(4, 3)), 1))

    def configure_optimizers(self) -> Any:
        a = torch.optim.Adam(self.generator.parameters(), 1e-2)
        b = torch.optim.SGD(self.discriminator.parameters(), 1e-2, momentum=0.9)
        return [a, b], [lr_scheduler.ExponentialLR(a, 0.9), lr_scheduler.ExponentialLR(b, 0.8)]


class LBFGS(NoBatchNorm):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=4, history_size=5)


class SkipsSteps(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx)


class SkipsTheRest(Task):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.current_epoch == 1 and batch_idx == 4 else None


class AugmentsOnTheDevice(Task):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + torch.randn_like(batch[0]) * np.random.rand(), batch[1]]


class FreezesOnTheWay(Task):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))

    def loss(self, inputs: Tensor) -> Tensor:
        return self.model(self.base(inputs)).square().mean()

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.base.eval()
            self.base.requires_grad_(False)


class TwoSchedulers(Task):
    def configure_optimizers(self) -> Any:
        slow = {"params": self.model[1:].parameters()}
        groups = [{"params": self.model[0].parameters(), "lr": 0.1}, slow]
        sgd = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
        linear = {"scheduler": lr_scheduler.LinearLR(sgd, total_iters=7), "interval": "step"}
        return [sgd], [linear, {"scheduler": lr_scheduler.StepLR(sgd, 1), "interval": "epoch"}]


class BringsItsOwn(Task):
    """Loaders and callbacks."""

    def train_dataloader(self) -> Any:
        return loaders()["train_dataloaders"]

    def val_dataloader(self) -> Any:
        return loaders()["val_dataloaders"]

    def configure_callbacks(self) -> Any:
        stop = EarlyStopping("val/loss", patience=1, min_delta=10.0)
        return [stop, ModelCheckpoint(monitor="val/loss")]


class Data(lightning.LightningDataModule):
    def train_dataloader(self) -> Any:
        return loaders()["train_dataloaders"]

    def val_dataloader(self) -> Any:
        return loaders()["val_dataloaders"]


class HasState(Task):
    """In a buffer, and with on_save_checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(()))
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.average = 0.9 * self.average + 0.1 * loss.detach()
        self.steps += 1
        self.log("steps", float(self.steps))
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["steps"] = self.steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps = checkpoint["steps"]


class FetchesItself(NoBatchNorm):
    """Gets the iterator in place of a batch."""

    def training_step(self, dataloader_iter: Any) -> Tensor:
        batch, _, _ = next(dataloader_iter)
        loss = self.loss(batch[0])
        self.log("loss", loss, on_epoch=True, batch_size=8)
        return loss


def keep_best(folder: Path) -> list[Any]:
    return [
        ModelCheckpoint(folder / "kept", monitor="val/acc", mode="max"),
        EarlyStopping("val/acc", mode="max", patience=3),
    ]


def keep_second(folder: Path) -> list[Any]:
    return [ModelCheckpoint(folder / "kept", monitor="val/loss_epoch/dataloader_idx_1")]


SCENARIOS = {
    "torchmetrics": Scenario(Metrics, loaders),
    "torchmetrics, the best": Scenario(Metrics, loaders, keep_best, {"val_check_interval": 3}),
    "logs everywhere": Scenario(LogsEverywhere, loaders, trainer={"val_check_interval": 2}),
    "logs everywhere, accumulated": Scenario(
        LogsEverywhere, loaders, trainer={"accumulate_grad_batches": 2}
    ),
    "dictionaries, 3 validation loaders": Scenario(
        DictTask, dictionaries, keep_second, {"val_check_interval": 0.5}
    ),
    "GAN": Scenario(GAN, loaders),
    "GAN, accumulated by hand": Scenario(
        lambda: GAN(accumulate=3), loaders, trainer={"val_check_interval": 3}
    ),
    "GAN, by steps": Scenario(GAN, loaders, trainer={"max_steps": 30, "max_epochs": -1}),
    "LBFGS": Scenario(LBFGS, loaders),
    "None for some steps": Scenario(SkipsSteps, loaders),
    "None for some steps, accumulated": Scenario(
        SkipsSteps, loaders, trainer={"accumulate_grad_batches": 2}
    ),
    "skips the rest of an epoch": Scenario(SkipsTheRest, loaders),
    "augments on the device": Scenario(AugmentsOnTheDevice, loaders),
    "augments on the device, workers": Scenario(
        AugmentsOnTheDevice, lambda: loaders(num_workers=2)
    ),
    "freezes on the way": Scenario(FreezesOnTheWay, loaders),
    "two schedulers": Scenario(TwoSchedulers, loaders, lambda f: [LearningRateMonitor()]),
    "brings its own": Scenario(BringsItsOwn, dict, trainer={"max_epochs": 5}),
    "datamodule": Scenario(Task, lambda: {"datamodule": Data()}),
    "float64": Scenario(Task, loaders, trainer={"precision": "64-true"}),
    "bfloat16": Scenario(Task, loaders, trainer={"precision": "bf16-mixed"}),
    "has a state": Scenario(HasState, loaders),
    "fetches itself": Scenario(FetchesItself, loaders),
}
QUICK = {
    "torchmetrics, the best",
    "logs everywhere",
    "dictionaries, 3 validation loaders",
    "GAN, accumulated by hand",
    "LBFGS",
    "freezes on the way",
}


@by_scenario(SCENARIOS, QUICK)
def test_resumes_exactly(tmp_path: Path, name: str, places: list[Place], fast: bool) -> None:
    check(tmp_path, SCENARIOS[name], places, fast=fast)
