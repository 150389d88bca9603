"""The `train` command that the runs of a sweep have in common."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

import hydra
from omegaconf import DictConfig

from ...engine import cli
from ...engine.errors import UserError
from ...train import refuse_nonsense

PACKAGE = __name__.partition(".")[0]
Point = Mapping[str, str]  # what sets a run apart from the others: {"model.width": "128"}


@dataclass(frozen=True)
class Command:
    """As it was typed."""

    flags: tuple[str, ...] = ()  # --config-dir my_configs
    fixed: tuple[str, ...] = ()  # data.batch_size=64

    def compose(self, point: Point) -> DictConfig:
        """The config of a run, as its own process will compose it."""
        cfg = hydra.compose("train", [*self.fixed, *_overrides(point)])
        refuse_nonsense(cfg)
        if cfg.resume == "never":  # debug presets say so
            raise UserError("The runs of a sweep are found again: add resume=auto.")
        return cfg

    def check(self, point: Point) -> None:
        """Refuse what no run could be made of: an unknown key, a value of another kind."""
        self.compose(point)
        groups = [line for line in self.fixed if line.partition("=")[0] in cli.groups()]
        cli.check_types([*groups, *_overrides(point)], "train")

    def words(self, point: Point, *more: str) -> list[str]:
        """For a process of its own."""
        start = [sys.executable, "-m", f"{PACKAGE}.train", *self.flags, *self.fixed]
        return [*start, *_overrides(point), *more]


def _overrides(point: Point) -> list[str]:
    return [f"{key}={value}" for key, value in point.items()]
