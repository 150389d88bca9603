"""Regression, in the ways of Lightning's documentation."""

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, MetricTracker

from .data import points


class Regression(L.LightningModule):
    def __init__(self, lr: float = 0.01, width: int = 16, seed: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(8, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 1)
        )
        self.example_input_array = torch.zeros(1, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("test/loss", self.loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class Given(Regression):
    """Gets its parts from the config and saves them all, as the best-known template does."""

    def __init__(self, net: nn.Module, optimizer: Any, scheduler: Any, lr: float = 0.01) -> None:
        super().__init__(lr)
        self.save_hyperparameters(logger=False)
        self.net = net

    def configure_optimizers(self) -> Any:
        optimizer = self.hparams.optimizer(params=self.parameters())
        scheduler = self.hparams.scheduler(optimizer=optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "val/loss", "frequency": 1},
        }


class NumpySchedule(Regression):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / 30))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Tracked(Regression):
    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)
        self.tracker = MetricTracker(MeanSquaredError())

    def on_validation_epoch_start(self) -> None:
        self.tracker.increment()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.tracker.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val/best", float(self.tracker.best_metric()))


class Lazy(Regression):
    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)
        self.net = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(1))


class DictRegression(Regression):
    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(self(batch["x"]), batch["y"])


class PartsRegression(Regression):
    """Lightning cannot know the size of such a batch: `self.log` is told."""

    def loss(self, batch: Any) -> Tensor:
        return F.mse_loss(self(batch.x), batch.y)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch.x)

    def log(self, name: str, value: Any, **options: Any) -> None:
        super().log(name, value, **options, batch_size=8)


class NoTest(L.LightningModule):
    """A task with a training step and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class LossDict(Regression):
    """A dict from training_step, values of some steps only, None to skip a batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 3:
            return None
        loss = self.loss(batch)
        if batch_idx % 2:
            self.log("train/odd", loss)
        self.log_dict({"train/loss": loss, "train/double": 2 * loss}, on_step=True, on_epoch=True)
        return {"loss": loss, "size": len(batch[0])}


class Several(Regression):
    """Several validation loaders."""

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.log("test/loss", self.loss(batch))


class Zipped(Regression):
    """Batches of a CombinedLoader."""

    def training_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        parts = batch.values() if isinstance(batch, dict) else [batch]
        loss = torch.stack([self.loss(part) for part in parts if part is not None]).sum()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        name = "val/other" if dataloader_idx else "val/loss"
        self.log(name, self.loss(batch), add_dataloader_idx=False)


class Metrics(Regression):
    """torchmetrics objects, alone and in a collection."""

    def __init__(self) -> None:
        super().__init__()
        metrics = MetricCollection([MeanSquaredError(), MeanAbsoluteError()])
        self.train_metrics = metrics.clone(prefix="train/")
        self.val_metrics = metrics.clone(prefix="val/")
        self.error = MeanAbsoluteError()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        predicted = self(x)
        self.log_dict(self.train_metrics(predicted, y))
        self.error(predicted, y)
        self.log("train/error", self.error, on_step=True, on_epoch=True)
        return F.mse_loss(predicted, y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.val_metrics.update(self(x), y)
        self.log("val/loss", self.loss(batch))

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.val_metrics.compute())
        self.val_metrics.reset()


class Epochs(Regression):
    """Outputs of the steps, gathered for the end of a validation."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.outputs.append(loss)
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", torch.stack(self.outputs).mean())
        self.outputs.clear()


class Configured(Regression):
    """Layers made in configure_model."""

    def __init__(self) -> None:
        super().__init__()
        self.head = None
        self.example_input_array = None

    def configure_model(self) -> None:
        if self.head is None:
            self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))  # type: ignore[misc]


class WithLBFGS(Regression):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3)


class WarmUp(Regression):
    """The hooks around an optimizer step."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        optimizer.step(closure=closure)
        scale = min(1.0, (self.trainer.global_step + 1) / 15)
        for group in optimizer.param_groups:
            group["lr"] = scale * self.hparams.lr

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=True)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any, gradient_clip_algorithm: Any
    ) -> None:
        if self.current_epoch:
            self.clip_gradients(optimizer, 0.5, "norm")

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("grad_norm", sum(p.grad.norm() for p in self.parameters()))


class OneCycle(Regression):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Plateau(Regression):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.2)
        config = {"scheduler": scheduler, "monitor": "val/loss", "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": config}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step(metric)


class Remembers(Regression):
    """State of its own in the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0.0
        self.register_buffer("average", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.total += float(loss)
        self.average.lerp_(loss.detach(), 0.1)
        self.log("train/total", self.total)
        return loss

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["total"] = self.total

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.total = checkpoint["total"]


class Gradients(Regression):
    """Gradients in validation: Trainer(inference_mode=False)."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        with torch.enable_grad():
            x = batch[0].clone().requires_grad_()
            (slope,) = torch.autograd.grad(self(x).sum(), x)
        self.log("val/slope", slope.norm())
        self.log("val/loss", self.loss(batch))


class Stops(Regression):
    """Stops by itself: the rest of an epoch by -1, the training by should_stop."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.current_epoch == 1 and batch_idx == 5 else None

    def on_train_epoch_end(self) -> None:
        if self.current_epoch == 2:
            self.trainer.should_stop = True


class OwnLoaders(Regression):
    """Loaders of the task, and no datamodule."""

    def train_dataloader(self) -> Any:
        return DataLoader(points(56), 8, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(points(16), 8)

    def test_dataloader(self) -> Any:
        return DataLoader(points(16), 8)


class OwnCallbacks(Regression):
    def configure_callbacks(self) -> Any:
        return [
            EarlyStopping("val/loss", patience=1, min_delta=0.5, check_on_train_epoch_end=False)
        ]


class Pictures(Regression):
    """Uses the logger's own object, as with TensorBoard."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))
        if batch_idx == 0 and not self.trainer.sanity_checking:
            picture = torch.rand(3, 4, 4)
            self.logger.experiment.add_image("picture", picture, self.global_step)

    def on_train_start(self) -> None:
        self.logger.log_hyperparams(dict(self.hparams), {"hp/metric": 0.0})


class Iterator(Regression):
    """training_step(dataloader_iter): the step fetches its batches."""

    def training_step(self, dataloader_iter: Any) -> Tensor:
        batch, _, _ = next(dataloader_iter)  # which Lightning does not move to the device
        loss = self.loss([part.to(self.device) for part in batch])
        self.log("train/loss", loss, batch_size=8)
        return loss


class Rare(Regression):
    """A metric of every second epoch."""

    def on_validation_epoch_end(self) -> None:
        if self.current_epoch % 2 == 0:
            self.log("val/rare", -float(self.current_epoch))


class Late(Regression):
    """A metric that is logged first after two epochs."""

    def on_validation_epoch_end(self) -> None:
        if self.current_epoch >= 2:
            self.log("val/late", -float(self.current_epoch))


class Fails(Regression):
    def on_train_epoch_end(self) -> None:
        raise ZeroDivisionError
