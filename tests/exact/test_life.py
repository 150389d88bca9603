"""What happens to a run besides one kill: signals, more epochs, another folder, nan, finders."""

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
)
from torch.utils.data import DataLoader, Dataset

from .harness import Fault, Place, Scenario, differences, engine, forked, train, whole
from .tasks import INPUTS, NUM_SAMPLES, Augmented, NoBatchNorm, Task, loaders, trained_on


def keep_two(folder: Path) -> list[Callback]:
    return [ModelCheckpoint(folder / "kept", monitor="val/loss", save_top_k=2)]


PLATEAU = Scenario(lambda: Task("plateau"), loaders, keep_two, {"val_check_interval": 3})
STEP = Scenario(Task, loaders, keep_two)


@pytest.fixture
def wanted(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    (tmp_path / "undisturbed").mkdir()
    return partial(whole, tmp_path / "undisturbed")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def start(run: Path, *arguments: Any, **options: Any) -> tuple[int, Any]:
    return forked(partial(train, run, *arguments, **options), run.with_suffix(".out"))


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("checkpoints/step_*"))


def test_killed_three_times(wanted: Any, run: Path) -> None:
    places = [
        Place("on_train_batch_end", 0, 4),
        Place("on_validation_batch_end", 1, None),
        Place("on_train_batch_end", 2, 1),
    ]
    for number, place in enumerate(places):
        fault = Fault(place, run / f"note {number}", kill=True)
        assert start(run, PLATEAU, fault, every=2 + number % 2)[0] == -signal.SIGKILL
    status, found = start(run, PLATEAU, every=2)
    assert status == 0, found
    assert not differences(wanted(PLATEAU), found)


@pytest.mark.parametrize(
    ("scenario", "first", "then"),
    [
        (PLATEAU, {}, {}),
        (STEP, {"max_epochs": 2}, {"max_epochs": 4}),
        (STEP, {"max_epochs": 2, "accumulate_grad_batches": 3}, {"max_epochs": 3}),
        (STEP, {"max_steps": 10, "max_epochs": -1}, {"max_steps": 12}),
        (PLATEAU, {"max_steps": 12, "max_epochs": -1}, {"max_steps": 20}),
        (STEP, {"max_time": {"seconds": 0}}, {"max_time": None}),
        (Scenario(Task, lambda: trained_on(DataLoader(Augmented(), 8)), keep_two), {}, {}),
        (
            Scenario(
                Task,
                loaders,
                lambda _: [EarlyStopping("val/loss", patience=1, min_delta=10.0)],
                {"max_epochs": 6},
            ),
            {},
            {},
        ),
    ],
    ids=["again", "epochs", "accumulated", "steps", "next epoch", "time", "stream", "stopped"],
)
@pytest.mark.parametrize("every", [3, 10**6])
def test_started_again_after_its_end(
    wanted: Any, run: Path, scenario: Scenario, first: dict, then: dict, every: int
) -> None:
    assert start(run, scenario, every=every, **first)[0] == 0
    status, found = start(run, scenario, every=every, **first | then)
    assert status == 0, found
    assert not differences(wanted(scenario, **first | then), found)


def test_the_last_step_is_saved_at_its_start(run: Path) -> None:
    assert start(run, STEP, every=10**6)[0] == 0
    assert checkpoints(run) == ["step_000000020.ckpt"]  # of 21


class Signal(Callback):
    """Sends a signal to the process at a place."""

    sent = False

    def __init__(self, place: Place) -> None:
        self.place = place
        setattr(self, place.hook, self._send)

    def _send(self, trainer: Any, *_: Any) -> None:
        here = self.place.batch in (None, trainer.fit_loop.batch_idx)
        if here and trainer.current_epoch == self.place.epoch and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("place", "saved"),
    [
        (Place("on_after_backward", 1, 2), ["step_000000010.ckpt"]),
        (Place("on_validation_batch_end", 1, None), ["step_000000014.ckpt"]),
        (Place("on_train_epoch_end", 0, None), ["step_000000007.ckpt"]),
    ],
)
def test_a_signal_saves_at_the_next_batch(
    wanted: Any, run: Path, place: Place, saved: list[str]
) -> None:
    assert start(run, STEP, Signal(place), every=10**6)[0] == 128 + signal.SIGTERM
    assert checkpoints(run) == saved
    status, found = start(run, STEP, every=10**6)
    assert status == 0, found
    assert not differences(wanted(STEP), found)


class OwnHandler(Callback):
    """A user's own, installed where Lightning lets one."""

    def __init__(self, note: Path) -> None:
        self.note = note

    def on_train_start(self, *_: Any, **__: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: self.note.touch())


@pytest.mark.parametrize("hook", ["setup", "on_train_start"])
def test_a_handler_of_the_users_own_is_called_too(run: Path, tmp_path: Path, hook: str) -> None:
    place, own = Place("on_after_backward", 1, 2), OwnHandler(tmp_path / "called")
    setattr(own, hook, own.on_train_start)
    assert start(run, STEP, own, Signal(place), every=10**6)[0] == 128 + signal.SIGTERM
    assert own.note.exists()
    assert checkpoints(run) == ["step_000000010.ckpt"]


def test_a_signal_ends_a_long_validation_at_once(wanted: Any, run: Path) -> None:
    def impatient(*callbacks: Callback) -> Any:
        callback = engine("resume.callback")
        callback.LONG_VALIDATION_SECONDS, callback.MAX_OVERHEAD = 0, float("inf")
        return train(run, PLATEAU, *callbacks, every=10**6)

    out = run.with_suffix(".out")
    stop = Signal(Place("on_validation_batch_end", 1, 2))
    assert forked(partial(impatient, stop), out)[0] == 128 + signal.SIGTERM
    # Before the batch of the validation that was cut short, and before the one of the last.
    assert checkpoints(run) == ["step_000000005.ckpt", "step_000000009.ckpt"]
    status, found = forked(impatient, out)
    assert status == 0, found
    assert not differences(wanted(PLATEAU), found)


def test_a_signal_before_the_first_batch_ends_at_once(run: Path) -> None:
    place = Place("on_train_start", 0, None)
    assert start(run, STEP, Signal(place), every=1)[0] == 128 + signal.SIGTERM
    assert checkpoints(run) == []


class KilledWhileSaving(Callback):
    def on_save_checkpoint(self, trainer: Any, task: Any, checkpoint: Any) -> None:
        if trainer.global_step == 10:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_while_saving(wanted: Any, run: Path) -> None:
    assert start(run, STEP, KilledWhileSaving(), every=1)[0] == -signal.SIGKILL
    status, found = start(run, STEP, every=1)
    assert status == 0, found
    assert not differences(wanted(STEP), found)


def test_killed_before_its_first_checkpoint(wanted: Any, run: Path) -> None:
    fault = Fault(Place("on_train_batch_end", 2, 1), run / "note", kill=True)
    assert start(run, STEP, fault, every=10**6)[0] == -signal.SIGKILL
    assert [*run.glob("kept/*.ckpt")]  # which Lightning would keep beside new ones, as -v1
    assert checkpoints(run) == []
    status, found = start(run, STEP, every=10**6)
    assert status == 0, found
    assert not differences(wanted(STEP), found)


def test_a_folder_that_has_moved(wanted: Any, run: Path) -> None:
    fault = Fault(Place("on_train_batch_end", 2, 1), run / "note", kill=True)
    assert start(run, STEP, fault, every=2)[0] == -signal.SIGKILL
    moved = run.rename(run.with_name("moved"))
    status, found = start(moved, STEP, every=2)
    assert status == 0, found
    assert not differences(wanted(STEP), found)


def test_a_checkpoint_of_another_run(run: Path, tmp_path: Path) -> None:
    assert start(run, STEP, every=10, max_epochs=2)[0] == 0
    other = tmp_path / "other"
    other.mkdir()
    saved = run / "checkpoints" / "step_000000010.ckpt"
    status, found = start(other, STEP, every=1, ckpt_path=saved)
    assert status == 0, found
    assert found["step"] == 21
    assert [row["step"] for row in found["rows"]][:2] == ["10", "11"]  # its own, from there
    assert all(Path(name).suffix == ".ckpt" for name in found["keepers"][0]["files"])
    assert len(found["keepers"][0]["files"]) == 2
    assert sorted(path.name for path in (run / "kept").iterdir())  # theirs are still there


class BecomesNan(Task):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if self.global_step == 12 else loss


@pytest.mark.parametrize("every", [1, 5])
def test_nan_is_an_error_and_earlier_checkpoints_stay(run: Path, every: int) -> None:
    scenario = Scenario(BecomesNan, loaders)
    status, text = start(run, scenario, every=every, log_every_n_steps=5)
    assert status == 1
    assert "nan or infinite by epoch 2, step 1" in text
    newest = run / "checkpoints" / checkpoints(run)[-1]
    weights = torch.load(newest, weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())


class Tuned(NoBatchNorm):
    """Has a rate and a size that finders set."""

    def __init__(self) -> None:
        super().__init__("epoch")
        self.lr, self.batch_size = 1e-3, 2

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("lr", self.lr)
        return super().training_step(batch, batch_idx)

    def train_dataloader(self) -> Any:
        return DataLoader(Augmented(), self.batch_size, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Augmented(), self.batch_size)


@pytest.mark.parametrize(
    "finder",
    [
        partial(LearningRateFinder, num_training_steps=20),
        partial(BatchSizeFinder, max_trials=2, steps_per_trial=1),
    ],
    ids=["learning rate", "batch size"],
)
def test_a_finder_searches_once(wanted: Any, run: Path, finder: Any) -> None:
    scenario = Scenario(Tuned, dict, lambda _: [finder()])
    expected = wanted(scenario)
    fault = Fault(Place("on_train_batch_end", 1, 1), run / "note", kill=True)
    assert start(run, scenario, fault, every=1)[0] == -signal.SIGKILL
    status, found = start(run, scenario, every=1)
    assert status == 0, found
    assert not differences(expected, found)


class Scores(Callback):
    """Remembers the weights that are validated."""

    def __init__(self) -> None:
        self.validated: list[Any] = []

    def on_validation_batch_start(self, trainer: Any, task: Any, *_: Any) -> None:
        self.weights = {name: one.clone() for name, one in task.state_dict().items()}

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        self.validated.append((trainer.callback_metrics["val/loss"], self.weights))


@pytest.mark.parametrize("weights_only", [True, False])
def test_the_best_weights_are_those_that_were_validated(run: Path, weights_only: bool) -> None:
    def best() -> Any:
        scores = Scores()
        keeper = ModelCheckpoint(
            run / "kept", "best", monitor="val/loss", save_weights_only=weights_only
        )
        scenario = Scenario(NoBatchNorm, loaders, lambda _: [EMAWeightAveraging(decay=0.9), keeper])
        train(run, scenario, scores, every=1)
        kept = torch.load(run / "kept" / "best.ckpt", weights_only=True)
        return kept, min(scores.validated, key=lambda scored: scored[0])[1]

    status, found = forked(best, run / "out")
    assert status == 0, found
    kept, validated = found
    assert not differences(validated, kept["state_dict"])
    assert ("optimizer_states" in kept) is not weights_only
    assert ("current_model_state" in kept) is not weights_only


def test_an_unknown_lightning_saves_at_epochs_starts(wanted: Any, run: Path) -> None:
    def unknown(*callbacks: Callback) -> Any:
        callback, lines = engine("resume.callback"), []
        callback.IS_CHECKED = False
        callback.log.warning = lines.append
        return train(run, STEP, *callbacks, every=1), lines

    out = run.with_suffix(".out")
    fault = Fault(Place("on_train_batch_end", 2, 3), run / "note", kill=True)
    assert forked(partial(unknown, fault), out)[0] == -signal.SIGKILL
    assert checkpoints(run) == ["step_000000007.ckpt", "step_000000014.ckpt"]
    status, found = forked(unknown, out)
    assert status == 0, found
    outcome, lines = found
    assert not differences(wanted(STEP), outcome)
    assert len(lines) == 1
    assert "at the start of an epoch only" in lines[0]


class Counted(Dataset[Any]):
    read = 0

    def __len__(self) -> int:
        return 8 * 100

    def __getitem__(self, index: int) -> Any:
        Counted.read += 1
        return INPUTS[index % NUM_SAMPLES] + index, 0


def test_a_resume_reads_only_what_is_left(run: Path) -> None:
    def data() -> dict[str, Any]:
        return {"train_dataloaders": DataLoader(Counted(), 8, shuffle=True)}

    def again() -> int:
        train(run, scenario, every=10**6)
        return Counted.read

    scenario = Scenario(Task, data, trainer={"max_epochs": 1})
    fault = Fault(Place("on_train_batch_end", 0, 90), run / "note", kill=True)
    assert start(run, scenario, fault, every=1)[0] == -signal.SIGKILL
    status, read = forked(again, run / "out")
    assert status == 0, read
    assert read == 8 * 10


class ReadsTheData(Callback):
    """Passes over the training data by itself, as to compute a statistic."""

    def on_train_start(self, trainer: Any, task: Any) -> None:
        self.mean = torch.stack([inputs.mean() for inputs, _ in trainer.train_dataloader]).mean()

    def on_train_epoch_end(self, trainer: Any, task: Any) -> None:
        task.log("mean", torch.stack([x.mean() for x, _ in trainer.train_dataloader]).mean())


def test_a_callback_may_read_the_training_data(wanted: Any, run: Path) -> None:
    scenario = Scenario(Task, loaders, lambda _: [ReadsTheData()])
    fault = Fault(Place("on_train_batch_end", 1, 2), run / "note", kill=True)
    assert start(run, scenario, fault, every=1)[0] == -signal.SIGKILL
    status, found = start(run, scenario, every=1)
    assert status == 0, found
    assert not differences(wanted(scenario), found)


def test_what_is_saved_loads_without_code(run: Path) -> None:
    assert start(run, PLATEAU, every=5)[0] == 0
    saved = torch.load(run / "checkpoints" / checkpoints(run)[-1], weights_only=True)
    assert saved["resume"]["at"] == [2, 6]


def test_the_internals_exist() -> None:
    """Each name of the table is one of the installed versions."""
    from lightning.pytorch.loops import _EvaluationLoop, _FitLoop, _TrainingEpochLoop
    from lightning.pytorch.trainer.states import RunningStage, TrainerFn
    from torchmetrics import MeanMetric

    internals = engine("resume.internals")
    trainer = lightning.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    fitting, validating = TrainerFn.FITTING, RunningStage.VALIDATING
    owners = {
        "_FitLoop": _FitLoop(trainer),
        "_TrainingEpochLoop": _TrainingEpochLoop(trainer),
        "_EvaluationLoop": _EvaluationLoop(trainer, fitting, validating),
        "ModelCheckpoint": ModelCheckpoint(),
        "LearningRateFinder": LearningRateFinder(),
        "BatchSizeFinder": BatchSizeFinder(),
        "DataLoader": DataLoader([1]),
        "Metric": MeanMetric(),
    }
    for name in internals.INTERNALS:
        owner, _, attribute = name.partition(".")
        assert hasattr(owners[owner], attribute), name


def test_the_table_of_internals_gives_reasons_and_the_page_names_it() -> None:
    internals = engine("resume.internals")
    page = Path(internals.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert "`internals.py` has the table" in page
    for name, (needed, gone) in internals.INTERNALS.items():
        assert needed and gone, name
