"""One experiment on one device: built anew for each loop, as `train` builds it, and run."""

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from ...engine import device
from ...engine.run import Run
from ...engine.signals import Stop
from ...train import build
from . import hardware
from .bare import BareLoop
from .clock import Clock, Over, Timing

# A benchmark has its own end. The schedule is stretched with it, which changes no step's work. One
# batch is validated where a validation is due, so that what waits for its result gets one.
TRAINER = {
    "max_epochs": 1_000_000,
    "max_steps": -1,
    "max_time": None,
    "fast_dev_run": False,
    "num_sanity_val_steps": 0,
}


class Subject:
    """What is measured."""

    def __init__(self, cfg: DictConfig, choice: device.Settings) -> None:
        self.choice = choice
        self.device = torch.device(choice.accelerator)
        plain: Any = OmegaConf.create(OmegaConf.to_container(cfg))  # takes new keys
        no_validation = cfg.trainer.limit_val_batches == 0
        plain.trainer.update({**TRAINER, "limit_val_batches": 0 if no_validation else 1})
        plain.update({"resume": "auto", "ckpt_path": None, "init_from": None})
        self.cfg: DictConfig = plain
        self.compiled = False  # known when it has been built

    def project(self, clock: Clock) -> Timing:
        """Its steps in Lightning's Trainer, with this project's loop, callbacks and loggers."""

        def as_it_is(trainer: Trainer, task: LightningModule) -> None:
            validation = trainer.fit_loop.epoch_loop.val_loop
            validation.run = clock.outside(validation.run)  # type: ignore[method-assign]

        return self._timed(clock, as_it_is)

    def bare(self, clock: Clock, *, same_noise: bool = False) -> Timing:
        """Its steps in a loop written by hand."""

        def by_hand(trainer: Trainer, task: LightningModule) -> None:
            def run() -> None:
                BareLoop(trainer, task, self.cfg.seed, same_noise=same_noise).run()

            trainer.fit_loop.run = run  # type: ignore[method-assign]

        return self._timed(clock, by_hand)

    def once(self, use: Callable[[BareLoop], None]) -> None:
        """Call `use` where the bare loop would run."""

        def by_hand(trainer: Trainer, task: LightningModule) -> None:
            def run() -> None:
                use(BareLoop(trainer, task, self.cfg.seed))
                raise Over

            trainer.fit_loop.run = run  # type: ignore[method-assign]

        self._fit(by_hand)

    def _timed(self, clock: Clock, prepare: Callable[[Trainer, LightningModule], None]) -> Timing:
        def watched(trainer: Trainer, task: LightningModule) -> None:
            clock.watch(task)
            prepare(trainer, task)

        with clock.running():
            self._fit(watched)
        return clock.timing()

    def _fit(self, prepare: Callable[[Trainer, LightningModule], None]) -> None:
        gc.collect()  # what the loop before has left, whose parts refer to each other
        hardware.forget_memory(self.device)
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder, Stop() as stop, _quietly():
            built = build(self.cfg, self.choice, Scratch(folder), stop)
            self.compiled = built.compiled
            prepare(built.trainer, built.task)
            with contextlib.suppress(Over):
                built.trainer.fit(built.task, built.datamodule)


class Scratch(Run):
    """A run's folder for as long as it is timed: no config.yaml, no log.txt."""

    def __init__(self, folder: str) -> None:
        super().__init__(Path(folder))

    def start(self, cfg: DictConfig) -> None:
        """Nothing: nobody will look for it."""


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the bar or the lines of each epoch; warnings are shown."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.disable(before)
