"""What the bar and the logs of a run cost: its steps with them and without, in turns.

    python benchmarks/reporting.py my_lightning_project experiment=gpt2_small data.path=texts

In a terminal of its own (a pty), so that the bar is drawn. `with` is the default; `without` has no
logger, bar or learning rate, and logs no step. The ratios of each round count: 0.98 is 2% slower.
"""

import argparse
import json
import logging
import os
import pty
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

from built import StepClock, build

WAYS = {
    "with": [],
    "without": [
        *("~logger", "~show.progress", "~show.learning_rate", "~show.curves"),
        "trainer.log_every_n_steps=1000000000",
    ],
    "with again": [],
}


def seconds_per_step(package: str, overrides: list[str], steps: int) -> float:
    warm_up = max(2, steps // 10)
    clock = StepClock(warm_up)
    length = (
        "trainer.max_epochs=1000000",
        f"trainer.max_steps={warm_up + steps}",
        "trainer.limit_val_batches=0",
        "+trainer.num_sanity_val_steps=0",
    )
    with tempfile.TemporaryDirectory() as folder:
        run, built = build(package, [*length, *overrides], Path(folder))
        built.trainer.callbacks.append(clock)
        with run.signals:
            built.trainer.fit(built.task, built.datamodule)
    return clock.seconds_per_step


def measure(package: str, overrides: list[str], rounds: int, steps: int) -> dict[str, list[float]]:
    """Return the seconds a step of each way and round."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):  # the first one warms up
        for way in [*WAYS] if turn % 2 else [*reversed(WAYS)]:
            took = seconds_per_step(package, [*overrides, *WAYS[way]], steps)
            if turn:
                found[way].append(took)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", help="the generated project's")
    parser.add_argument("overrides", nargs="*", help="of train")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", type=Path, default=Path("reporting.json"))
    asked = parser.parse_intermixed_args()
    if "IN_A_TERMINAL" not in os.environ:
        os.environ["IN_A_TERMINAL"] = "yes"
        if status := os.waitstatus_to_exitcode(pty.spawn([sys.executable, *sys.argv])):
            sys.exit(status)
        print()
        report(json.loads(asked.json.read_text(encoding="utf-8")))
        return
    warnings.simplefilter("ignore")
    logging.basicConfig(level=logging.INFO)
    found = measure(asked.package, asked.overrides, asked.rounds, asked.steps)
    asked.json.write_text(json.dumps(found), encoding="utf-8")


def report(found: dict[str, list[float]]) -> None:
    for way, seconds in found.items():
        pairs = [a / b for a, b in zip(found["without"], seconds, strict=True)]
        print(
            f"{way:12}{1000 * statistics.median(seconds):10.2f} ms a step; speed"
            f" {statistics.median(pairs):.3f} ({min(pairs):.3f} to {max(pairs):.3f}) of without"
        )


if __name__ == "__main__":
    main()
