"""Sweeps whose runs are known beforehand: every combination, over seeds, over folds."""

import itertools
import statistics
import threading

from omegaconf import DictConfig

from ...engine.errors import UserError
from ...engine.run import Run, training_limits
from .command import Command
from .job import Job, claimed
from .results import Row, folder_of
from .space import Space, listed

METHODS = ("grid", "seeds", "kfold")


class Listed:
    """
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
            raise UserError(f"sweep={name} chooses {both.pop()} itself: leave it out.")
        self.repeats = [*repeats]  # over what results are averaged
        command = Command(command.flags, (*command.fixed, *fixed))
        choices = {key: listed(override) for key, override in space.items()} | repeats
        if not choices:
            raise UserError("Nothing is swept: add values, as in optimizer.lr=0.01,0.001.")
        first = {key: values[0] for key, values in choices.items()}
        for key, values in choices.items():
            for value in values:
                command.check(first | {key: value})
        points = [
            dict(zip(choices, values, strict=True))
            for values in itertools.product(*choices.values())
        ]
        runs = [(point, cfg, Run.of(cfg)) for point in points for cfg in [command.compose(point)]]
        names = sorted(run.folder.name for _, _, run in runs)
        self.folder = folder_of(cfg, name, [*names, training_limits(cfg)])
        self.jobs = [
            Job(
                number=number,
                point=point,
                run=run,
                cfg=composed,
                words=command.words(point),
                output=self.folder / "output" / f"{number}.txt",
            )
            for number, (point, composed, run) in enumerate(runs, 1)
        ]
        self.left = list(self.jobs)
        self.title = f"{len(self.jobs)} runs"

    def next(self) -> Job | None:
        with self.mutex:
            while self.left:
                job = self.left.pop(0)
                if claimed(job, self.folder):
                    return job
        return None

    def done(self, job: Job) -> None:
        job.release()  # the run's folder says the rest

    def rows(self) -> list[Row]:
        return [Row.of(job) for job in self.jobs]

    def importances(self) -> dict[str, float]:
        """How much of the variance the means of each key's values have."""
        metric = f"best {self.cfg.monitor}"
        rows = [row for row in self.rows() if metric in row.metrics]
        whole = statistics.pvariance([row.metrics[metric] for row in rows])
        if len(rows) < len(self.jobs) or not whole:
            return {}
        shares = {}
        for key in rows[0].point:
            groups: dict[str, list[float]] = {}
            for row in rows:
                groups.setdefault(row.point[key], []).append(row.metrics[metric])
            shares[key] = statistics.pvariance(map(statistics.fmean, groups.values())) / whole
        return shares


def _repeats(cfg: DictConfig) -> tuple[list[str], dict[str, list[str]]]:
    """What all runs have in common, and what each point is computed with in turn."""
    sweep = cfg.sweep
    if sweep.method == "seeds":
        if sweep.num_seeds < 2:
            raise UserError(f"sweep.num_seeds={sweep.num_seeds} is too small: use 2 or more.")
        return [], {"seed": [str(cfg.seed + i) for i in range(sweep.num_seeds)]}
    if sweep.method == "kfold":
        if sweep.num_folds < 2:
            raise UserError(f"sweep.num_folds={sweep.num_folds} is too small: use 2 or more.")
        if not {"num_folds", "fold"} <= set(cfg.data):
            raise UserError(
                f"{cfg.data._target_} has no folds: give it and its YAML num_folds and fold."
            )
        folds = [str(fold) for fold in range(sweep.num_folds)]
        return [f"data.num_folds={sweep.num_folds}"], {"data.fold": folds}
    return [], {}
