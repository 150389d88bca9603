"""An experiment's config, rehearsed as `train` would run it on each target."""

from dataclasses import replace

from hydra.utils import instantiate
from lightning import LightningModule
from omegaconf import DictConfig

from ...engine import device
from ...engine.run import plain_config
from .findings import Verdict
from .parity import compare
from .policy import choice_for
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
        settled = device.apply(self.cfg, choice_for(target, want)[0])

        def build() -> LightningModule:
            task: LightningModule = instantiate(settled.task)
            task.save_hyperparameters(plain_config(self.cfg))
            return task

        rehearser = Rehearser(
            build,
            instantiate(settled.data),
            trainer=self.cfg.trainer,
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
