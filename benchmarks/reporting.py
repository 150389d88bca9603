"""What the bar and the logs of a run cost: the project's own steps with them and without, in turns.

    python benchmarks/reporting.py my_lightning_project experiment=gpt2_small data.path=texts

In a terminal of its own (a pty), so that the bar is drawn. `with` is the default; `without` has no
logger, bar or learning rate, and logs no step. The ratios of each round count: 0.98 is 2% slower.
"""

import argparse
import contextlib
import importlib
import json
import logging
import os
import pty
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

WITHOUT = ("~logger.csv", "~callbacks.progress", "~callbacks.learning_rate")


def subjects(package: str, overrides: list[str]) -> dict[str, Any]:
    from hydra import compose, initialize_config_module

    device = importlib.import_module(f"{package}.device")
    subject = importlib.import_module(f"{package}.benchmark.subject")
    subject._quietly = contextlib.nullcontext  # the bar is the point
    made = {}
    with initialize_config_module(f"{package}.configs", version_base="1.3"):
        for way, more in {"with": (), "without": WITHOUT, "with again": ()}.items():
            cfg = compose("benchmark", [*overrides, *more])
            if more:
                cfg.trainer.log_every_n_steps = 10**9
            made[way] = subject.Subject(cfg, device.choose(device.request(cfg), device.probe()))
    return made


def measure(package: str, overrides: list[str], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each way and round."""
    clock = importlib.import_module(f"{package}.benchmark.clock").Clock
    made = subjects(package, overrides)
    found: dict[str, list[float]] = {way: [] for way in made}
    for turn in range(rounds + 1):  # the first one warms up
        for way in [*made] if turn % 2 else [*reversed(made)]:
            subject = made[way]
            timing = subject.project(clock(subject.device, max(2, steps // 10), steps))
            if turn:
                found[way].append(timing.seconds / timing.steps)
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
