"""What exact resume costs a step of the default job, on Lightning's stock loop.

    python benchmarks/never_lost.py my_lightning_project    # where the generated project is installed

The same job with the callback `Resume` and without it: the seeds of each batch, the resumable loader,
the checkpoints, the files that are written whole, the watch for nan. (The loader also fetches the rows
of tensors a batch at a time, which saves time where data are in memory.) In one process, in turns;
the job compared with itself gives the noise, and a difference within it is a tie. `--fast-loop`
measures the default loop, which needs the callback's loader, with and without checkpoints instead.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from built import StepClock, build

JOBS = ("without", "with", "without again")
QUIET = ("~show", "+trainer.enable_progress_bar=false")


def microseconds_per_step(
    package: str, overrides: list[str], *, never_lost: bool, fast_loop: bool
) -> float:
    """Train the default job once, from its first batch to its last."""
    from lightning.fabric.plugins import TorchCheckpointIO

    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        loop = f"fast_loop={str(fast_loop).lower()}"
        run, built = build(package, [*QUIET, loop, *overrides], Path(folder))
        trainer = built.trainer
        if not never_lost and not fast_loop:
            resume, *others = trainer.callbacks
            assert type(resume).__name__ == "Resume"
            trainer.callbacks = others
            trainer.strategy.checkpoint_io = TorchCheckpointIO()
        elif not never_lost:
            trainer.callbacks[0].enabled = False
        trainer.callbacks.append(clock)
        with run.signals:
            trainer.fit(built.task, built.datamodule)
    return 1e6 * clock.seconds_per_step


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", help="the generated project's")
    parser.add_argument("overrides", nargs="*", help="of the project: trainer.accelerator=cpu")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--fast-loop", action="store_true")
    asked = parser.parse_intermixed_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    overrides = [f"trainer.max_epochs={asked.epochs}", *asked.overrides]
    found: dict[str, list[float]] = {job: [] for job in JOBS}
    for turn in range(asked.rounds + 1):  # the first one warms up
        for job in JOBS:
            took = microseconds_per_step(
                asked.package, overrides, never_lost=job == "with", fast_loop=asked.fast_loop
            )
            if turn:
                found[job].append(took)
    for job, times in found.items():
        low, median, high = min(times), statistics.median(times), max(times)
        print(f"{job:14} {median:7.0f} us a step, {low:.0f} to {high:.0f}")
    for name, job in (("cost", "with"), ("noise", "without again")):
        ratios = [a / b - 1 for a, b in zip(found[job], found["without"], strict=True)]
        print(f"{name}: {statistics.median(ratios):+.1%}, {min(ratios):+.1%} to {max(ratios):+.1%}")


if __name__ == "__main__":
    sys.exit(main())
