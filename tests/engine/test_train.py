"""A run is continued and not repeated, leaves everything in its folder, and says what it does."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from image_project.engine.cli import as_typed, sentence
from image_project.engine.errors import UserError
from image_project.engine.report.metrics_csv import MetricsCSV
from image_project.engine.resume.callback import Resume
from image_project.engine.run import run_folder
from image_project.engine.trainer import load_run
from image_project.tasks.classification import ClassificationTask
from image_project.train import train
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from .small_runs import HERE, Compose, Finished, rows_of

STOPS = ("monitor=val/acc", "mode=max", "callbacks.early_stopping.patience=1")


def test_a_run_leaves_everything_in_its_folder(finished: Finished) -> None:
    run, metrics = finished
    files = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*.*")}
    there = {name for name in files if not name.startswith("evaluate/")}  # of another test
    assert there == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        f"checkpoints/step_{metrics['steps'] - 1:09d}.ckpt",
        "config.yaml",
        "confusion.png",
        "curves.png",
        "log.txt",
        "metrics.csv",
        "metrics.json",
    }
    saved = json.loads(run.metrics.read_text(encoding="utf-8"))
    assert {key: saved[key] for key in metrics} == metrics
    assert metrics["test/acc"] > 0.8


@pytest.mark.parametrize("debug", ["fast", "limit", "overfit", "profile"])
def test_every_debug_preset_runs_again_each_time(
    small: Compose, monkeypatch: pytest.MonkeyPatch, debug: str
) -> None:
    preset = small(f"debug={debug}", "show=progress")
    preset.trainer.max_epochs = min(preset.trainer.max_epochs, 2)
    first = run_folder(preset).path
    assert train(preset)["steps"] >= 1
    assert first.is_dir()
    assert run_folder(preset).path != first


def test_a_finished_run_is_shown_and_not_trained_again(
    small: Compose, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(small())
    monkeypatch.setattr("lightning.Trainer.fit", None)
    with caplog.at_level(logging.INFO):
        again = train(small())
    assert "is finished" in caplog.text
    assert again == first


def test_the_same_command_continues_as_if_it_had_not_been_stopped(
    small: Compose, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(task: Any) -> None:
        if task.current_epoch == 2:
            raise ConnectionAbortedError

    cfg = small("trainer.max_epochs=4", "save.every_n_steps=3")
    with monkeypatch.context() as patched:
        patched.setattr(ClassificationTask, "on_train_epoch_start", power_cut)
        with pytest.raises(ConnectionAbortedError):
            train(cfg)
    with caplog.at_level(logging.INFO):
        metrics = train(cfg)
    assert "Resuming from" in caplog.text
    assert metrics["epochs"] == 4
    validated = [row["epoch"] for row in rows_of(run_folder(cfg)) if row["val/loss"]]
    assert validated == ["0", "1", "2", "3"]
    assert metrics == train(small("trainer.max_epochs=4", "resume=never"))


def test_more_epochs_continue_a_finished_run_and_fewer_are_refused(small: Compose) -> None:
    def asked(epochs: int) -> Any:
        return small(f"trainer.max_epochs={epochs}", "scheduler=constant")

    train(asked(2))
    longer = train(asked(3))
    assert longer == train(small("trainer.max_epochs=3", "scheduler=constant", "resume=never"))
    assert run_folder(asked(3)).path == run_folder(asked(2)).path
    with pytest.raises(UserError, match="resume=never"):
        train(asked(1))


def test_a_run_that_stopped_early_stays_stopped(small: Compose) -> None:
    def asked(epochs: int) -> Any:
        # At a learning rate of 0, nothing gets better.
        still = (f"trainer.max_epochs={epochs}", "scheduler=constant", "optimizer.lr=0.0")
        return small(*still, *STOPS)

    first = train(asked(40))
    assert first["epochs"] < 5
    assert train(asked(50)) == first
    assert train(asked(40)) == first


def test_a_run_whose_folder_was_moved_keeps_its_best_score(small: Compose, tmp_path: Path) -> None:
    worse = ("scheduler=constant", "mode=max")  # each epoch's loss is lower than the one before
    cfg = small(*worse)
    best = train(cfg)["best val/loss"]
    before = run_folder(cfg).best.read_bytes()
    moved = tmp_path / "moved"
    run_folder(cfg).path.parent.rename(moved)
    longer = small("trainer.max_epochs=3", *worse)
    longer.runs_dir = str(moved)
    assert train(longer)["best val/loss"] == best
    assert run_folder(longer).best.read_bytes() == before


def test_a_torn_row_of_metrics_does_not_stop_a_run(small: Compose) -> None:
    train(small("scheduler=constant"))
    longer = small("trainer.max_epochs=3", "scheduler=constant")
    metrics = run_folder(longer).path / "metrics.csv"
    metrics.write_text(metrics.read_text() + "1,")
    assert train(longer)["epochs"] == 3


def test_max_steps_may_end_a_run_before_its_first_validation(small: Compose) -> None:
    assert train(small("trainer.max_steps=2"))["steps"] == 2


class Plain(L.LightningModule):
    """A task as in Lightning's documentation: no test, and an optimizer of its own."""

    def __init__(self, **_: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OnlyTraining(L.LightningDataModule):
    def __init__(self, batch_size: int, **_: Any) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        data = TensorDataset(torch.rand(160, 64), torch.randint(10, (160,)))
        return DataLoader(data, self.batch_size, shuffle=True)


class NoLoaders(OnlyTraining):
    """Its data have no such splits."""

    def val_dataloader(self) -> Any:
        return None

    def test_dataloader(self) -> Any:
        return None


PLAIN = (f"task._target_={__name__}.Plain", "~callbacks.early_stopping")
ONLY_TRAINING = f"data._target_={__name__}.OnlyTraining"


no_validation = pytest.mark.filterwarnings(  # Lightning says so
    "ignore:.*Skipping val loop", "ignore:Total length of .* across ranks is zero"
)


@no_validation
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((*PLAIN, ONLY_TRAINING), "Plain has no test_step: nothing is tested"),
        ((f"data._target_={__name__}.OnlyTraining", "~callbacks.early_stopping"), "has no test"),
        (("trainer.limit_test_batches=0",), ""),
        (("trainer.limit_val_batches=0", "trainer.limit_test_batches=0"), ""),
        ((f"data._target_={__name__}.NoLoaders",), ""),
    ],
)
def test_a_run_without_validation_or_test_finishes(
    small: Compose, caplog: pytest.LogCaptureFixture, options: tuple[str, ...], says: str
) -> None:
    cfg = small(*options)
    with caplog.at_level(logging.INFO):
        metrics = train(cfg)
    assert says in caplog.text
    assert metrics["steps"] == 10
    assert "test/loss" not in metrics
    assert train(cfg) == metrics  # it is finished
    assert run_folder(cfg).last.is_file()


class TooFew(OnlyTraining):
    def train_dataloader(self) -> DataLoader[Any]:
        data = TensorDataset(torch.rand(320, 64), torch.randint(10, (320,)))
        return DataLoader(data, 1000, shuffle=True, drop_last=True)


@no_validation
@pytest.mark.filterwarnings("ignore:Total length of .* across ranks is zero")
def test_data_without_a_batch_are_refused_with_the_numbers(small: Compose) -> None:
    cfg = small(f"data._target_={__name__}.TooFew", "trainer.limit_train_batches=1.0")
    with pytest.raises(UserError, match="320 samples, batch_size=1000, drop_last=True"):
        train(cfg)
    assert not run_folder(cfg).path.exists()


# What comes after the last step.


class FailsAtTheEnd(L.Callback):
    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        raise MemoryError

    def on_test_batch_end(self, *_: Any) -> None:
        raise ValueError("no such\ncolour")


class FailingLogger(MetricsCSV):
    def finalize(self, status: str) -> None:
        raise ConnectionError("no route to host")


def test_what_fails_after_the_last_step_costs_no_result(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    own = (f"+show.mine._target_={__name__}.FailsAtTheEnd",)
    own += (f"logger.csv._target_={__name__}.FailingLogger",)
    cfg = small(*own)
    metrics = train(cfg)
    assert metrics == train(small("resume=never"))
    failed = [said for said in caplog.messages if "failed, the run continues" in said]
    assert [said.partition(" failed")[0] for said in failed] == [
        "FailsAtTheEnd.on_fit_end",
        "FailingLogger.finalize",
    ]
    assert "no such" in run_folder(cfg).log.read_text(encoding="utf-8")


@no_validation
@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ((), []),
        (PLAIN, ["optimizer"]),
        (("optimizer=sgd", *PLAIN, "optimizer.lr=5"), ["optimizer.lr=5"]),
    ],
)
def test_what_of_the_config_a_task_does_not_use_is_said_in_one_line(
    small: Compose, caplog: pytest.LogCaptureFixture, options: tuple[str, ...], unused: list[str]
) -> None:
    with caplog.at_level(logging.INFO):
        train(small("trainer.max_epochs=1", *options))
    said = [line for line in caplog.messages if "does not use" in line]
    assert len(said) == bool(unused)
    assert all(key in said[0] for key in unused)


# Loggers.


class Pictures(ClassificationTask):
    def on_train_epoch_end(self) -> None:
        assert isinstance(self.logger, TensorBoardLogger)
        self.logger.experiment.add_image("first", torch.rand(1, 8, 8), self.current_epoch)


def test_the_logger_that_is_chosen_is_the_tasks_and_resumes(small: Compose) -> None:
    def asked(epochs: int) -> Any:
        own = (f"task._target_={__name__}.Pictures", "logger=tensorboard", "scheduler=constant")
        return small(*own, f"trainer.max_epochs={epochs}")

    train(asked(1))
    train(asked(2))
    run = run_folder(asked(2))
    assert len([*run.path.glob("tensorboard/events.out.tfevents.*")]) >= 2
    assert [row["epoch"] for row in rows_of(run) if row["val/loss"]] == ["0", "1"]


@pytest.mark.parametrize("killed_in", [1, 7])  # before the first checkpoint, and after one
def test_tensorboard_shows_each_step_once_after_a_kill(
    small: Compose, monkeypatch: pytest.MonkeyPatch, killed_in: int
) -> None:
    cfg = small("logger=tensorboard", "save.every_n_steps=3")
    end_of_batch = Resume.on_train_batch_end

    def power_cut(self: Any, trainer: Any, *args: Any) -> None:
        end_of_batch(self, trainer, *args)
        if trainer.global_step == killed_in:
            trainer.logger.experiment.flush()
            raise ConnectionAbortedError

    with monkeypatch.context() as patched:
        patched.setattr(Resume, "on_train_batch_end", power_cut)
        with pytest.raises(ConnectionAbortedError):
            train(cfg)
    time.sleep(1.1)  # readers sort the files by the second in their names
    train(cfg)
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = events.EventAccumulator(str(run_folder(cfg).path / "tensorboard")).Reload()
    assert [row.step for row in events.Scalars("train/loss")] == list(range(10))
    assert [row.step for row in events.Scalars("val/loss")] == [4, 9]


@pytest.mark.parametrize("none", ["~logger", "logger=null"])
def test_a_run_without_a_logger_trains(small: Compose, none: str) -> None:
    cfg = small(as_typed(none, ""))
    assert train(cfg)["steps"] == 10
    assert not [path for path in run_folder(cfg).path.rglob("*") if path.suffix == ".csv"]


def test_no_secret_of_the_environment_is_written_down(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s3cr3t-f0r-th1s-t3st"
    for name in ("WANDB_API_KEY", "COMET_API_KEY", "MLFLOW_TRACKING_URI", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    cfg = small("logger=tensorboard")
    train(cfg)
    for file in run_folder(cfg).path.rglob("*.*"):
        assert secret.encode() not in file.read_bytes(), file


# The best weights.


@pytest.mark.parametrize("save_top_k", [1, 3])
def test_the_best_of_a_users_own_keeper_is_tested(
    small: Compose, caplog: pytest.LogCaptureFixture, save_top_k: int
) -> None:
    # The loss of the first epoch is the highest.
    own = ("callbacks.best.filename='mine-{epoch}'", "callbacks.best.mode=max")
    cfg = small("scheduler=constant", *own, f"+callbacks.best.save_top_k={save_top_k}")
    with caplog.at_level(logging.INFO):
        metrics = train(cfg)
    run = run_folder(cfg)
    assert run.weights() == run.path / "checkpoints" / "mine-epoch=0.ckpt"
    task, datamodule = load_run(str(run.path))
    datamodule.setup("test")
    inputs, targets = next(iter(datamodule.test_dataloader()))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(task(inputs), targets)
    assert metrics["test/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_without_a_keeper_the_last_weights_are_tested_and_no_other_is_added(small: Compose) -> None:
    cfg = small("~callbacks.best")
    assert "test/loss" in train(cfg)
    names = {path.name for path in run_folder(cfg).path.glob("checkpoints/*")}
    assert names == {"last.ckpt", "step_000000008.ckpt", "step_000000009.ckpt"}


# Numbers.


def test_a_result_in_mixed_precision_is_that_of_float32(small: Compose) -> None:
    mixed = small("trainer.precision=bf16-mixed")
    metrics = train(mixed)
    task, datamodule = load_run(str(run_folder(mixed).path))
    datamodule.setup("test")
    inputs, targets = next(iter(datamodule.test_dataloader()))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(task(inputs), targets)
    assert metrics["test/loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.skipif("cpu" not in HERE.compiles, reason="needs a C++ compiler")
def test_a_compiled_run_leaves_what_any_other_does(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.accelerator=cpu")
    options += ("scheduler=constant", "optimizer.lr=0.001", "trainer.gradient_clip_val=1")
    plain, compiled = small(*options), small(*options, "compile=true")
    with caplog.at_level(logging.INFO):
        metrics = train(compiled)
    assert "The first step took" in caplog.text
    assert metrics["test/loss"] == pytest.approx(train(plain)["test/loss"], rel=1e-3)
    states = [
        torch.load(run_folder(cfg).last, weights_only=True)["state_dict"]
        for cfg in (plain, compiled)
    ]
    assert list(states[0]) == list(states[1])
    longer = small(*options, "trainer.max_epochs=2")
    longer.ckpt_path = str(run_folder(compiled).checkpoints()[0])
    train(longer)  # resumes without the compiler
    assert "not bit for bit" in caplog.text


def test_training_makes_no_float64(small: Compose) -> None:
    """MPS has none; a whole run on the CPU shows it, optimizer and metrics included."""

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                    made.add(str(func))
            return out

    made: set[str] = set()
    with Recorder():
        train(small("data.augment=true", "show=default"))
    assert not made


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from zip(torch.rand(160, 64), torch.randint(10, (160,)), strict=True)


class Streamed(OnlyTraining):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Stream(), self.batch_size)


@no_validation
def test_a_stream_with_a_schedule_over_steps_needs_max_steps_and_says_so(small: Compose) -> None:
    options = (f"data._target_={__name__}.Streamed", "~callbacks.early_stopping")
    # Of a stream nobody knows how long it is.
    endless = small(*options, "scheduler=one_cycle", "trainer.limit_train_batches=1.0")
    with pytest.raises(ValueError, match="total_steps") as error:
        train(endless)
    assert "Set trainer.max_steps" in str(sentence(error.value, "train"))
    endless.trainer.max_steps = 6
    endless.trainer.max_epochs = 2
    assert train(endless)["steps"] == 6
