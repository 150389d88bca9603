"""engine/speed makes vanilla tasks faster and changes nothing else: the same hooks, bits and rows."""

import copy
import importlib
import pickle
import sys
from collections import UserList
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    LambdaCallback,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torchmetrics import Accuracy

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Lightning's advice: workers, loggers
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]


@pytest.fixture(scope="session")
def speed(project: Path) -> Iterator[Callable[[str], Any]]:
    """A module of the project's engine/speed by its name."""
    package = project.name.replace("-", "_")
    sys.path[:0] = [str(project / "src"), str(project.parent)]
    yield lambda name: importlib.import_module(f"{package}.engine.speed.{name}")
    del sys.path[:2]


# Tasks and data, as Lightning's documentation writes them.


class Task(LightningModule):
    """Logs in every way and at every place."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.model = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3)
        )
        self.accuracy = Accuracy("multiclass", num_classes=3)
        self.val_accuracy = Accuracy("multiclass", num_classes=3)

    def loss(self, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        self.logits = self.model(inputs)
        return F.cross_entropy(self.logits, targets)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        self.log("train/acc", (self.logits.argmax(1) == batch[1]).float().mean(), on_epoch=True)
        self.log("train/mean", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val/loss", self.loss(batch), prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> Any:
        return DataLoader(data(44), batch_size=8, shuffle=True)  # 6 batches, the last one smaller

    def val_dataloader(self) -> Any:
        return DataLoader(data(20), batch_size=8)


def data(samples: int) -> TensorDataset:
    source = torch.Generator().manual_seed(samples)
    inputs = torch.randn(samples, 4, generator=source)
    return TensorDataset(inputs, inputs[:, :3].argmax(1))


class LogsEverything(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        inputs, targets = batch
        scale = torch.tensor(float(batch_idx))
        self.log("scale", scale, on_step=True, on_epoch=True)
        scale += 100  # after it was logged
        self.log_dict({"a": loss * 2, "b": 0.1 * batch_idx, "c": batch_idx}, on_epoch=True)
        self.log("weighted", loss, on_epoch=True, batch_size=batch_idx + 1)
        for reduce_fx in ("max", "min", "sum", "mean"):
            self.log(reduce_fx, inputs.mean(), on_epoch=True, reduce_fx=reduce_fx)
        for dtype in (torch.float64, torch.bfloat16, torch.int64):
            self.log(str(dtype), inputs.abs().sum().to(dtype), on_epoch=True, prog_bar=True)
        self.log("one", inputs[:1, 0], on_epoch=True)
        self.log("huge", 1e300, on_epoch=True)
        self.log("nan", float("nan") if batch_idx == 2 else 1.5, on_epoch=True)
        if batch_idx % 2:
            self.log("odd", loss, on_epoch=True, prog_bar=True)
        if self.trainer.current_epoch != 1:
            self.log("not_second", loss, on_step=True, on_epoch=True)
        self.accuracy(self.logits, targets)
        self.log("metric", self.accuracy, on_step=True, on_epoch=True, prog_bar=True)
        self.log("hidden", loss, logger=False, on_epoch=True)
        return {"loss": loss, "extra": loss.detach() * 2}

    def on_train_epoch_start(self) -> None:
        self.log("start", float(self.trainer.current_epoch))

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.log("zero", 0.5)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("lr", optimizer.param_groups[0]["lr"], on_epoch=True)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("train/loss_again", outputs["extra"], on_epoch=True)
        self.log("scale", outputs["loss"], on_step=False, on_epoch=True)

    def on_train_epoch_end(self) -> None:
        self.log("end", float(self.trainer.current_epoch))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        super().validation_step(batch, batch_idx)
        loss = self.loss(batch)
        self.log("val/each", loss, on_step=True, on_epoch=True)
        self.log("val/number", 0.3, prog_bar=True)
        if batch_idx == 1:
            self.log("val/second", loss, on_step=True)
        self.val_accuracy(self.logits, batch[1])
        self.log("val/metric", self.val_accuracy)
        return loss

    def on_validation_epoch_end(self) -> None:
        self.log("val/end", 1.0)


class LogsInOverrides(Task):
    def backward(self, loss: Any, *args: Any) -> None:
        loss.backward()
        self.log("in_backward", loss)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        self.log("in_zero_grad", float(batch_idx))
        optimizer.zero_grad()

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.log("norm", torch.nn.utils.get_total_norm([p.grad for p in self.parameters()]))
        self.clip_gradients(optimizer, 0.1, "norm")


class Accumulated(Task):
    """Without the index of the batch."""

    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return super().training_step(batch, 0)

    def validation_step(self, batch: Any) -> Any:  # type: ignore[override]
        return super().validation_step(batch, 0)


class SkipsSteps(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return None if batch_idx == 2 else loss


class Scheduled(Task):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        step = lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
        epoch = lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return [optimizer], [
            {"scheduler": step, "interval": "step", "frequency": 2},
            epoch,
            {"scheduler": plateau, "monitor": "val/loss"},
        ]


class SecondOrder(Task):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Manual(Task):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()  # type: ignore[union-attr]
        self.manual_backward(loss)
        self.optimizers().step()  # type: ignore[union-attr]


class StepsItself(Task):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.log("stepped", 1.0)


class StopsEpochs(Task):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 4 else None


class TakesTheLoader(Task):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        batch, *_ = next(dataloader_iter)
        loss = self.loss(batch)
        self.log("train/loss", loss, batch_size=len(batch[0]))
        return loss


class MovesBatches(Task):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] + 1, batch[1]]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [batch[0] * 2, batch[1]]


class Ready(UserList[Any]):
    """A loader that has its batches ready. (A list would be a list of loaders.)"""


class ChangesItsBatch(Task):
    """Puts something into a batch that the loader yields again."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch["inputs"] = batch["inputs"] + 1
        return super().training_step([batch["inputs"], batch["targets"]], batch_idx)

    def train_dataloader(self) -> Any:
        return Ready([{"inputs": x, "targets": y} for x, y in super().train_dataloader()])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(data(44))


class Streams(Task):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream(), batch_size=8)


class SeveralLoaders(LogsEverything):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        super().validation_step(batch, batch_idx)

    def val_dataloader(self) -> Any:
        return [DataLoader(data(20), batch_size=8), DataLoader(data(12), batch_size=4)]


class AccumulatesLater(Callback):
    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        trainer.accumulate_grad_batches = 2 if args[-1] > 1 else 1


class JoinsLater(Callback):
    """Adds a callback in the middle of the first epoch."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if args[-1] == 2 and trainer.current_epoch == 0:
            trainer.callbacks.append(Witness(self.notes, "on_train_batch_end"))  # type: ignore[attr-defined]

    def __init__(self) -> None:
        self.notes: list[Any] = []


class Counter:
    """Callable, but not a function."""

    calls = 0

    def __call__(self, *args: Any) -> None:
        self.calls += 1


# What a run leaves.

HOOKS = [name for name in vars(Callback) if name.startswith("on_") and "predict" not in name]


def plain(value: Any) -> Any:
    """The value to the last bit, as something that compares."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.requires_grad, repr(value.detach().double().tolist())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, int | float | str | None):
        return repr(value)
    return type(value).__name__.removeprefix("Lightning")


class Witness(Callback):
    """Notes each hook, its arguments and what the trainer says at that time."""

    def __init__(self, notes: list[Any], *hooks: str) -> None:
        for hook in hooks or HOOKS:
            setattr(self, hook, lambda *args, hook=hook: notes.append(self.note(hook, *args)))

    def note(self, hook: str, trainer: Trainer, task: Any, *args: Any) -> Any:
        return (
            hook,
            task._current_fx_name,
            (trainer.global_step, trainer.current_epoch, trainer.is_last_batch),
            plain(args) if "checkpoint" not in hook else None,
            plain(trainer.callback_metrics),
            plain(trainer.logged_metrics),
            plain(trainer.progress_bar_metrics),
            [weight.grad is not None for weight in task.parameters()],
        )


class Rows(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.rows.append((step, plain(metrics)))


def fit(
    speed: Any, task: Any, options: dict[str, Any], *, fast: tuple[str, ...], watch: Any
) -> dict[str, Any]:
    """Fit a task and return all that can be seen of it."""
    seed_everything(3, verbose=False)
    task, rows, notes = task(), Rows(), []
    callbacks = [Witness(notes, *watch)] if watch is not None else []
    callbacks += [make() for make in options.get("callbacks", ())]
    trainer = Trainer(
        **{
            "max_epochs": 3,
            "accelerator": "cpu",
            "logger": rows,
            "log_every_n_steps": 2,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
            "callbacks": callbacks,
        }
    )
    if "log" in fast:
        speed("fast_log").install(task)
    if "loop" in fast:
        speed("fast_loop").install(trainer)
    trainer.fit(task)
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    return {
        "notes": notes,
        "rows": rows.rows,
        "metrics": plain(
            [trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics]
        ),
        "loops": checkpoint["loops"],
        "optimizers": plain(checkpoint["optimizer_states"]),
        "weights": plain(checkpoint["state_dict"]),
        "callbacks": [one.notes for one in trainer.callbacks if isinstance(one, JoinsLater)],  # type: ignore[attr-defined]
    }


CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (Task, {}),
    "logs everything": (LogsEverything, {}),
    "logs everything, at every step": (LogsEverything, {"log_every_n_steps": 1}),
    "logs everything, accumulated": (LogsEverything, {"accumulate_grad_batches": 4}),
    "logs in overrides": (LogsInOverrides, {}),
    "several loaders": (SeveralLoaders, {}),
    "clipped": (Task, {"gradient_clip_val": 0.1}),
    "clipped by value": (
        Task,
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value", "precision": "bf16-mixed"},
    ),
    "bf16-true": (LogsEverything, {"precision": "bf16-true"}),
    "64-true": (LogsEverything, {"precision": "64-true"}),
    "accumulated": (Accumulated, {"accumulate_grad_batches": 4}),
    "accumulates later": (Task, {"callbacks": [AccumulatesLater]}),
    "accumulates by epoch": (
        Task,
        {"callbacks": [lambda: GradientAccumulationScheduler({0: 1, 1: 4})]},
    ),
    "joined by a callback": (Task, {"callbacks": [JoinsLater]}),
    "scheduled": (Scheduled, {"accumulate_grad_batches": 2}),
    "validates in the epoch": (LogsEverything, {"val_check_interval": 1}),
    "validates across epochs": (Scheduled, {"val_check_interval": 4, "check_val_every_n_epoch": None}),
    "validates every second epoch": (LogsEverything, {"check_val_every_n_epoch": 2}),
    "stops early": (
        LogsEverything,
        {"max_epochs": 9, "callbacks": [lambda: EarlyStopping("val/loss", patience=0, min_delta=1)]},
    ),
    "stops at a step": (LogsEverything, {"max_steps": 8, "limit_train_batches": 5}),
    "second order": (SecondOrder, {}),
    "skips steps": (SkipsSteps, {"accumulate_grad_batches": 2}),
    "by hand": (Manual, {}),
    "steps itself": (StepsItself, {}),
    "stops epochs": (StopsEpochs, {}),
    "takes the loader": (TakesTheLoader, {}),
    "moves batches": (MovesBatches, {}),
    "changes its batch": (ChangesItsBatch, {}),
    "streams": (Streams, {"val_check_interval": 5}),
    "averages": (Task, {"callbacks": [lambda: StochasticWeightAveraging(0.01, 1)]}),
    "moving average": (LogsEverything, {"callbacks": [WeightAveraging]}),
    "fast dev run": (LogsEverything, {"fast_dev_run": 2}),
    "overfits": (Task, {"overfit_batches": 2}),
    "profiled": (Task, {"profiler": "simple"}),
}


@pytest.mark.parametrize("fast", [("log",), ("loop",), ("log", "loop")], ids="+".join)
@pytest.mark.parametrize("case", CASES)
def test_a_fast_run_leaves_what_lightnings_own_leaves(
    speed: Any, case: str, fast: tuple[str, ...]
) -> None:
    task, options = CASES[case]
    for watch in ([], None):
        stock = fit(speed, task, options, fast=(), watch=watch)
        mine = fit(speed, task, options, fast=fast, watch=watch)
        for part in stock:
            assert mine[part] == stock[part], part
