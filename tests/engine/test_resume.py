"""A run is never lost: what stops it, breaks its files or fills its disk is told and mended.

That a resumed run ends with the same bits is tested in tests/exact, place by place.
"""

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import Timeout
from image_project.engine.errors import UserError
from image_project.engine.files import Lock, checksum_matches, write_whole
from image_project.engine.resume import callback, checkpoint_io
from image_project.engine.run import RunFolder, folder, run_folder
from image_project.engine.trainer import load_run
from image_project.tasks.classification import ClassificationTask
from image_project.train import train

from .small_runs import Compose, Finished, digest, result, stop_at


def test_another_max_steps_resumes_within_the_epoch(small: Compose, tmp_path: Path) -> None:
    train(small("trainer.max_steps=7", "scheduler=constant"))
    longer = small("trainer.max_steps=9", "scheduler=constant")
    train(longer)
    at_once = small("trainer.max_steps=9", "scheduler=constant", "resume=never")
    again = run_folder(at_once)
    train(at_once)
    assert digest(run_folder(longer).last) == digest(again.last)


def test_the_newest_two_checkpoints_are_kept_and_the_best(small: Compose) -> None:
    cfg = small()
    train(cfg)
    there = sorted(path.name for path in run_folder(cfg).path.glob("checkpoints/*"))
    assert there == ["best.ckpt", "last.ckpt", "step_000000008.ckpt", "step_000000009.ckpt"]


def spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "a bit flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"empty": 0, "truncated": len(content) // 2}.get(how)])


@pytest.mark.parametrize("how", ["empty", "truncated", "a bit flipped"])
def test_a_broken_checkpoint_is_put_aside_and_the_one_before_taken(
    small: Compose, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    cfg = small()
    train(cfg)
    run = run_folder(cfg)
    before = result(run)
    run.metrics.unlink()
    newest, older = run.checkpoints()
    spoil(newest, how)
    assert not checksum_matches(newest)
    with caplog.at_level(logging.INFO):
        train(cfg)
    assert f"{newest.name}.broken" in caplog.text
    assert f"Resuming from {older}" in caplog.text
    assert newest.with_name(f"{newest.name}.broken").is_file()
    assert result(run) == before


def test_a_broken_best_checkpoint_is_not_tested(small: Compose) -> None:
    cfg = small("mode=max", "scheduler=constant")  # the first epoch's, which is not trained again
    train(cfg)
    run_folder(cfg).metrics.unlink()
    spoil(run_folder(cfg).best, "a bit flipped")
    with pytest.raises(UserError, match="is broken"):
        train(cfg)
    with pytest.raises(UserError, match="not a whole checkpoint"):
        load_run(str(run_folder(cfg).best))


def test_a_run_that_must_resume_does_not_start_anew_if_all_is_broken(small: Compose) -> None:
    cfg = small()
    train(cfg)
    run_folder(cfg).metrics.unlink()
    for path in run_folder(cfg).checkpoints():
        spoil(path, "truncated")
    cfg.resume = "must"
    with pytest.raises(UserError, match="can be loaded"):
        train(cfg)


class SavesAPath(ClassificationTask):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["path"] = Path("somewhere")


def test_what_could_not_be_read_again_is_refused_at_the_first_checkpoint(small: Compose) -> None:
    with pytest.raises(UserError, match="plain Python data"):
        train(small(f"task._target_={__name__}.SavesAPath"))


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_saves_after_the_step_and_says_so_in_the_exit_status(
    small: Compose, name: str, status: int
) -> None:
    if not hasattr(signal, name):
        pytest.skip(f"{name} is not known to this system")

    cfg = small("save.every_n_steps=100")
    assert stop_at(6, cfg, getattr(signal, name)) == status
    assert [path.stem for path in run_folder(cfg).checkpoints()] == ["step_000000007"]
    train(cfg)
    undisturbed = small("save.every_n_steps=100", "resume=never")
    whole = run_folder(undisturbed)
    train(undisturbed)
    assert result(run_folder(cfg)) == result(whole)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_a_terminal_that_closes_may_send_sighup_several_times(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its shell and by the system: only the first counts."""

    def interrupt(task: Any, batch: Any, batch_idx: int) -> None:
        if task.global_step == 6:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr(ClassificationTask, "on_train_batch_start", interrupt)
    cfg = small("save.every_n_steps=100")
    with pytest.raises(SystemExit) as end:
        train(cfg)
    assert end.value.code == 129
    assert [path.stem for path in run_folder(cfg).checkpoints()] == ["step_000000007"]


def test_a_loss_that_is_no_number_ends_the_run_with_a_sentence(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ClassificationTask.training_step

    def spoilt(task: Any, batch: Any, batch_idx: int) -> torch.Tensor:
        return whole(task, batch, batch_idx) * (float("nan") if task.global_step == 6 else 1)

    monkeypatch.setattr(ClassificationTask, "training_step", spoilt)
    cfg = small()
    with pytest.raises(UserError, match="nan or infinite by epoch 2, step 7"):
        train(cfg)
    assert not run_folder(cfg).metrics.exists()
    for path in run_folder(cfg).checkpoints():
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in state.values())


def test_checkpoints_come_by_time_in_long_epochs_and_at_the_start_of_short_ones(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunFolder, "prune", lambda self: None)
    monkeypatch.setattr(callback, "MAX_OVERHEAD", 1e9)  # they cost nothing
    always = small("save.every_n_steps=null", "save.every_n_minutes=0")
    train(always)
    steps = [int(path.stem.removeprefix("step_")) for path in run_folder(always).checkpoints()]
    assert steps == list(range(9, 0, -1))
    seldom = small("save.every_n_steps=null", "resume=never")
    run = run_folder(seldom)
    train(seldom)
    assert [path.stem for path in run.checkpoints()] == ["step_000000009", "step_000000005"]
    monkeypatch.setattr(callback, "MAX_OVERHEAD", 1e-9)  # they cost too much
    dear = small("save.every_n_steps=null", "save.every_n_minutes=0", "resume=never")
    run = run_folder(dear)
    train(dear)
    assert [path.stem for path in run.checkpoints()] == ["step_000000009"]  # always


def test_a_second_process_in_the_same_folder_is_refused(
    small: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = small()
    run = run_folder(cfg)
    monkeypatch.setattr(folder, "LOCK_SECONDS", 0)
    run.path.mkdir(parents=True)
    hold = "import filelock as f; l = f.FileLock('lock'); l.acquire(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=run.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match="Another process is training"):
            train(cfg)
        other.communicate(b"\n")
    assert train(cfg)["epochs"] == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has locks of another kind")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_trains_with_a_warning(
    small: Compose,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    code: int,
) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", no_locks)
    cfg = small("trainer.max_epochs=1", f"runs_dir={tmp_path.as_posix()}/{code}")
    assert train(cfg)["epochs"] == 1
    assert len([said for said in caplog.messages if "without locks" in said]) == 1
    assert not run_folder(cfg).is_live()
    # The threads of a sweep still exclude each other.
    with Lock(tmp_path / "claim", timeout=0), pytest.raises(Timeout):
        Lock(tmp_path / "claim", timeout=0).acquire()
    Lock(tmp_path / "claim", timeout=0).acquire()


def test_resume_must_trains_nothing_from_the_start(small: Compose) -> None:
    cfg = small("resume=must")
    with pytest.raises(UserError, match="No checkpoint to resume from"):
        train(cfg)
    train(small())
    assert train(cfg)["epochs"] == 2


def test_ckpt_path_resumes_from_another_runs_checkpoint_in_a_new_folder(
    small: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    first = small("scheduler=constant")
    train(first)
    cfg = small("scheduler=constant", "trainer.max_epochs=3", "optimizer.weight_decay=0.2")
    cfg.ckpt_path = str(run_folder(first).path)
    with pytest.raises(UserError, match="is a folder"):
        train(cfg)
    cfg.ckpt_path = str(run_folder(first).checkpoints()[0])
    assert run_folder(cfg).path != run_folder(first).path
    with caplog.at_level(logging.INFO):
        metrics = train(cfg)
    assert f"Resuming from {run_folder(first).checkpoints()[0]}" in caplog.text
    assert metrics["steps"] == 15
    assert train(cfg) == metrics
    for other, says in (("optimizer=sgd", "SGD|AdamW"), ("model.width=32", "another model")):
        changed = small(other)
        changed.ckpt_path = cfg.ckpt_path
        with pytest.raises(UserError, match=says):
            train(changed)


def test_the_best_checkpoint_holds_weights_only_and_is_not_resumed_from(small: Compose) -> None:
    first = small()
    train(first)
    cfg = small()
    cfg.ckpt_path = str(run_folder(first).best)
    with pytest.raises(UserError, match="init_from"):
        train(cfg)


def test_init_from_starts_with_the_weights_that_fit(
    small: Compose, finished: Finished, caplog: pytest.LogCaptureFixture
) -> None:
    tuned, untaught = small("optimizer.lr=0.0"), small("optimizer.lr=0.0")
    tuned.init_from = str(finished[0].path)
    assert run_folder(tuned).path != run_folder(untaught).path
    assert train(tuned)["test/loss"] < 0.7 * train(untaught)["test/loss"]
    wider = small("model.num_layers=3")
    wider.init_from = str(finished[0].best)
    with caplog.at_level(logging.INFO):
        train(wider)
    assert "except model.layers.9.weight" in caplog.text
    wider.init_from = "latest"
    with pytest.raises(UserError, match="Name a folder or a file"):
        run_folder(wider)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accelerator": "mps"}, "Saved with accelerator mps; with accelerator cpu it resumes"),
        ({"threads": 61}, "OMP_NUM_THREADS=61 would"),
        ({"torch": "2.0"}, "Saved with torch 2.0"),
    ],
)
def test_a_run_of_another_device_resumes_and_says_that_the_bits_differ(
    small: Compose,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    says: str,
) -> None:
    cfg = small("scheduler=constant", "trainer.accelerator=cpu")
    train(cfg)
    newest = run_folder(cfg).checkpoints()[0]
    saved = torch.load(newest, map_location="cpu", weights_only=True)
    saved["resume"]["made_on"] |= change
    with monkeypatch.context() as patched:  # what torch.save writes down as a tensor's device
        tag = "mps:0" if "accelerator" in change else "cpu"
        patched.setattr(torch.serialization, "location_tag", lambda storage: tag)
        torch.save(saved, newest)
    longer = small("scheduler=constant", "trainer.accelerator=cpu", "trainer.max_epochs=3")
    assert train(longer)["epochs"] == 3
    assert says in caplog.text


def test_another_number_of_devices_is_refused_in_a_sentence(small: Compose) -> None:
    cfg = small("scheduler=constant")
    train(cfg)
    newest = run_folder(cfg).checkpoints()[0]
    saved = torch.load(newest, map_location="cpu", weights_only=True)
    saved["resume"]["made_on"]["devices"] = 8
    torch.save(saved, newest)
    longer = small("scheduler=constant", "trainer.max_epochs=3")
    with pytest.raises(UserError, match=r"trainer\.devices=8"):
        train(longer)
    longer.ckpt_path = str(newest)
    assert train(longer)["epochs"] == 3


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
    disk = checkpoint_io.CheckpointIO({})
    weights = torch.zeros(3)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(path: Path, write: Any) -> None:
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint_io, "write_whole", fail)
        disk.save_checkpoint({"weights": weights}, tmp_path / "best.ckpt")
        disk.save_checkpoint({"optimizer_states": []}, tmp_path / "step.ckpt")
        with pytest.raises(UserError, match="Free some space"):
            disk.flush()
        disk.save_checkpoint({"weights": weights}, tmp_path / "best.ckpt")
    assert "training continues" in caplog.text
    weights += 1  # goes on
    disk.save_checkpoint({"optimizer_states": []}, tmp_path / "step.ckpt")
    assert torch.load(tmp_path / "best.ckpt")["weights"].sum() == 0
    assert checksum_matches(tmp_path / "step.ckpt")
