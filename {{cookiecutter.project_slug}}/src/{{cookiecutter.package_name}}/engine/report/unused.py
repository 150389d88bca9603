"""Log which parts of the config have no effect, since a changed value there changes nothing."""

import logging
from typing import Any

import lightning as L
from hydra.utils import get_object
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from ..run import unused_groups

log = logging.getLogger(__name__)


class UnusedConfig(Callback):
    """Compares the config with the optimizers that the task has built.

    Args:
        cfg: the run's, not resolved.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.groups = unused_groups(cfg)
        optimizer = {} if "optimizer" in self.groups else cfg.get("optimizer")
        self.optimizer: Any = OmegaConf.to_container(optimizer or OmegaConf.create(), resolve=True)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        unused = self.groups + unused_options(self.optimizer, trainer.optimizers)
        if unused:
            log.info(f"{type(pl_module).__name__} does not use of the config: {', '.join(unused)}")


def unused_options(config: dict[str, Any], optimizers: list[Optimizer]) -> list[str]:
    """Return `optimizer`, or those of its options that no optimizer was built with."""
    kind = get_object(config["_target_"]) if "_target_" in config else None
    if not isinstance(kind, type):  # a function, that builds anything
        return []
    built = [one for one in optimizers if isinstance(one, kind)]
    if not built:
        return ["optimizer"]
    return [
        f"optimizer.{key}={value}"
        for key, value in config.items()
        if all(_plain(one.defaults.get(key, value)) != _plain(value) for one in built)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
