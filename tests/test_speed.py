"""engine/speed makes vanilla tasks faster and changes nothing else: the same hooks, bits and rows."""

import copy
import importlib
import pickle
from collections import UserList
from collections.abc import Callable, Iterator
from functools import cache, partial, wraps
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
def speed(project: Path) -> Callable[[str], Any]:
    """A module of the project's engine/speed by its name."""
    engine = project.name.replace("-", "_") + ".engine"
    return lambda name: importlib.import_module(f"{engine}.speed.{name}")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        return DataLoader(data(28), batch_size=8, shuffle=True)  # 4 batches, the last one smaller

    def val_dataloader(self) -> Any:
        return DataLoader(data(12), batch_size=8)


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
        return -1 if batch_idx == 2 else None


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
        return iter(data(28))


class Streams(Task):
    def train_dataloader(self) -> Any:
        return DataLoader(Stream(), batch_size=8)


class SeveralLoaders(LogsEverything):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        super().validation_step(batch, batch_idx)

    def val_dataloader(self) -> Any:
        return [DataLoader(data(12), batch_size=8), DataLoader(data(6), batch_size=4)]


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

HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_"))


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
        for hook in hooks:
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


def quiet(**options: Any) -> Trainer:
    """A trainer on the CPU that shows nothing."""
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    usual = {"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 2}
    return Trainer(**{**usual, **dict.fromkeys(silent, False), **options})


def fit(
    speed: Any, task: Any, options: dict[str, Any], *, fast: tuple[str, ...], watch: Any
) -> dict[str, Any]:
    """Fit a task and return all that can be seen of it."""
    seed_everything(3, verbose=False)
    task, rows, notes = task(), Rows(), []
    callbacks = [Witness(notes, *watch)] if watch else []
    callbacks += [make() for make in options.get("callbacks", ())]
    trainer = quiet(**{"max_epochs": 3, "logger": rows, **options, "callbacks": callbacks})
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
    "logs everything, accumulated": (LogsEverything, {"accumulate_grad_batches": 3}),
    "logs in overrides": (LogsInOverrides, {}),
    "several loaders": (SeveralLoaders, {}),
    "clipped": (Task, {"gradient_clip_val": 0.1}),
    "clipped by value": (
        Task,
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value", "precision": "bf16-mixed"},
    ),
    "bf16-true": (LogsEverything, {"precision": "bf16-true"}),
    "64-true": (LogsEverything, {"precision": "64-true"}),
    "accumulated": (Accumulated, {"accumulate_grad_batches": 3}),
    "accumulates later": (Task, {"callbacks": [AccumulatesLater]}),
    "accumulates by epoch": (
        Task,
        {"callbacks": [lambda: GradientAccumulationScheduler({0: 1, 1: 3})]},
    ),
    "joined by a callback": (Task, {"callbacks": [JoinsLater]}),
    "scheduled": (Scheduled, {"accumulate_grad_batches": 2}),
    "validates in the epoch": (LogsEverything, {"val_check_interval": 1}),
    "validates across epochs": (
        Scheduled,
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
    ),
    "validates every second epoch": (LogsEverything, {"check_val_every_n_epoch": 2}),
    "stops early": (
        LogsEverything,
        {
            "max_epochs": 9,
            "callbacks": [lambda: EarlyStopping("val/loss", patience=0, min_delta=1)],
        },
    ),
    "stops at a step": (LogsEverything, {"max_steps": 5, "limit_train_batches": 3}),
    "second order": (SecondOrder, {}),
    "skips steps": (SkipsSteps, {"accumulate_grad_batches": 2}),
    "by hand": (Manual, {}),
    "steps itself": (StepsItself, {}),
    "stops epochs": (StopsEpochs, {}),
    "takes the loader": (TakesTheLoader, {}),
    "moves batches": (MovesBatches, {}),
    "changes its batch": (ChangesItsBatch, {}),
    "streams": (Streams, {"val_check_interval": 3}),
    "averages": (Task, {"callbacks": [lambda: StochasticWeightAveraging(0.01, 1)]}),
    "moving average": (LogsEverything, {"callbacks": [WeightAveraging]}),
    "fast dev run": (LogsEverything, {"fast_dev_run": 2}),
    "overfits": (Task, {"overfit_batches": 2}),
    "profiled": (Task, {"profiler": "simple"}),
}


@pytest.fixture(scope="module")
def stock(speed: Any) -> Callable[..., Any]:
    return cache(lambda case, watch: fit(speed, *CASES[case], fast=(), watch=watch))


@pytest.mark.parametrize(
    ("fast", "watch"),
    [(("log",), HOOKS), (("log", "loop"), HOOKS), (("log", "loop"), ())],
    ids=["log", "log+loop", "log+loop, unwatched"],
)
@pytest.mark.parametrize("case", CASES)
def test_a_fast_run_leaves_what_lightnings_own_leaves(
    speed: Any, stock: Callable[..., Any], case: str, fast: tuple[str, ...], watch: Any
) -> None:
    own, mine = stock(case, watch), fit(speed, *CASES[case], fast=fast, watch=watch)
    for part in own:
        assert mine[part] == own[part], part


@pytest.mark.parametrize("task", [Task, Scheduled, SkipsSteps, MovesBatches, SecondOrder])
def test_a_usual_run_takes_the_fast_path(
    speed: Any, monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    loop, full = speed("fast_loop"), []
    monkeypatch.setattr(loop._TrainingEpochLoop, "advance", lambda *_: full.append("train"))
    monkeypatch.setattr(loop._EvaluationLoop, "_evaluation_step", lambda *_: full.append("val"))
    trainer = quiet(num_sanity_val_steps=0)
    assert loop.install(trainer)
    trainer.fit(task())
    assert full == []


def test_a_key_is_logged_in_full_once_an_epoch(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    full = []
    log = LightningModule.log
    monkeypatch.setattr(
        LightningModule,
        "log",
        lambda *args, **options: (full.append(args[1]), log(*args, **options)),
    )
    task = Task()
    assert speed("fast_log").install(task)
    quiet(max_epochs=2, num_sanity_val_steps=0).fit(task)
    assert sorted(full) == sorted(2 * ["train/loss", "train/acc", "train/mean", "val/loss"])


def test_another_version_of_lightning_runs_as_it_is(
    speed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed("fast_loop"), "CHECKED", ("1.0.",))
    task, trainer = Task(), quiet()
    assert not speed("fast_loop").install(trainer)
    assert not speed("fast_log").install(task)
    assert type(trainer.fit_loop.epoch_loop).__name__ == "_TrainingEpochLoop"
    assert "log" not in vars(task)


def test_a_tasks_own_log_stays(speed: Any) -> None:
    class Own(Task):
        def log(self, *args: Any, **options: Any) -> None:  # type: ignore[override]
            super().log(*args, **options)

    assert not speed("fast_log").install(Own())


def test_a_key_with_other_options_is_refused_as_by_lightning(speed: Any) -> None:
    class Twice(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            self.log("twice", loss, on_epoch=batch_idx == 1)
            return loss

    task = Twice()
    speed("fast_log").install(task)
    with pytest.raises(Exception, match="twice in `training_step` with different arguments"):
        quiet().fit(task)


def test_validate_and_test_give_the_same_values(speed: Any) -> None:
    class Tested(SeveralLoaders):
        def test_step(self, *args: Any, **options: Any) -> Any:
            self.validation_step(*args, **options)

        def test_dataloader(self) -> Any:
            return self.val_dataloader()

    def values(fast: bool) -> Any:
        seed_everything(1, verbose=False)
        task, trainer = Tested(), quiet()
        if fast:
            speed("fast_log").install(task)
            speed("fast_loop").install(trainer)
        trainer.fit(task)
        validated, tested = trainer.validate(task, verbose=False), trainer.test(task, verbose=False)
        return plain([validated, tested, trainer.callback_metrics])

    assert values(fast=True) == values(fast=False)


def test_a_copy_of_a_task_logs_for_itself(speed: Any) -> None:
    task = Task()
    speed("fast_log").install(task)
    for other in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert other.log.task is other


def test_a_trainer_can_be_copied_and_pickled_after_fit(speed: Any) -> None:
    task, trainer = Task(), quiet(callbacks=[speed("fused").FusedOptimizers()])
    speed("fast_log").install(task)
    speed("fast_loop").install(trainer)
    trainer.fit(task)
    copy.deepcopy(trainer)
    pickle.dumps(trainer)


def test_hooks_may_be_any_callable(speed: Any) -> None:
    of_callback, of_task, wrapped = Counter(), Counter(), Counter()
    task = Task()
    task.on_after_backward = of_task  # type: ignore[method-assign]
    hook = task.on_before_zero_grad
    task.on_before_zero_grad = wraps(hook)(lambda *args: (wrapped(), hook(*args)))  # type: ignore[method-assign]
    trainer = quiet(callbacks=[LambdaCallback(on_train_batch_end=of_callback)])
    speed("fast_loop").install(trainer)
    trainer.fit(task)
    assert (of_callback.calls, of_task.calls, wrapped.calls) == (4, 4, 4)


def test_an_optimizer_must_call_its_closure(speed: Any) -> None:
    class Ignores(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            return None

    task, trainer = Task(), quiet()
    task.configure_optimizers = lambda: Ignores(task.parameters())  # type: ignore[method-assign]
    speed("fast_loop").install(trainer)
    with pytest.raises(Exception, match="closure hasn't been executed"):
        trainer.fit(task)


def test_an_interrupted_run_shows_its_last_metrics(speed: Any) -> None:
    class Interrupted(Task):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                raise KeyboardInterrupt

    trainer = quiet()
    speed("fast_loop").install(trainer)
    with pytest.raises(SystemExit):
        trainer.fit(Interrupted())
    assert set(trainer.callback_metrics) >= {"train/loss", "train/acc"}


def test_metrics_are_not_compiled(speed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    task = Task()
    speed("compile").compile_in_place(task, same_bits=False)
    assert compiled == [task.model]


# Optimizers.


def weights(**kind: Any) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, **kind)), nn.Parameter(torch.ones(2, 2, **kind))]


def steps(optimizer: torch.optim.Optimizer, times: int) -> list[torch.Tensor]:
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    for _ in range(times):
        for weight in parameters:
            weight.grad = weight.detach() * 2
        optimizer.step()
    return [weight.detach().clone() for weight in parameters]


@pytest.mark.parametrize(
    "kind",
    [
        partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        partial(torch.optim.Adam, lr=torch.tensor(0.1)),
        partial(torch.optim.AdamW, weight_decay=0.5, amsgrad=True),
        torch.optim.Adagrad,
    ],
)
def test_an_optimizer_is_fused_with_the_bits_of_one_built_so(speed: Any, kind: Any) -> None:
    optimizer, built_fused = kind(weights()), kind(weights(), fused=True)
    speed("fused").fuse(optimizer, nn.Identity())
    assert [group["fused"] for group in optimizer.param_groups] == [True]
    assert plain(steps(optimizer, 3)) == plain(steps(built_fused, 3))


def test_each_group_keeps_its_own_values_and_a_later_group_is_fused_too(speed: Any) -> None:
    first, second = weights()
    groups = [{"params": [first]}, {"params": [second], "weight_decay": 0.5}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.2)
    speed("fused").fuse(optimizer, nn.Identity())
    optimizer.add_param_group({"params": weights(), "weight_decay": 0.3})
    assert [group["fused"] for group in optimizer.param_groups] == [True] * 3
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.5, 0.3]


@pytest.mark.parametrize(
    "choice",
    [{"fused": False}, {"foreach": True}, {"differentiable": True}, {"capturable": True}],
    ids=str,
)
def test_what_the_user_has_chosen_stays(speed: Any, choice: dict[str, bool]) -> None:
    optimizer = torch.optim.AdamW(weights(), **choice)  # type: ignore[arg-type]
    speed("fused").fuse(optimizer, nn.Identity())
    assert not optimizer.param_groups[0]["fused"]


class OwnSGD(torch.optim.SGD):
    """May do anything in its step."""


@pytest.mark.parametrize(
    ("kind", "tensors", "task"),
    [
        (torch.optim.RMSprop, {}, nn.Identity()),  # has no fused kernel
        (OwnSGD, {}, nn.Identity()),
        (torch.optim.Adam, {"dtype": torch.complex64}, nn.Identity()),
        (torch.optim.SGD, {"device": "meta"}, nn.Identity()),
        (torch.optim.SGD, {}, nn.Sequential(nn.EmbeddingBag(3, 2, sparse=True))),
    ],
)
def test_what_cannot_be_fused_stays(speed: Any, kind: Any, tensors: Any, task: Any) -> None:
    optimizer = kind(weights(**tensors))
    speed("fused").fuse(optimizer, task)
    assert not optimizer.param_groups[0].get("fused")


class SparseByACall(Task):
    """Looks rows up in a table; no module of it says that the gradient is sparse."""

    def __init__(self, optimizer: Any) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.table = nn.Parameter(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))

    def loss(self, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        looked_up = F.embedding(targets, self.table, sparse=True)
        return F.cross_entropy(inputs + looked_up, targets)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return self.optimizer([self.table])


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "optimizer", [partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adagrad, lr=0.1)]
)
def test_gradients_that_turn_out_to_be_sparse_are_taken_by_the_plain_step(
    speed: Any, optimizer: Any, fast: bool
) -> None:
    tables = []
    for fused in (None, False):
        seed_everything(1, verbose=False)
        task = SparseByACall(partial(optimizer, fused=fused))
        trainer = quiet(callbacks=[speed("fused").FusedOptimizers()])
        if fast:
            speed("fast_loop").install(trainer)
        trainer.fit(task)
        tables.append(task.table.tolist())
    assert tables[0] == tables[1]


@pytest.mark.parametrize(("saved", "here"), [(True, False), (False, True)])
def test_a_checkpoint_loads_where_optimizers_are_not_fused_and_the_other_way(
    speed: Any, monkeypatch: pytest.MonkeyPatch, saved: bool, here: bool
) -> None:
    def built(parameters: Any, has_kernel: bool) -> torch.optim.Optimizer:
        monkeypatch.setattr(speed("fused"), "_has_kernel", lambda *_: has_kernel)
        optimizer = torch.optim.AdamW(parameters, lr=0.1)
        speed("fused").fuse(optimizer, nn.Identity())
        return optimizer

    there = built(weights(), saved)
    mine = built([nn.Parameter(weight) for weight in steps(there, 3)], here)
    mine.load_state_dict(copy.deepcopy(there.state_dict()))
    assert bool(mine.param_groups[0]["fused"]) is here
    torch.testing.assert_close(steps(mine, 3), steps(there, 3))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_gradients_of_fused_optimizers_are_clipped(
    speed: Any, precision: str, algorithm: str
) -> None:
    """In 16-mixed with a loss scale, as on a GPU: the true gradients are clipped."""

    class Norms(Callback):
        def __init__(self) -> None:
            self.before: list[float] = []
            self.after: list[float] = []

        def norm(self, task: Any) -> float:
            gradients = [weight.grad for weight in task.parameters()]
            return float(
                nn.utils.get_total_norm(gradients, 2 if algorithm == "norm" else torch.inf)
            )

        def on_before_optimizer_step(self, trainer: Trainer, task: Any, optimizer: Any) -> None:
            self.before.append(self.norm(task))

        def on_train_batch_end(self, trainer: Trainer, task: Any, *_: Any) -> None:
            self.after.append(self.norm(task))

    norms = Norms()
    options: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        options = {"plugins": [MixedPrecision(precision, "cpu", scaler)]}
    trainer = quiet(
        gradient_clip_val=0.01,
        gradient_clip_algorithm=algorithm,
        callbacks=[speed("fused").FusedOptimizers(), norms],
        **options,
    )
    speed("fast_loop").install(trainer)
    trainer.fit(Task())
    assert trainer.optimizers[0].param_groups[0]["fused"]
    assert min(norms.before) > 0.01 and max(norms.before) < 100  # not the scaled ones
    assert norms.after == pytest.approx([0.01] * 4, rel=1e-3)
