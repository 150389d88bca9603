"""A sweep that is killed, with its runs or without them, leaves the table of one that was not."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SMALL = (
    "trainer.max_epochs=6",
    "trainer.limit_train_batches=20",
    "trainer.limit_val_batches=3",
    "trainer.limit_test_batches=2",
    "save.every_n_steps=10",
    "show=progress",
)
KINDS = {
    "grid": ("model.width=16,32", "optimizer.lr=0.01,0.001"),
    "workers": ("model.width=16,32", "optimizer.lr=0.01,0.001", "sweep.num_workers=2"),
    "seeds": ("sweep=seeds", "sweep.num_seeds=4"),
    "kfold": ("sweep=kfold", "sweep.num_folds=4"),
    "optuna": (
        "sweep=optuna",
        "sweep.num_runs=8",
        "sweep.sampler.n_startup_trials=3",
        "sweep.pruner.n_startup_trials=2",
        "sweep.pruner.n_warmup_steps=1",
    ),
}
KILLS = 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no such signals"),
]


class Sweeps:
    """A sweep command in a folder, given again and again."""

    def __init__(self, folder: Path, words: tuple[str, ...]) -> None:
        folder.mkdir()
        self.folder = folder
        self.command = [sys.executable, "-m", "image_project", "sweep", *words, *SMALL]
        self.env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(self) -> "subprocess.Popen[bytes]":
        with (self.folder / "output.txt").open("ab") as output:
            return subprocess.Popen(
                self.command, cwd=self.folder, env=self.env, stdout=output, stderr=output
            )

    def table(self) -> dict[str, Any]:
        (written,) = self.folder.glob("runs/sweeps/*/sweep.json")
        return dict(json.loads(written.read_text(encoding="utf-8")))


def kill(sweep: "subprocess.Popen[bytes]", what: str) -> None:
    listed = ["ps", "-o", "pid=", "--ppid", str(sweep.pid)]
    runs = subprocess.run(listed, capture_output=True, text=True, check=False).stdout.split()
    if what == "stopped":
        sweep.send_signal(signal.SIGTERM)
    elif what != "run":
        sweep.kill()
    if what != "run":
        sweep.wait(60)
    for run in runs if what in ("run", "both") else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(run), signal.SIGKILL)


@pytest.mark.parametrize("kind", KINDS)
def test_kills_do_not_change_the_table_of_a_sweep(tmp_path: Path, kind: str) -> None:
    whole = Sweeps(tmp_path / "whole", KINDS[kind])
    begun = time.monotonic()
    assert whole.start().wait(1200) == 0
    seconds = time.monotonic() - begun
    killed, dice = Sweeps(tmp_path / "killed", KINDS[kind]), random.Random(kind)
    faults = [dice.choice(["sweep", "run", "both", "stopped"]) for _ in range(KILLS)]
    for fault in faults:
        sweep = killed.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            sweep.wait(dice.uniform(0.1, 0.4) * seconds)
        kill(sweep, fault)
        if fault == "run" and sweep.poll() is None:  # which it starts again by itself
            time.sleep(0.1 * seconds)
            kill(sweep, "sweep")
    assert killed.start().wait(1200) == 0
    for row, expected in zip(killed.table()["runs"], whole.table()["runs"], strict=True):
        assert row == expected
    assert killed.table() == whole.table()
