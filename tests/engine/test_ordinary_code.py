"""What users of Lightning and Hydra have reported: ordinary code and options, in a project."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from image_project.callbacks.confusion import ConfusionMatrix
from image_project.engine.cli import sentence
from image_project.engine.run import RunFolder, run_folder
from image_project.engine.trainer import load_run
from image_project.evaluate import evaluate
from image_project.tasks.classification import ClassificationTask
from image_project.train import train
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, random_split
from torchmetrics import MetricTracker
from torchmetrics.classification import MulticlassAccuracy

from .small_runs import Compose, compose_config, rows_of

INPUTS = torch.rand(320, 64, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(320) % 10


def task(name: str) -> str:
    return f"task._target_={__name__}.{name}"


def data(name: str) -> str:
    return f"data._target_={__name__}.{name}"


def in_project(kind: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `kind` be a class of the project, which `evaluate` trusts."""
    monkeypatch.setattr(name, kind)
    monkeypatch.setattr(kind, "__module__", name.rpartition(".")[0])


# Optimizers and schedules.


class NumpySchedule(ClassificationTask):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra = Extra()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=np.sqrt(1e-4))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / 9))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Extra(nn.Identity):
    def get_extra_state(self) -> Any:
        return {"seen": np.int64(3)}

    def set_extra_state(self, state: Any) -> None:
        self.seen = state["seen"]


class CountsInNumpy(L.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"best": np.float32(0.5), "seen": [np.int64(3)]}


def test_numpys_numbers_may_be_in_a_schedule_and_in_other_states(small: Compose) -> None:
    own = f"+callbacks.own={{_target_: {__name__}.CountsInNumpy}}"
    cfg = small(task("NumpySchedule"), own)
    train(cfg)
    saved = torch.load(run_folder(cfg).checkpoints()[0], weights_only=True)
    assert isinstance(saved["optimizer_states"][0]["param_groups"][0]["lr"], float)
    assert saved["callbacks"]["CountsInNumpy"] == {"best": 0.5, "seen": [3]}
    assert saved["state_dict"]["extra._extra_state"] == {"seen": 3}
    assert saved["state_dict"]._metadata["model"] == {"version": 1}


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned")
@pytest.mark.parametrize(("epochs", "batches"), [("2", "1.0"), ("null", "7")])
def test_a_plateau_schedule_waits_for_a_validation(
    small: Compose, epochs: str, batches: str
) -> None:
    every = (
        f"trainer.check_val_every_n_epoch={epochs}",
        f"trainer.val_check_interval={batches}",
    )
    assert train(small("scheduler=plateau", "trainer.max_epochs=3", *every))["epochs"] == 3


def test_a_schedule_that_does_not_fit_its_interval_is_refused_in_a_sentence(small: Compose) -> None:
    with pytest.raises(TypeError) as error:
        train(small("scheduler.interval=step"))
    assert "total_steps" in str(sentence(error.value, "train"))


class StepsOptimizerItself(ClassificationTask):
    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


def test_a_run_whose_steps_lightning_does_not_count_says_that_it_saves_nothing(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = small(task("StepsOptimizerItself"))
    assert train(cfg)["steps"] == 0
    assert caplog.text.count("no checkpoint is saved") == 1
    assert not run_folder(cfg).checkpoints()


# Models.


class LazyTask(ClassificationTask):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_modules_train_and_are_evaluated(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_project(LazyTask, "image_project.tasks.classification.ClassificationTask", monkeypatch)
    cfg = small()
    metrics = train(cfg)
    loaded, _ = load_run(str(run_folder(cfg).path))
    assert loaded.model[1].weight.shape == (10, 64)
    assert metrics["steps"] == 10


# Data.


class SplitsAtRandom(L.LightningDataModule):
    """`setup` is called for the training and for the test."""

    fitted: set[int]
    tested: list[int]

    def __init__(self, batch_size: int, **_: Any) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        parts = random_split(TensorDataset(INPUTS, TARGETS), [0.5, 0.25, 0.25])
        self.train, self.val, self.test = parts
        if stage == "fit":
            SplitsAtRandom.fitted = {*self.train.indices, *self.val.indices}
        else:
            SplitsAtRandom.tested = [*self.test.indices]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, self.batch_size)


def test_a_random_split_in_setup_is_the_same_in_training_test_evaluate_and_a_notebook(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_project(SplitsAtRandom, "image_project.data.digits.DigitsDataModule", monkeypatch)
    cfg = small()
    train(cfg)
    tested = SplitsAtRandom.tested
    assert not SplitsAtRandom.fitted & {*tested}  # otherwise it is tested on what it has learned
    folder = str(run_folder(cfg).path)
    again = compose_config("evaluate", "run=latest", "show=progress")
    again.run = folder
    evaluate(again)
    assert SplitsAtRandom.tested == tested
    _, datamodule = load_run(folder)
    datamodule.setup("test")
    assert SplitsAtRandom.tested == tested


class TooLong(IterableDataset[Any]):
    """Its length is that of all workers together, rounded up."""

    def __len__(self) -> int:
        return 350

    def __iter__(self) -> Any:
        yield from zip(INPUTS, TARGETS, strict=True)


class SaysTooMuch(SplitsAtRandom):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TooLong(), self.batch_size)


@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__`")
def test_a_loader_that_ends_before_its_length_is_said_since_nothing_is_validated(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = small(data("SaysTooMuch"), "trainer.limit_train_batches=1.0")
    assert "best val/loss" not in train(cfg)
    assert caplog.text.count("length is 11, and it has given 10") == 1


# Metrics.


class Tracks(ClassificationTask):
    """A MetricTracker makes a metric at each step; another one is made late."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.tracker = MetricTracker(MulticlassAccuracy(10))

    def on_validation_epoch_start(self) -> None:
        self.tracker.increment()
        self.late = MulticlassAccuracy(10)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.tracker.update(self(batch[0]), batch[1])
        self.late.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("val/best", float(self.tracker.best_metric()))


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode")
def test_metrics_that_come_into_being_in_training_do_not_keep_a_run_from_resuming(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    def power_cut(task: Any) -> None:
        if task.current_epoch == 2:
            raise ConnectionAbortedError

    cfg = small(task("Tracks"), "trainer.max_epochs=3")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ClassificationTask, "on_train_epoch_start", power_cut)
        with pytest.raises(ConnectionAbortedError):
            train(cfg)
    train(cfg)
    resumed = rows_of(run_folder(cfg))
    assert "The metric late is not there" in caplog.text
    anew = small(task("Tracks"), "trainer.max_epochs=3", "resume=never")
    train(anew)
    (folder,) = run_folder(cfg).path.parent.glob("*-2")
    assert resumed == rows_of(RunFolder(folder))


# Callbacks and the Trainer's options.


class NotANumber(ClassificationTask):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", 0.5 if self.current_epoch == 0 else float("nan"))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((task("NotANumber"),), "val/loss = nan is not finite"),
        (("optimizer.lr=0.0", "callbacks.early_stopping.patience=1"), "did not improve"),
    ],
)
def test_a_run_that_stops_early_says_why(
    small: Compose, caplog: pytest.LogCaptureFixture, options: tuple[str, ...], says: str
) -> None:
    with caplog.at_level(logging.INFO):
        train(small("trainer.max_epochs=9", "monitor=val/loss", *options))
    assert says in caplog.text


def test_files_named_after_a_metric_with_a_slash_are_written_once(small: Compose) -> None:
    def power_cut(task: Any) -> None:
        if task.current_epoch == 2:
            raise ConnectionAbortedError

    name = "filename: '{epoch}-{val/loss:.3f}', save_top_k: -1, dirpath: '${run_dir}/checkpoints'"
    kept = f"_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: train/loss, {name}"
    cfg = small(f"+callbacks.own={{{kept}}}", "trainer.max_epochs=3", "save.every_n_steps=7")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ClassificationTask, "on_train_epoch_start", power_cut)
        with pytest.raises(ConnectionAbortedError):
            train(cfg)
    train(cfg)
    files = [path.parent.name for path in run_folder(cfg).path.glob("checkpoints/*/*.ckpt")]
    assert sorted(files) == ["epoch=0-val", "epoch=1-val", "epoch=2-val"]


def test_the_progress_may_be_turned_off_as_in_lightning(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train(small("+trainer.enable_progress_bar=false"))
    assert "epoch 1/2" not in caplog.text


class PrintsAndWrites(ClassificationTask):
    def on_train_epoch_end(self) -> None:
        self.print("epoch", self.current_epoch, "is over")
        Path(self.logger.log_dir, "note.txt").touch()


def test_a_task_prints_and_writes_to_log_dir_as_in_lightning(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = small(task("PrintsAndWrites"))
    with caplog.at_level(logging.INFO):
        train(cfg)
    assert "epoch 1 is over" in caplog.messages
    assert (run_folder(cfg).path / "note.txt").is_file()


LOGITS = torch.eye(4, 3)


@pytest.mark.parametrize(
    ("outputs", "batch"),
    [
        (LOGITS, {"image": INPUTS[:4], "label": TARGETS[:4]}),
        (LOGITS, [INPUTS[:4], torch.ones(4, 3)]),  # several labels each
        (LOGITS[:, :1], [INPUTS[:4], torch.rand(4, 1)]),  # a regression
        (LOGITS, [INPUTS[:4]]),
        ({"preds": LOGITS}, [INPUTS[:4], TARGETS[:4]]),
    ],
)
def test_a_test_step_that_returns_something_else_has_no_confusion_matrix(
    tmp_path: Path, outputs: Any, batch: Any
) -> None:
    picture: Any = ConfusionMatrix(str(tmp_path))
    picture.on_test_batch_end(None, None, outputs, batch, 0)
    picture.on_test_end(None, None)
    assert not [*tmp_path.iterdir()]
