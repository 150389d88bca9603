"""A run is never lost: whatever stops it, the same command ends with the same bits."""

import csv
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose, names, starter
from omegaconf import DictConfig
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from {{ cookiecutter.package_name }} import checkpoint, resume
from {{ cookiecutter.package_name }}.data.tensors import take_batch
from {{ cookiecutter.package_name }}.errors import UserError
from {{ cookiecutter.package_name }}.run import Run
from {{ cookiecutter.package_name }}.storage import is_sound, write_whole
from {{ cookiecutter.package_name }}.train import train

SMALL = (
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=5",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
    "save.every_n_steps=1",
    "~callbacks.curves",  # which takes a third of so short a run
)


class OwnTask(starter.Task):
    """A user's, with several kinds of averages over an epoch, and random numbers of each source."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        import random

        import numpy as np

        loss = super().training_step(batch, batch_idx)
        self.log("train/mean", loss, on_step=True, on_epoch=True)
        self.log("train/max", loss, on_epoch=True, on_step=False, reduce_fx="max")
        self.log("train/sum", loss, on_epoch=True, on_step=False, reduce_fx="sum", prog_bar=True)
        return loss * (random.random() + np.random.rand() + torch.rand((), device=self.device))


class ManualTask(starter.Task):
    """A user's, which steps every second batch by itself, and logs a metric by hand."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        self.by_hand = MeanMetric()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.by_hand.update(loss)
        self.manual_backward(loss)
        if batch_idx % 2:
            self.optimizers().step()
            self.optimizers().zero_grad()
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/by_hand", self.by_hand.compute())
        self.by_hand.reset()


class PlainShuffle(starter.DataModule):
    """A user's, with PyTorch's own shuffling, which knows nothing of a resume."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            super().train_dataloader().dataset,
            batch_size=self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.num_workers,
            collate_fn=take_batch,
        )


def digest(path: Path) -> str:
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    sha = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha.update(name.encode() + tensor.cpu().numpy().tobytes())
    return sha.hexdigest()


def result(run: Run) -> tuple[str, str, list[dict[str, str]], dict[str, float]]:
    """What must not depend on where a run was stopped."""
    with (run.folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    return digest(run.checkpoints()[0]), digest(run.best), rows, metrics


def resumed_from(saved: Path, cfg: DictConfig, tmp_path: Path) -> Run:
    """The run of `cfg`, continued in another place as if it had been killed after `saved`."""
    whole = Run.of(cfg)
    elsewhere = cfg.copy()
    elsewhere.runs_dir = str(tmp_path / f"from {saved.stem}")
    run = Run.of(elsewhere)
    (run.folder / "checkpoints").mkdir(parents=True)
    shutil.copy(saved, run.folder / "checkpoints")
    shutil.copy(whole.best, run.best)
    shutil.copy(whole.folder / "metrics.csv", run.folder)
    train(elsewhere)
    return run


@pytest.mark.parametrize(
    "options",
    [
        *([f"experiment={name}"] for name in names("experiment")),
        [],
        ["scheduler=one_cycle"],
        ["scheduler=plateau", "scheduler.scheduler.patience=0"],
        ["trainer.accumulate_grad_batches=2"],
        ["trainer.val_check_interval=2"],
        [*starter.RANDOM, "data.num_workers=2"],
        ["trainer.max_steps=7"],
        [f"task._target_={__name__}.OwnTask"],
        [f"task._target_={__name__}.ManualTask", "trainer.gradient_clip_val=null"],
        ["trainer.precision=64-true", "trainer.accelerator=cpu"],
        ["trainer.check_val_every_n_epoch=2", "scheduler=plateau", "+scheduler.frequency=2"],
        [f"data._target_={__name__}.PlainShuffle"],
        [f"data._target_={__name__}.PlainShuffle", "data.num_workers=2"],
    ],
    ids=lambda options: ",".join(options) or "default",
)
def test_a_run_goes_on_from_any_checkpoint_to_the_same_bits(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(Run, "prune", lambda self: None)
    cfg = config(*SMALL, *options)
    train(cfg)
    whole = Run.of(cfg)
    saved = whole.checkpoints()[::-1]
    for path in (saved[1], saved[len(saved) // 2]):
        assert result(resumed_from(path, cfg, tmp_path)) == result(whole)


def test_another_max_steps_goes_on_within_the_epoch(config: Compose, tmp_path: Path) -> None:
    train(config(*SMALL, "trainer.max_steps=7", "scheduler=constant"))
    longer = config(*SMALL, "trainer.max_steps=9", "scheduler=constant")
    train(longer)
    at_once = config(*SMALL, "trainer.max_steps=9", "scheduler=constant", "resume=never")
    again = Run.of(at_once)
    train(at_once)
    assert digest(Run.of(longer).checkpoints()[0]) == digest(again.checkpoints()[0])


def test_the_newest_two_checkpoints_are_kept_and_the_best(config: Compose) -> None:
    cfg = config(*SMALL)
    train(cfg)
    there = sorted(path.name for path in Run.of(cfg).folder.glob("checkpoints/*"))
    assert there == ["best.ckpt", "step_000000009.ckpt", "step_000000010.ckpt"]


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "a bit flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"empty": 0, "truncated": len(content) // 2}.get(how)])


@pytest.mark.parametrize("how", ["empty", "truncated", "a bit flipped"])
def test_a_broken_checkpoint_is_put_aside_and_the_one_before_taken(
    config: Compose, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    cfg = config(*SMALL)
    train(cfg)
    run = Run.of(cfg)
    before = result(run)
    run.metrics.unlink()
    newest, older = run.checkpoints()
    spoil(newest, how)
    assert not is_sound(newest)
    with caplog.at_level(logging.INFO):
        train(cfg)
    assert f"{newest.name}.broken" in caplog.text
    assert f"Going on from {older}" in caplog.text
    assert newest.with_name(f"{newest.name}.broken").is_file()
    assert result(run) == before


def test_a_broken_best_checkpoint_is_not_tested(config: Compose) -> None:
    cfg = config(*SMALL)
    train(cfg)
    Run.of(cfg).metrics.unlink()
    spoil(Run.of(cfg).best, "a bit flipped")
    with pytest.raises(UserError, match="is broken"):
        train(cfg)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        checkpoint.load_task(Run.of(cfg).best)


def test_a_run_that_must_resume_does_not_start_anew_if_all_is_broken(config: Compose) -> None:
    cfg = config(*SMALL)
    train(cfg)
    Run.of(cfg).metrics.unlink()
    for path in Run.of(cfg).checkpoints():
        spoil(path, "truncated")
    cfg.resume = "must"
    with pytest.raises(UserError, match="is whole"):
        train(cfg)


class NotPlain(starter.Task):
    """A user's, which would save a module among its hyper-parameters, and a path beside them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loss = torch.nn.CrossEntropyLoss()
        self.hparams.loss = self.loss


class SavesAPath(starter.Task):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["path"] = Path("somewhere")


def test_what_could_not_be_read_again_is_refused_at_the_first_checkpoint(config: Compose) -> None:
    train(config(*SMALL, f"task._target_={__name__}.NotPlain"))
    with pytest.raises(UserError, match="plain Python data"):
        train(config(*SMALL, f"task._target_={__name__}.SavesAPath"))


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_saves_after_the_step_and_says_so_in_the_exit_status(
    config: Compose, monkeypatch: pytest.MonkeyPatch, name: str, status: int
) -> None:
    if not hasattr(signal, name):
        pytest.skip(f"{name} is not known to this system")

    def interrupt(task: Any, batch: Any, batch_idx: int) -> None:
        if task.global_step == 6:
            signal.raise_signal(getattr(signal, name))

    cfg = config(*SMALL, "save.every_n_steps=100")
    with monkeypatch.context() as patched:
        patched.setattr(starter.Task, "on_train_batch_start", interrupt)
        with pytest.raises(SystemExit) as end:
            train(cfg)
    assert end.value.code == status
    assert [path.stem for path in Run.of(cfg).checkpoints()] == ["step_000000007"]
    train(cfg)
    undisturbed = config(*SMALL, "save.every_n_steps=100", "resume=never")
    whole = Run.of(undisturbed)
    train(undisturbed)
    assert result(Run.of(cfg)) == result(whole)


def test_a_loss_that_is_no_number_ends_the_run_with_a_sentence(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = starter.Task.training_step

    def spoilt(task: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        return whole(task, batch, batch_idx) * (float("nan") if task.global_step == 6 else 1)

    monkeypatch.setattr(starter.Task, "training_step", spoilt)
    cfg = config(*SMALL)
    with pytest.raises(UserError, match="nan or infinite by epoch 2, step 7"):
        train(cfg)
    assert Run.of(cfg).results(cfg) is None
    for path in Run.of(cfg).checkpoints():
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_checkpoints_come_by_time_in_long_epochs_and_at_the_start_of_short_ones(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Run, "prune", lambda self: None)
    monkeypatch.setattr(resume, "PRICE", 1e9)  # they cost nothing
    always = config(*SMALL, "save.every_n_steps=null", "save.every_n_minutes=0")
    train(always)
    steps = [int(path.stem.removeprefix("step_")) for path in Run.of(always).checkpoints()]
    assert steps == list(range(10, 0, -1))
    seldom = config(*SMALL, "save.every_n_steps=null", "resume=never")
    run = Run.of(seldom)
    train(seldom)
    assert [path.stem for path in run.checkpoints()] == ["step_000000010", "step_000000005"]
    monkeypatch.setattr(resume, "PRICE", 1e-9)  # they cost too much
    dear = config(*SMALL, "save.every_n_steps=null", "save.every_n_minutes=0", "resume=never")
    run = Run.of(dear)
    train(dear)
    assert [path.stem for path in run.checkpoints()] == ["step_000000010"]  # always


def test_a_second_process_in_the_same_folder_is_refused(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(*SMALL)
    run = Run.of(cfg)
    monkeypatch.setattr("{{ cookiecutter.package_name }}.run.PATIENCE", 0)
    run.folder.mkdir(parents=True)
    hold = "import filelock as f; l = f.FileLock('lock'); l.acquire(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=run.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="Another process is training"):
            train(cfg)
        other.communicate(b"\n")
    assert train(cfg)["epochs"] == 2


def test_resume_must_trains_nothing_from_the_start(config: Compose) -> None:
    cfg = config(*SMALL, "resume=must")
    with pytest.raises(UserError, match="nothing to go on from"):
        train(cfg)
    train(config(*SMALL))
    assert train(cfg)["epochs"] == 2


def test_ckpt_path_goes_on_from_another_runs_checkpoint_in_a_new_folder(
    config: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    first = config(*SMALL, "scheduler=constant")
    train(first)
    cfg = config(*SMALL, "scheduler=constant", "trainer.max_epochs=3", "optimizer.weight_decay=0.2")
    cfg.ckpt_path = str(Run.of(first).folder)
    with pytest.raises(UserError, match="is a folder"):
        train(cfg)
    cfg.ckpt_path = str(Run.of(first).checkpoints()[0])
    assert Run.of(cfg).folder != Run.of(first).folder
    with caplog.at_level(logging.INFO):
        metrics = train(cfg)
    assert f"Going on from {Run.of(first).checkpoints()[0]}" in caplog.text
    assert metrics["steps"] == 15
    assert train(cfg) == metrics
    for other, says in (("optimizer=sgd", "SGD|AdamW"), ("model.width=32", "another model")):
        changed = config(*SMALL, other)
        changed.ckpt_path = cfg.ckpt_path
        with pytest.raises(UserError, match=says):
            train(changed)


def test_the_best_checkpoint_holds_weights_only_and_is_not_gone_on_from(config: Compose) -> None:
    first = config(*SMALL)
    train(first)
    cfg = config(*SMALL)
    cfg.ckpt_path = str(Run.of(first).best)
    with pytest.raises(UserError, match="init_from"):
        train(cfg)


def test_init_from_starts_with_the_weights_that_fit(
    config: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    first = config("trainer.max_epochs=2")
    train(first)
    tuned = config(*SMALL, "optimizer.lr=0.0")
    tuned.init_from = str(Run.of(first).folder)
    untaught = config(*SMALL, "optimizer.lr=0.0")
    assert Run.of(tuned).folder != Run.of(untaught).folder
    assert train(tuned)["test/loss"] < 0.7 * train(untaught)["test/loss"]
    wider = config(*SMALL, "model.num_layers=3")
    wider.init_from = str(Run.of(first).best)
    with caplog.at_level(logging.INFO):
        train(wider)
    assert f"but for {starter.ADDED_LAYER}" in caplog.text
    wider.init_from = "latest"
    with pytest.raises(UserError, match="name a folder or file"):
        Run.of(wider)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accelerator": "mps"}, "Saved with accelerator mps; with accelerator cpu it goes on"),
        ({"threads": 61}, "OMP_NUM_THREADS=61 would"),
        ({"torch": "2.0"}, "Saved with torch 2.0"),
    ],
)
def test_a_run_of_another_device_goes_on_and_says_that_the_bits_differ(
    config: Compose,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    says: str,
) -> None:
    cfg = config(*SMALL, "scheduler=constant", "trainer.accelerator=cpu")
    train(cfg)
    newest = Run.of(cfg).checkpoints()[0]
    saved = torch.load(newest, map_location="cpu", weights_only=True)
    saved["loops"]["fit_loop"]["epoch_loop.state_dict"]["made_on"] |= change
    with monkeypatch.context() as patched:  # what torch.save writes down as a tensor's device
        tag = "mps:0" if "accelerator" in change else "cpu"
        patched.setattr(torch.serialization, "location_tag", lambda storage: tag)
        torch.save(saved, newest)
    longer = config(*SMALL, "scheduler=constant", "trainer.accelerator=cpu", "trainer.max_epochs=3")
    assert train(longer)["epochs"] == 3
    assert says in caplog.text


def test_another_number_of_devices_is_refused_in_a_sentence(config: Compose) -> None:
    cfg = config(*SMALL, "scheduler=constant")
    train(cfg)
    newest = Run.of(cfg).checkpoints()[0]
    saved = torch.load(newest, map_location="cpu", weights_only=True)
    saved["loops"]["fit_loop"]["epoch_loop.state_dict"]["made_on"]["devices"] = 8
    torch.save(saved, newest)
    longer = config(*SMALL, "scheduler=constant", "trainer.max_epochs=3")
    with pytest.raises(UserError, match=r"trainer\.devices=8"):
        train(longer)
    longer.ckpt_path = str(newest)
    assert train(longer)["epochs"] == 3


def test_a_run_whose_folder_was_moved_keeps_its_best_score(config: Compose, tmp_path: Path) -> None:
    worse = ("scheduler=constant", "mode=max")  # each epoch's loss is lower than the one before
    cfg = config("trainer.max_epochs=2", *worse)
    best = train(cfg)["best val/loss"]
    before = digest(Run.of(cfg).best)
    moved = tmp_path / "moved"
    Run.of(cfg).folder.parent.rename(moved)
    longer = config("trainer.max_epochs=3", *worse)
    longer.runs_dir = str(moved)
    assert train(longer)["best val/loss"] == best
    assert digest(Run.of(longer).best) == before


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, lambda file: file.write(b"old"))

    def half(file: Any) -> None:
        file.write(b"new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        write_whole(path, half)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_best_weights_are_kept_until_they_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = checkpoint.CheckpointIO()
    weights = torch.zeros(3)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(path: Path, write: Any) -> None:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_whole", fail)
        disk.save_checkpoint({"weights": weights}, tmp_path / "best.ckpt")
        disk.save_checkpoint({"optimizer_states": []}, tmp_path / "step.ckpt")
        with pytest.raises(UserError, match="free some space"):
            disk.write_the_rest()
        disk.save_checkpoint({"weights": weights}, tmp_path / "best.ckpt")
    assert "training goes on" in caplog.text
    weights += 1  # goes on
    disk.save_checkpoint({"optimizer_states": []}, tmp_path / "step.ckpt")
    assert torch.load(tmp_path / "best.ckpt")["weights"].sum() == 0
    assert is_sound(tmp_path / "step.ckpt")
