"""The real command `sweep`, with this in place of `train`, which takes seconds to start.

    python stand_in.py SECONDS [words of a sweep]

A run takes SECONDS, notes that it has begun, and its result follows from its config; with seed=13
it fails.
"""

import functools
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from filelock import FileLock


def replace_train(seconds: float) -> Any:
    """Return what to put in place of Command.argv."""
    from image_project.engine.run import run_folder, training_limits

    def argv(self: Any, overrides: Any, *_: str) -> list[str]:
        cfg = self.compose(overrides)
        distance = abs(cfg.optimizer.lr - 0.01) + cfg.optimizer.weight_decay / 100 + cfg.seed / 1000
        metrics = {"epochs": 1, "steps": 1, "best val/loss": distance, "test/loss": 2 * distance}
        metrics |= {"test/acc": 0.5, "baseline/test_loss": 3.0}
        written = json.dumps({**metrics, "limits": training_limits(cfg), "checkpoint": None})
        folder = str(run_folder(cfg).path)
        result = "bad" if cfg.seed == 13 else written
        return [sys.executable, __file__, "run", folder, str(seconds), result]

    return argv


def sweep(seconds: float) -> None:
    from image_project.tools.sweep.__main__ import main
    from image_project.tools.sweep.command import Command

    identity: Any = importlib.import_module("image_project.engine.run.identity")
    identity.essence = functools.cache(identity.essence)
    Command.argv = replace_train(seconds)  # type: ignore[method-assign]
    main()


def run(folder: Path, seconds: float, result: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        with (folder / "begun").open("a") as file:
            file.write("x")
        time.sleep(seconds)
        if result == "bad":
            sys.exit("it went wrong")
        (folder / "metrics.part").write_text(result)
        (folder / "metrics.part").replace(folder / "metrics.json")


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
    else:
        sweep(float(sys.argv.pop(1)))
