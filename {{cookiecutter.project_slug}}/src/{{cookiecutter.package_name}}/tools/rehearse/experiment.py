"""An experiment's config, rehearsed as `train` would run it on each target."""

from dataclasses import replace

from lightning import LightningModule
from omegaconf import DictConfig

from ...engine import device
from ...engine.speed.fused import FusedOptimizers
from ...engine.trainer import build_data, build_task
from .findings import Verdict
from .parity import compare
from .policy import settings_for
from .rehearsal import Rehearser


class Experiment:
    """The objects of a config, built for each target as `train` builds them there."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.want = device.requested(cfg)
        self.here = device.probe()

    def on(self, target: str) -> Verdict:
        """Without the hardware; and, where it is here, with it."""
        want = replace(self.want, accelerator=target, require_accelerator=None)
        settled = device.apply(self.cfg, settings_for(target, want)[0])

        def build() -> LightningModule:
            return build_task(settled)

        rehearser = Rehearser(
            build,
            build_data(settled),
            trainer=self.cfg.trainer,
            callbacks=[FusedOptimizers()],
            accept=self.cfg.rehearse.accept,
            memory=self.cfg.memory,
        )
        verdict = rehearser.on(target, want)
        if verdict.verdict == "fails" or rehearser.taken is None or not getattr(self.here, target):
            return verdict
        if target == "cpu":
            return verdict
        precision = settled.trainer.precision
        return compare(verdict, build, rehearser.datamodule, rehearser.taken, precision)
