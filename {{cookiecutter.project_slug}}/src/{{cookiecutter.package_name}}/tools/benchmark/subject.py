"""One experiment on one device: built anew for each loop by the factory of `train`, and run."""

import contextlib
import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ...engine.device import Settings
from ...engine.run import Run, RunFolder
from ...engine.trainer import Built, build
from . import hardware
from .bare import BareLoop
from .clock import Clock, Over, Timing

# A benchmark has its own end. The schedule is stretched with it, which changes no step's work. One
# batch is validated where a validation is due, so that callbacks which wait for a result get one.
TRAINER = {
    "max_epochs": 1_000_000,
    "max_steps": -1,
    "max_time": None,
    "fast_dev_run": False,
    "num_sanity_val_steps": 0,
}


class Subject:
    """An experiment that can be run in Lightning's loop and in a bare one.

    Args:
        cfg: configs/benchmark.yaml, composed with the overrides of a train command.
        settings: the device policy's answer.
    """

    def __init__(self, cfg: DictConfig, settings: Settings) -> None:
        self.settings = settings
        self.device = torch.device(settings.accelerator)
        plain: Any = OmegaConf.create(OmegaConf.to_container(cfg))  # takes new keys
        no_validation = cfg.trainer.limit_val_batches == 0
        plain.trainer.update({**TRAINER, "limit_val_batches": 0 if no_validation else 1})
        plain.update({"resume": "auto", "ckpt_path": None, "init_from": None})
        plain.seed = cfg.seed or 0  # of seed=null any
        self.cfg: DictConfig = plain
        self.compiled = False  # known when it has been built

    def project(self, clock: Clock) -> Timing:
        """Time what `train` does: Lightning's Trainer with the engine, callbacks and loggers."""

        def without_validation(built: Built) -> None:
            validation = built.trainer.fit_loop.epoch_loop.val_loop
            validation.run = clock.outside(validation.run)  # type: ignore[method-assign]

        return self._timed(clock, without_validation)

    def bare(self, clock: Clock) -> Timing:
        """Time the same steps in a loop written by hand."""
        return self._timed(clock, lambda built: _instead(built, BareLoop.run))

    def once(self, use: Callable[[BareLoop], None]) -> None:
        """Call `use` where the bare loop would run."""

        def look(loop: BareLoop) -> None:
            use(loop)
            raise Over

        self._fit(lambda built: _instead(built, look))

    def _timed(self, clock: Clock, prepare: Callable[[Built], None]) -> Timing:
        def watched(built: Built) -> None:
            clock.watch(built.task)
            prepare(built)

        with clock.running():
            self._fit(watched)
        return clock.timing()

    def _fit(self, prepare: Callable[[Built], None]) -> None:
        gc.collect()  # the loop before, whose parts refer to each other
        hardware.reset_memory(self.device)
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder, _quietly():
            run = Run(self.cfg, self.settings, RunFolder(Path(folder)))
            built = build(run)
            self.compiled = built.compiled
            prepare(built)
            with run.signals, contextlib.suppress(Over):
                built.trainer.fit(built.task, built.datamodule)


def _instead(built: Built, use: Callable[[BareLoop], None]) -> None:
    """Let `fit` do this in place of Lightning's loop, once everything is on the device."""

    def run() -> None:
        use(BareLoop(built.trainer, built.task))

    built.trainer.fit_loop.run = run  # type: ignore[method-assign]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide the bar and the lines of each epoch, but not warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        with (
            Path(os.devnull).open("w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):
            yield
    finally:
        logging.disable(before)
