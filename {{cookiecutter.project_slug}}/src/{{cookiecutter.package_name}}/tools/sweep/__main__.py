"""Train many runs, each in a fresh process of `train`. The same command again resumes the sweep.

    python -m <package> sweep model.width=128,256 optimizer.lr=0.01,0.001  # every combination
    python -m <package> sweep sweep=seeds                      # mean and interval over seeds
    python -m <package> sweep sweep=kfold model.width=128,256  # cross-validation of both
    python -m <package> sweep sweep=optuna sweep.num_runs=50   # a search; needs the extra sweep
    python -m <package> sweep sweep=optuna 'optimizer.lr=tag(log,interval(0.001,0.1))'
    python -m <package> sweep sweep.num_workers=2 seed=1,2,3   # two at once, each on its GPU

All else on the command line is for `train`. Exit status 0: all is done; 1: a run has failed; 130 or
143: interrupted.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ...engine import cli
from ...engine.errors import UserError, did_you_mean
from ...engine.run import Signals
from .command import Command
from .fixed import METHODS, FixedSweep
from .results import show, write
from .space import read_space
from .workers import compute

log = logging.getLogger(__name__)

READ = {
    *("method", "space", "num_workers", "num_runs", "num_seeds", "num_folds", "seed"),
    *("sampler", "pruner"),
}


def plan(cfg: DictConfig, name: str, command: Command, swept: Sequence[str]) -> Any:
    """Return the sweep, a FixedSweep or a Study, without starting anything.

    Args:
        cfg: configs/sweep.yaml, composed with what is the same for all runs.
        name: of its folder; what `sweep=` chose.
        command: what is the same for all runs, as it was typed.
        swept: `model.width=128,256` and the like.
    """
    chosen = cfg.sweep
    if unread := set(chosen) - READ:
        key = unread.pop()
        raise UserError(f"Nothing reads sweep.{key}{did_you_mean(key, READ)}")
    if chosen.num_workers < 1:
        raise UserError(f"sweep.num_workers={chosen.num_workers} is too small. Use 1 or more.")
    space = read_space(chosen.space, swept, command.fixed)
    if chosen.method in METHODS:
        return FixedSweep(cfg, name, command, space)
    if chosen.method != "optuna":
        raise UserError(
            f"sweep.method={chosen.method} must be one of: {', '.join(METHODS)}, optuna."
        )
    from .study import Study

    return Study(cfg, name, command, space)


def sweep(runs: Any, num_workers: int) -> bool:
    """Compute the runs that are left, and write and show the results.

    Returns:
        Whether no run has failed.
    """
    log.info(f"{runs.title}; writing to {runs.folder}")
    with Signals() as signals:
        signals.deferred = True  # until the runs have saved and ended
        compute(runs, num_workers, signals)
        rows = runs.rows()
        write(runs, rows)
        show(runs, rows)
        if signals.received is not None:
            log.info("Interrupted. The same command resumes the sweep.")
            signals.exit()
    return not any(row.state == "failed" for row in rows)


def take_swept(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split off the arguments with several values, which Hydra takes only after -m."""
    parser = OverridesParser.create()
    one: list[str] = []
    several: list[str] = []
    for argument in arguments:
        try:
            is_swept = "=" in argument and parser.parse_override(argument).is_sweep_override()
        except HydraException:  # Hydra says what is wrong with it
            is_swept = False
        (several if is_swept else one).append(argument)
    return one, several


def main() -> None:
    arguments, swept = take_swept(sys.argv[1:])
    if {"-m", "--multirun"} & set(arguments):
        sys.exit("Remove -m: this command is for many runs already.")
    sys.argv[1:] = arguments

    def program(cfg: DictConfig) -> None:
        ours = ("sweep=", "sweep.", "+sweep.", "++sweep.", "~sweep.")
        # As they were typed: what ${hydra:...} is differs from run to run.
        overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
        command = Command(
            flags=tuple(argument for argument in arguments if argument not in overrides),
            fixed=tuple(override for override in overrides if not override.startswith(ours)),
        )
        name = str(HydraConfig.get().runtime.choices["sweep"])
        if not sweep(plan(cfg, Path(name).name, command, swept), cfg.sweep.num_workers):
            sys.exit(1)

    cli.run(program, "sweep")


if __name__ == "__main__":
    main()
