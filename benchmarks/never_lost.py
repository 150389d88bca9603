"""What it costs a step of the default job that its run is never lost.

    python benchmarks/never_lost.py my_lightning_project    # where the generated project is installed

The same job with and without the parts that do it: the seed before each batch, the look at the clock,
the checkpoints to go on from, the files written whole, the look for nan. In one process, in turns; the
job against itself gives the noise, and what lies inside it is a tie.
"""

import importlib
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

EPOCHS = 15
ROUNDS = 8
JOBS = ("without", "with", "without again")


def microseconds_per_step(package: str, never_lost: bool) -> float:
    """Of one training of the default job, from its first batch to its last."""
    import torch
    from hydra import compose, initialize_config_module
    from hydra.utils import instantiate
    from lightning import Callback, seed_everything

    class Clock(Callback):
        def on_train_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_end(self, *_: Any) -> None:
            if torch.accelerator.is_available():
                torch.accelerator.synchronize()
            self.seconds = time.perf_counter() - self.started

    def module(name: str) -> Any:
        return importlib.import_module(f"{package}.{name}")

    with tempfile.TemporaryDirectory() as folder, module("stopping").Stop() as stop:
        with initialize_config_module(f"{package}.configs", version_base="1.3"):
            cfg = compose("train", [f"trainer.max_epochs={EPOCHS}", f"run_dir={folder}"])
        device = module("device")
        settled = device.settle(cfg, device.choose(device.request(cfg), device.probe()))
        seed_everything(cfg.seed, workers=True, verbose=False)
        datamodule, task, clock = instantiate(settled.data), instantiate(settled.task), Clock()
        callbacks = [*instantiate(settled.callbacks).values(), clock]
        loggers = list(instantiate(settled.logger).values())
        trainer = instantiate(settled.trainer, callbacks=callbacks, logger=loggers)
        if never_lost:
            run = module("run").Run(Path(folder))
            loop = module("resume").EpochLoop
            trainer.fit_loop.epoch_loop = loop(
                trainer,
                run,
                seed=cfg.seed,
                **cfg.save,
                how_long={},
                stop=stop,
                device_name="",
                own=True,
            )
            trainer.strategy.checkpoint_io = module("checkpoint").CheckpointIO()
        trainer.fit(task, datamodule)
        return 1e6 * clock.seconds / trainer.global_step


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    package = sys.argv[1]
    microseconds_per_step(package, never_lost=True)  # warm up
    found: dict[str, list[float]] = {job: [] for job in JOBS}
    for _ in range(ROUNDS):
        for job in JOBS:
            found[job].append(microseconds_per_step(package, never_lost=job == "with"))
    for job, times in found.items():
        print(
            f"{job:14} {statistics.median(times):7.0f} us a step, {min(times):.0f} to {max(times):.0f}"
        )
    for name, job in (("price", "with"), ("noise", "without again")):
        ratios = [a / b - 1 for a, b in zip(found[job], found["without"], strict=True)]
        print(f"{name}: {statistics.median(ratios):+.1%}, {min(ratios):+.1%} to {max(ratios):+.1%}")


if __name__ == "__main__":
    main()
