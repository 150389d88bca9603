"""The listing of runs says what became of each, from their files alone."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import run
from image_project.engine.run import RunFolder
from image_project.tools.runs import Listing, listings

SMALL = (
    "trainer.limit_train_batches=5",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=1",
    "show=progress",
)
COMMAND = (sys.executable, "-m", "image_project")


def the_one(folder: RunFolder) -> Listing:
    (line,) = (line for line in listings(folder.path.parent) if line.run == str(folder.path))
    return line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run of two epochs, with a checkpoint."""
    cwd = tmp_path_factory.mktemp("finished")
    words = (*SMALL, "trainer.max_epochs=2", "save.every_n_steps=1")
    done = run(*COMMAND, "train", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    (folder,) = cwd.glob("runs/*")
    return RunFolder(folder)


@pytest.fixture
def copy(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of it, for a test to damage."""
    folder = tmp_path / "runs" / finished.path.name
    shutil.copytree(finished.path, folder)
    return RunFolder(folder)


def test_a_finished_run_is_shown_with_its_results(finished: RunFolder) -> None:
    metrics = json.loads(finished.metrics.read_text(encoding="utf-8"))
    line = the_one(finished)
    assert (line.state, line.why) == ("finished", "")
    assert (line.epochs, line.steps) == (2, 10) == (metrics["epochs"], metrics["steps"])
    assert line.metric == "val/loss"
    assert line.best == metrics["best val/loss"]
    assert line.device
    assert line.seconds is not None
    assert 0 < line.seconds < 300


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_results(folder: RunFolder) -> None:
    folder.metrics.unlink()


def newest_cut_off(folder: RunFolder) -> None:
    folder.metrics.unlink()
    assert len(folder.checkpoints()) == 2
    cut(folder.checkpoints()[0])


def all_cut_off(folder: RunFolder) -> None:
    folder.metrics.unlink()
    for checkpoint in folder.checkpoints():
        cut(checkpoint)


def pruned(folder: RunFolder) -> None:
    folder.metrics.unlink()
    folder.pruned.write_text("{}")


@pytest.mark.parametrize(
    ("damage", "state", "why"),
    [
        (without_results, "resumable", ""),
        (newest_cut_off, "resumable", ""),
        (all_cut_off, "broken", "starts from scratch"),
        (pruned, "pruned", ""),
        (lambda folder: cut(folder.best), "broken", "best.ckpt is cut off"),
        (lambda folder: folder.metrics.write_text("{"), "broken", "JSONDecodeError"),
        (lambda folder: folder.config.unlink(), "broken", "config.yaml"),
        (lambda folder: folder.config.write_text("a: ["), "broken", "ParserError"),
    ],
)
def test_what_is_missing_or_cut_off_is_said(
    copy: RunFolder, damage: Callable[[RunFolder], Any], state: str, why: str
) -> None:
    damage(copy)
    line = the_one(copy)
    assert line.state == state
    assert why in line.why
    assert bool(line.why) is (state == "broken")


def test_what_was_killed_is_resumable_and_what_trains_is_live(tmp_path: Path) -> None:
    words = (*SMALL, "trainer.max_epochs=1000", "~callbacks.early_stopping", "save.every_n_steps=5")
    with subprocess.Popen(
        [*COMMAND, "train", *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        next(line for line in training.stdout if line.startswith("epoch 2/"))
        (line,) = listings(tmp_path / "runs")
        assert line.state == "live"
        training.kill()
        training.stdout.read()
    (line,) = listings(tmp_path / "runs")
    assert line.state == "resumable"
    assert line.best is not None
    assert line.epochs is not None
    assert 1 <= line.epochs < 1000
    assert training.returncode == (-signal.SIGKILL if sys.platform != "win32" else 1)


def test_the_one_used_last_comes_first(copy: RunFolder) -> None:
    newer = copy.path.with_name("newer")
    shutil.copytree(copy.path, newer)  # with the times of the original
    (newer / "metrics.json").touch()
    copied = copy.path.parent
    assert [Path(line.run).name for line in listings(copied)] == ["newer", copy.path.name]


def test_as_json_and_as_a_table(finished: RunFolder) -> None:
    where = f"runs_dir={finished.path.parent}"
    (line,) = json.loads(run(*COMMAND, "runs", where, "--json").stdout)
    assert line["state"] == "finished"
    table = run(*COMMAND, "runs", where).stdout
    assert f"{line['best']:.4f}" in table
    assert line["run"] in table


@pytest.mark.parametrize(
    ("arguments", "says"), [(["runs"], "is not known"), ([], "There is no folder runs")]
)
def test_a_mistake_is_one_sentence(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = run(*COMMAND, "runs", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_it_does_not_wait_for_torch() -> None:
    slow = "{'torch', 'lightning', 'matplotlib', 'numpy'}"
    code = f"import sys; import image_project.tools.runs; sys.exit(bool({slow} & set(sys.modules)))"
    assert run(sys.executable, "-c", code).returncode == 0
