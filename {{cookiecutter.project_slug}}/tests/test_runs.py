"""The listing of runs says what became of each, and asks nothing but their files."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, Compose
from test_commands import command

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.run import Run
from {{ cookiecutter.package_name }}.runs import Listing, listings
from {{ cookiecutter.package_name }}.train import train


def the_one(run: Run) -> Listing:
    (line,) = (line for line in listings(run.folder.parent) if line.run == str(run.folder))
    return line


@pytest.fixture
def copy(finished: tuple[Run, dict[str, float]], tmp_path: Path) -> Run:
    """A finished run, to be robbed of something."""
    folder = tmp_path / "runs" / finished[0].folder.name
    shutil.copytree(finished[0].folder, folder)
    return Run(folder)


def test_a_finished_run_is_shown_with_its_results(
    finished: tuple[Run, dict[str, float]],
) -> None:
    run, metrics = finished
    line = the_one(run)
    assert (line.state, line.why) == ("finished", "")
    assert (line.epochs, line.steps) == (metrics["epochs"], metrics["steps"])
    assert line.metric == "val/loss"
    assert line.best == metrics["best val/loss"]
    assert line.device
    assert line.seconds is not None
    assert 0 < line.seconds < 300


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_results(run: Run) -> None:
    run.metrics.unlink()


def newest_cut_off(run: Run) -> None:
    run.metrics.unlink()
    shutil.copy(run.checkpoints()[0], run.checkpoint(1))
    cut(run.checkpoints()[0])


def all_cut_off(run: Run) -> None:
    run.metrics.unlink()
    for checkpoint in run.checkpoints():
        cut(checkpoint)


@pytest.mark.parametrize(
    ("rob", "state", "why"),
    [
        (without_results, "resumable", ""),
        (newest_cut_off, "resumable", ""),
        (all_cut_off, "broken", "begins anew"),
        (lambda run: cut(run.best), "broken", "best.ckpt is cut off"),
        (lambda run: run.metrics.write_text("{"), "broken", "JSONDecodeError"),
        (lambda run: run.config.unlink(), "broken", "config.yaml"),
        (lambda run: run.config.write_text("a: ["), "broken", "ParserError"),
    ],
)
def test_what_is_missing_or_cut_off_is_said(
    copy: Run, rob: Callable[[Run], Any], state: str, why: str
) -> None:
    rob(copy)
    line = the_one(copy)
    assert line.state == state
    assert why in line.why
    assert bool(line.why) is (state == "broken")


def test_what_was_killed_is_resumable_and_what_trains_is_live(tmp_path: Path) -> None:
    words = (*QUICK, "trainer.max_epochs=1000", "~callbacks.early_stopping", "save.every_n_steps=5")
    with subprocess.Popen(
        [sys.executable, "-m", f"{package.__name__}.train", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
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


def test_the_one_used_last_comes_first(config: Compose, finished: tuple[Run, Any]) -> None:
    cfg = config("trainer.max_epochs=1", "trainer.limit_train_batches=2")
    runs_dir = Path(cfg.runs_dir)
    shutil.copytree(finished[0].folder, runs_dir / finished[0].folder.name)
    train(cfg)
    assert listings(runs_dir)[0].run == str(Run.of(cfg).folder)


def test_as_json_and_as_a_table(finished: tuple[Run, Any], tmp_path: Path) -> None:
    where = f"runs_dir={finished[0].folder.parent}"
    as_json = command("runs", where, "--json", cwd=tmp_path)
    (line,) = json.loads(as_json.stdout)
    assert line["state"] == "finished"
    table = command("runs", where, cwd=tmp_path).stdout
    assert f"{line['best']:.4f}" in table
    assert line["run"] in table


@pytest.mark.parametrize(
    ("arguments", "says"), [(["runs"], "says nothing here"), ([], "There is no folder runs")]
)
def test_a_mistake_is_one_sentence(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = command("runs", *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_it_does_not_wait_for_torch() -> None:
    slow = "{'torch', 'lightning', 'matplotlib', 'numpy'}"
    code = f"import sys; import {package.__name__}.runs; sys.exit(bool({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
