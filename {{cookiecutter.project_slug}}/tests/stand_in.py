"""The real command `sweep`, with this in place of `train`, which takes seconds to start.

    python stand_in.py SECONDS [words of a sweep]

A run takes SECONDS, notes that it has begun, and its result follows from its config; with seed=13
it fails.
"""

import json
import sys
import time
from pathlib import Path

from filelock import FileLock


def sweep(seconds: str) -> None:
    from {{ cookiecutter.package_name }}.run import Run, how_long
    from {{ cookiecutter.package_name }}.sweep.__main__ import main
    from {{ cookiecutter.package_name }}.sweep.command import Command, Point

    def words(self: Command, point: Point, *_: str) -> list[str]:
        cfg = self.compose(point)
        distance = abs(cfg.optimizer.lr - 0.01) + cfg.optimizer.weight_decay / 100 + cfg.seed / 1000
        result = {"epochs": 1, "steps": 1, "best val/loss": distance, "test/loss": 2 * distance}
        result |= {"test/acc": 0.5, "baseline/test_loss": 3.0}
        told = json.dumps(result | {"how_long": how_long(cfg)})
        folder = str(Run.of(cfg).folder)
        return [sys.executable, __file__, "run", folder, seconds, "bad" if cfg.seed == 13 else told]

    Command.words = words  # type: ignore[method-assign]
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
        sweep(sys.argv.pop(1))
