"""An experiment's config, rehearsed with what `train` would build on each target."""

from dataclasses import replace

from lightning import LightningModule
from omegaconf import DictConfig

from ...engine import device
from ...engine.speed.fused import FusedOptimizers
from ...engine.trainer import allow_equal_hparam_names, build_data, build_task
from .findings import Verdict
from .parity import compare
from .policy import settings_for
from .rehearsal import Rehearser


class Experiment:
    """Rehearse a config for one target after the other."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.want = device.requested(cfg)
        self.here = device.probe()

    def on(self, target: str) -> Verdict:
        """Rehearse for `target`, and compare with the CPU if the target is here."""
        want = replace(self.want, accelerator=target, require_accelerator=None)
        resolved = device.apply(self.cfg, settings_for(target, want)[0])

        datamodule = build_data(resolved)

        def build() -> LightningModule:
            task = build_task(resolved)
            allow_equal_hparam_names(task, datamodule)
            return task

        rehearser = Rehearser(
            build,
            datamodule,
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
        precision = resolved.trainer.precision
        return compare(verdict, build, rehearser.datamodule, rehearser.taken, precision)
