"""The `train` command that the runs of a sweep have in common."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import hydra
from omegaconf import DictConfig

from ...engine import ROOT, cli
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
        """Return the config of a run, as its own process will compose it."""
        cfg = hydra.compose("train", [*self.fixed, *_typed(overrides)])
        validate(cfg)
        if cfg.resume == "never":  # debug presets say so
            raise UserError("A sweep finds its runs again by their folders. Add resume=auto.")
        return cfg

    def check_types(self, space: Mapping[str, Sequence[str]]) -> None:
        """Refuse a value of another kind than the one it replaces.

        Args:
            space: the values of each key.
        """
        groups = [line for line in self.fixed if line.partition("=")[0] in cli.groups()]
        groups += [f"{key}={values[0]}" for key, values in space.items() if key in cli.groups()]
        others = {key: values for key, values in space.items() if key not in cli.groups()}
        typed = [f"{key}={value}" for key, values in others.items() for value in values]
        cli.check_types([*groups, *typed], "train")

    def argv(self, overrides: Overrides, *more: str) -> list[str]:
        """Return the command line of a process that trains this run."""
        start = [sys.executable, "-m", ROOT, "train", *self.flags, *self.fixed]
        return [*start, *_typed(overrides), *more]


def _typed(overrides: Overrides) -> list[str]:
    return [f"{key}={value}" for key, value in overrides.items()]
