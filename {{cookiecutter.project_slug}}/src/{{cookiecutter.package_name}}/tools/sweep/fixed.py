"""Sweeps whose runs are known in advance: every combination, over seeds, over folds."""

import itertools
import threading
from importlib.util import find_spec

from omegaconf import DictConfig

from ...engine.errors import UserError
from ...engine.run import run_folder, training_limits
from .command import Command
from .job import Job
from .results import Row, sweep_folder
from .space import Space, values_of

METHODS = ("grid", "seeds", "kfold")


class FixedSweep:
    """A list of runs.

    Args:
        cfg: configs/sweep.yaml with what is the same for all runs.
        name: of its folder.
        command: what is the same for all runs.
        space: what is not.
    """

    def __init__(self, cfg: DictConfig, name: str, command: Command, space: Space) -> None:
        self.cfg = cfg
        self.mutex = threading.Lock()
        fixed, repeats = _repeats(cfg)
        if both := set(repeats) & {override.key_or_group for override in space.values()}:
            key = both.pop()
            raise UserError(f"sweep={name} chooses {key} itself. Remove {key} from the command.")
        self.repeats = [*repeats]
        command = Command(command.flags, (*command.fixed, *fixed))
        values = {key: values_of(override) for key, override in space.items()} | repeats
        if not values:
            raise UserError("Nothing is swept: add values, as in optimizer.lr=0.01,0.001.")
        combinations = [
            dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())
        ]
        configs = [command.compose(overrides) for overrides in combinations]
        runs = [run_folder(config) for config in configs]
        names = sorted(run.path.name for run in runs)
        self.folder = sweep_folder(cfg, name, [*names, training_limits(cfg)])
        self.jobs = [
            Job(
                number=number,
                overrides=overrides,
                run=run,
                cfg=config,
                argv=command.argv(overrides),
                output=self.folder / "output" / f"{number}.txt",
            )
            for number, (overrides, config, run) in enumerate(
                zip(combinations, configs, runs, strict=True), 1
            )
        ]
        self.left = list(self.jobs)
        self.title = f"{len(self.jobs)} runs"

    def next(self) -> Job | None:
        with self.mutex:
            while self.left:
                job = self.left.pop(0)
                if job.take(self.folder):
                    return job
        return None

    def done(self, job: Job) -> None:
        job.release()  # the run's folder says the rest

    def rows(self) -> list[Row]:
        return [job.row() for job in self.jobs]

    def draw(self) -> None:
        """Nothing: the table says it all."""


def _repeats(cfg: DictConfig) -> tuple[list[str], dict[str, list[str]]]:
    """Return what all runs have in common, and with which values each choice is repeated."""
    sweep = cfg.sweep
    if sweep.method == "seeds":
        if sweep.num_seeds < 2:
            raise UserError(f"sweep.num_seeds={sweep.num_seeds} is too small. Use 2 or more.")
        if find_spec("scipy") is None:  # for the interval
            raise UserError("sweep=seeds needs SciPy: pip install -e '.[sweep]'")
        if cfg.seed is None:
            raise UserError("sweep=seeds counts from the seed. Remove seed=null.")
        return [], {"seed": [str(cfg.seed + i) for i in range(sweep.num_seeds)]}
    if sweep.method == "kfold":
        if sweep.num_folds < 2:
            raise UserError(f"sweep.num_folds={sweep.num_folds} is too small. Use 2 or more.")
        if not {"num_folds", "fold"} <= set(cfg.data):
            raise UserError(
                f"{cfg.data._target_} has no folds: add num_folds and fold to it and to its YAML."
            )
        folds = [str(fold) for fold in range(sweep.num_folds)]
        return [f"data.num_folds={sweep.num_folds}"], {"data.fold": folds}
    return [], {}
