"""The `train` command that the runs of a sweep have in common."""

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from ...engine import ROOT
from ...engine.config import check, without_changes
from ...engine.errors import UserError
from ...engine.run import validate

Overrides = Mapping[str, str]  # what sets a run apart from the others: {"model.width": "128"}


@dataclass(frozen=True)
class Command:
    """The words that every run gets, as they were typed.

    Args:
        flags: `--config-dir my_configs`.
        fixed: `data.batch_size=64`.
    """

    flags: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()

    def compose(self, overrides: Overrides) -> DictConfig:
        """Return the config of a run, as its own process will compose it.

        Raises:
            UserError: the run would be refused, or not be found again.
        """
        cfg = hydra.compose("train", [*self.fixed, *_typed(overrides)], return_hydra_config=True)
        ours, asked = HydraConfig.instance().cfg, cfg.hydra
        asked.job.name = "train"
        HydraConfig.instance().set_config(cfg)  # of this run: ${hydra:runtime.choices.model}
        try:
            with open_dict(cfg):
                del cfg.hydra
            if "${now:" in str(
                {key: cfg._get_node(key) for key in cfg if key not in ("show", "logger")}
            ):
                raise UserError("A sweep finds its runs again by their folders. Remove ${now:...}.")
            _resolve_hydra(cfg)
        finally:
            HydraConfig.instance().cfg = ours
        check(cfg, _base(tuple(asked.runtime.choices.items())), asked)
        validate(cfg)
        if cfg.resume == "never":  # debug presets say so
            raise UserError("A sweep finds its runs again by their folders. Add resume=auto.")
        return cfg

    def argv(self, overrides: Overrides, *more: str) -> list[str]:
        """Return the command line of a process that trains this run."""
        start = [sys.executable, "-m", ROOT, "train", *self.flags, *self.fixed]
        return [*start, *_typed(overrides), *more]


def _typed(overrides: Overrides) -> list[str]:
    return [f"{key}={value}" for key, value in overrides.items()]


@functools.cache  # the same for all runs, unless they choose other groups
def _base(choices: tuple[tuple[str, str | None], ...]) -> DictConfig:
    return without_changes("train", dict(choices))


def _resolve_hydra(node: Any) -> None:
    """Put the values of `${hydra:...}` in their places, which depend on what a run is given."""
    for key in range(len(node)) if OmegaConf.is_list(node) else node:
        child = node._get_node(key)
        if OmegaConf.is_config(child) and not child._is_none() and not child._is_interpolation():
            _resolve_hydra(child)
        elif "${hydra:" in str(child._value()):
            node[key] = node[key]
