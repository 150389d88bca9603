"""Run a scenario undisturbed, and killed and started again: everything must be the same.

A run is a fork, so that it can be killed with SIGKILL, and so that Lightning is imported once. The
engine is that of the baked project: its RunFolder, CheckpointIO, Signals and metrics.csv.
"""

import contextlib
import csv
import importlib
import logging
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

SEED = 7
ACCELERATOR = os.environ.get("EXACT_ACCELERATOR", "cpu")  # cuda: the same tests on a GPU
TIMEOUT = 120  # seconds of one run


class Place(NamedTuple):
    """A hook, an epoch, and a batch: None is any, -1 the last one."""

    hook: str
    epoch: int
    batch: int | None


# The quick tests try the first three, the slow ones all.
PLACES = [
    Place("on_before_optimizer_step", 1, 3),
    Place("on_train_batch_end", 1, -1),
    Place("on_validation_batch_end", 1, None),
    Place("on_train_batch_start", 1, 0),
    Place("on_train_batch_end", 2, -1),
    Place("on_train_batch_start", 0, 0),
    Place("on_train_batch_end", 1, 1),
    Place("on_after_backward", 1, 2),
    Place("on_validation_end", 1, None),
    Place("on_train_epoch_end", 1, None),
    Place("on_train_epoch_start", 2, None),
    Place("on_train_epoch_end", 2, None),
]


@dataclass
class Scenario:
    """What a run trains.

    Args:
        task: makes it.
        data: makes the keyword arguments of `fit`.
        callbacks: makes them, given the run's folder.
        trainer: arguments of the Trainer.
    """

    task: Callable[[], LightningModule]
    data: Callable[[], dict[str, Any]]
    callbacks: Callable[[Path], list[Callback]] = lambda folder: []
    trainer: dict[str, Any] = field(default_factory=dict)


class Fault(Callback):
    """Kills the process at a place, or raises there, and leaves a note that it was there."""

    def __init__(self, place: Place, note: Path, *, kill: bool) -> None:
        self.place, self.note, self.kill = place, note, kill
        setattr(self, place.hook, self._strike)

    def _strike(self, trainer: Trainer, *_: Any) -> None:
        batch, number = self.place.batch, trainer.num_training_batches
        if batch == -1:
            batch = 6 if number == float("inf") else int(number) - 1
        here = batch is None or trainer.fit_loop.batch_idx == batch
        if not here or trainer.sanity_checking or trainer.current_epoch != self.place.epoch:
            return
        self.note.touch()
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("a fault of the test")


ENGINE = (
    "report.metrics_csv",
    "resume.callback",
    "resume.checkpoint_io",
    "run.folder",
    "run.signals",
    "speed.fast_log",
    "speed.fast_loop",
)


def engine(module: str) -> Any:
    return importlib.import_module(f"image_project.engine.{module}")


def train(
    path: Path,
    scenario: Scenario,
    *extra: Callback,
    every: int | None = 1,
    fast: bool = False,
    ckpt_path: Path | None = None,
    **trainer_options: Any,
) -> dict[str, Any]:
    """Train in the folder `path`, from its newest checkpoint, and return everything that counts.

    Args:
        path: of the run.
        scenario: what is trained.
        extra: callbacks of a test.
        every: steps between two checkpoints; None: none is taken.
        fast: with the fast loop and log.
        ckpt_path: a checkpoint of another run to resume from.
        trainer_options: in place of the scenario's.
    """
    os.fsync = lambda _: None  # a power failure is not tested, and it takes half of the time
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    folder = engine("run.folder").RunFolder(path)
    seed_everything(SEED, verbose=False)
    task, data = scenario.task(), scenario.data()
    own = folder.newest(lambda _: True)
    resume = engine("resume.callback").Resume(
        folder,
        seed=SEED,
        every_n_minutes=10,
        every_n_steps=every,
        signals=engine("run.signals").Signals(),
        same_run=own is not None,
        device_name=ACCELERATOR,
        enabled=every is not None,
    )
    callbacks = [resume, *scenario.callbacks(path), *extra]
    options = {
        "max_epochs": 3,
        "log_every_n_steps": 1,
        "num_sanity_val_steps": 0,
        "accelerator": ACCELERATOR,
        "deterministic": ACCELERATOR != "cpu",
        "devices": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks),
        "default_root_dir": path,
        "logger": engine("report.metrics_csv").MetricsCSV(str(path)),
    }
    trainer = Trainer(callbacks=callbacks, **options | scenario.trainer | trainer_options)
    trainer.strategy.checkpoint_io = engine("resume.checkpoint_io").CheckpointIO({})
    if fast:
        engine("speed.fast_log").install(task)
        engine("speed.fast_loop").install(trainer)
    # Checkpoints must load without code, as they do in a project.
    trainer.fit(task, **data, ckpt_path=own or ckpt_path, weights_only=True)
    return outcome(trainer, task, path)


def outcome(trainer: Any, task: LightningModule, path: Path) -> dict[str, Any]:
    """Return what must not depend on kills, as plain data and tensors."""
    metrics = path / "metrics.csv"
    writes = trainer.is_global_zero  # another rank may be here before its last row
    rows = list(csv.DictReader(metrics.open(newline=""))) if writes and metrics.is_file() else []
    keepers = [
        {
            "best": Path(one.best_model_path).name,
            "score": one.best_model_score,
            "top k": {Path(file).name: score for file, score in one.best_k_models.items()},
            "last": Path(one.last_model_path).name,
            "files": sorted(
                file.name
                for file in Path(one.dirpath).glob("*")
                if writes and "step_0" not in file.name
            ),
        }
        for one in trainer.checkpoint_callbacks
    ]
    return plain(
        {
            "weights": dict(task.state_dict()),
            "frozen": [name for name, one in task.named_parameters() if not one.requires_grad],
            "optimizers": [one.state_dict() for one in trainer.optimizers],
            "schedulers": [one.scheduler.state_dict() for one in trainer.lr_scheduler_configs],
            "rows": rows,
            "keepers": keepers,
            "early stopping": [
                (one.wait_count, one.stopped_epoch, one.best_score)
                for one in trainer.early_stopping_callbacks
            ],
            "callbacks of tests": [
                one.state_dict() for one in trainer.callbacks if "test_" in type(one).__module__
            ],
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "should stop": trainer.should_stop,
            "seen": getattr(task, "seen", None),
        }
    )


def plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()  # the process that compares must not start CUDA
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items() if not callable(one)}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
        return [] if same else [f"{where}: {one.flatten()[:3]} != {other.flatten()[:3]}"]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}[{i}]")]
    if isinstance(one, list) and isinstance(other, list):
        return [f"{where}: {len(one)} != {len(other)} of them"]
    both_nan = one != one and other != other
    return [] if both_nan or one == other else [f"{where}: {one!r} != {other!r}"]


def forked(do: Callable[[], Any], out: Path) -> tuple[int, Any]:
    """Call `do` in a fork: return its status and result, or what it printed if it failed."""
    process = fork(do, out)
    return joined(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), out)


def fork(do: Callable[[], Any], out: Path) -> int:
    """Start a fork that writes the result of `do` to `out`, and what it prints beside it."""
    for module in ENGINE:
        engine(module)  # once, and not in every fork
    sys.stdout.flush()
    sys.stderr.flush()
    if process := os.fork():
        return process
    status = 1
    try:
        printed = os.open(out.with_suffix(".txt"), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        signal.alarm(TIMEOUT)
        quiet()
        out.write_bytes(pickle.dumps(do()))
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def joined(status: int, out: Path) -> tuple[int, Any]:
    if status == 0:
        return status, pickle.loads(out.read_bytes())
    return status, out.with_suffix(".txt").read_text()[-3000:]


def quiet() -> None:
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)


def whole(path: Path, scenario: Scenario, **options: Any) -> dict[str, Any]:
    """Return the outcome of a run that nothing disturbs and that saves nothing."""
    status, wanted = forked(lambda: train(path, scenario, every=None, **options), path / "out")
    assert status == 0, wanted
    return dict(wanted)


def check(
    path: Path,
    scenario: Scenario,
    places: list[Place] | None = None,
    *,
    every: tuple[int, ...] = (1, 3),
    fast: bool = False,
) -> None:
    """Assert that the scenario ends the same after a fault at each of the places.

    Args:
        path: an empty folder.
        scenario: what is trained.
        places: of faults; those that the scenario never reaches do not count.
        every: steps between two checkpoints, in turn.
        fast: with the fast loop, compared with Lightning's own.
    """
    (path / "undisturbed").mkdir()
    wanted = whole(path / "undisturbed", scenario)
    reached = 0
    for number, place in enumerate(places or PLACES[:3]):
        run = path / str(number)
        run.mkdir()
        fault = Fault(place, run / "note", kill=number % 4 != 3)
        start = partial(train, run, scenario, every=every[number % len(every)], fast=fast)
        status, text = forked(partial(start, fault), run / "out")
        if not fault.note.exists():
            assert status == 0, f"{place}: {text}"
            continue
        assert status == (-signal.SIGKILL if fault.kill else 1), f"{place}: {text}"
        status, found = forked(start, run / "out")
        assert status == 0, f"{place}: {found}"
        assert not (wrong := differences(wanted, found)), f"{place}: {wrong[:5]}"
        reached += 1
    assert reached, "no place was reached"


def by_scenario(scenarios: dict[str, Scenario], quick: set[str]) -> Any:
    """Return the parametrization of a test by scenarios: few places in quick ones, and all slow.

    The test gets `name`, `places`, and `fast`: whether the fast loop runs.
    """
    assert quick <= scenarios.keys()
    cases = [
        pytest.param(name, PLACES[:3], False, id=name) for name in scenarios if name in quick
    ] + [
        pytest.param(
            name, PLACES, fast, id=f"{name}, everywhere{', fast' * fast}", marks=pytest.mark.slow
        )
        for name in scenarios
        for fast in (False, True)
    ]
    return pytest.mark.parametrize(("name", "places", "fast"), cases)
