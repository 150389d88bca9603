"""A search by Optuna, whose study is a database in the sweep's folder.

Each trial is a run. Its values follow from the seed, its number and the trials before, so a study
that was killed continues with the same values. A worker holds a lock while it computes a trial. A
running trial without a lock belongs to a worker that was killed, and another worker takes it over.
"""

import hashlib
import json
import math
import threading
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ...engine.errors import UserError
from ...engine.files import Lock
from ...engine.run import RunFolder, identity, run_folder, training_limits, write_json
from .command import Command
from .job import Job
from .results import Row, sweep_folder
from .space import Space, extremes

try:
    import optuna
except ImportError as error:
    raise UserError("sweep=optuna needs Optuna: pip install -e '.[sweep]'") from error

from optuna.trial import FrozenTrial, TrialState, create_trial

from .distributions import distribution, rounded
from .storage import PRUNER, STUDY, storage

REPEATS = "repeats"  # a trial's attribute: the number of the failed trial that it tries again


class Study:
    """A search. Its arguments are those of FixedSweep."""

    repeats: Sequence[str] = ()

    def __init__(self, cfg: DictConfig, name: str, command: Command, space: Space) -> None:
        if not space:
            raise UserError("Nothing is swept: add values, as in optimizer.lr=interval(0.001,0.1).")
        if cfg.sweep.num_runs < 1:
            raise UserError(f"sweep.num_runs={cfg.sweep.num_runs} is too small. Use 1 or more.")
        self.cfg, self.command = cfg, command
        self._sampler(seed=0)  # refused now, if it must be
        instantiate(cfg.sweep.pruner)
        ends = {key: extremes(override) for key, override in space.items()}
        first = {key: values[0] for key, values in ends.items()}
        for key, values in ends.items():
            for value in values:
                command.compose(first | {key: value})
        self.distributions = {key: distribution(override) for key, override in space.items()}
        chosen = OmegaConf.to_container(cfg.sweep, resolve=True)
        assert isinstance(chosen, dict)
        lines = sorted(str(override.input_line) for override in space.values())
        deciding = [lines, *(chosen[key] for key in ("seed", "sampler", "pruner"))]
        base = identity(command.compose(first))
        self.folder = sweep_folder(cfg, name, [base, training_limits(cfg), deciding])
        self.mutex, self.started = threading.Lock(), datetime.now()
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._alone():
            write_json(self.folder / PRUNER, chosen["pruner"] or {})
            self.storage = storage(self.folder)
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=STUDY,
                direction=f"{cfg.mode}imize",
                load_if_exists=True,
            )
        self.num_runs = cfg.sweep.num_runs
        self.title = f"{self.num_runs} runs of {', '.join(lines)}"

    def _alone(self) -> Lock:
        """Lock the study against its other workers, while a trial is chosen or told."""
        return Lock(self.folder / "lock")

    def next(self) -> Job | None:
        with self.mutex, self._alone():
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING:
                    job = self._job(trial.number, trial.params)
                    if job.take(self.folder):
                        return job
            repeated = {
                trial.user_attrs[REPEATS] for trial in trials if REPEATS in trial.user_attrs
            }
            for trial in trials:
                if trial.state == TrialState.FAIL and trial.number not in repeated:
                    assert trial.datetime_complete is not None
                    if trial.datetime_complete < self.started:  # not by this command
                        return self._add(len(trials), trial.params, {REPEATS: trial.number})
            if len(trials) - len(repeated) < self.num_runs:
                return self._add(len(trials), self._propose(trials), {})
        return None

    def _propose(self, trials: list[FrozenTrial]) -> dict[str, Any]:
        """Return the next values, the same as in a study that was never stopped."""
        position = repr((self.cfg.sweep.seed, len(trials))).encode()
        seed = int.from_bytes(hashlib.blake2b(position, digest_size=4).digest(), "little")
        sampler = self._sampler(seed)
        here = optuna.create_study(direction=f"{self.cfg.mode}imize", sampler=sampler)
        here.add_trials(trials)
        values = here.ask(self.distributions).params
        return {key: rounded(value, self.distributions[key]) for key, value in values.items()}

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler: optuna.samplers.BaseSampler = instantiate(self.cfg.sweep.sampler, seed=seed)
        return sampler

    def _add(self, number: int, params: Mapping[str, Any], attributes: dict[str, Any]) -> Job:
        """Add a running trial in one write. `study.ask` writes a trial value by value instead."""
        job = self._job(number, params)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=self.distributions,
            user_attrs={"run": job.run.path.as_posix(), **attributes},
        )
        job.take(self.folder)
        self.study.add_trial(trial)
        return job

    def _job(self, number: int, params: Mapping[str, Any]) -> Job:
        overrides = {key: str(value) for key, value in params.items()}
        cfg, pruned, more = self.command.compose(overrides), None, []
        if self.cfg.sweep.pruner is not None:
            pruned = {"study": self.folder.as_posix(), "trial": number}
            quoted = "'" + self.folder.as_posix().replace("'", "\\'") + "'"
            more = [
                f"+show.pruning._target_={__package__}.pruning.Pruning",
                f"+show.pruning.study={quoted}",
                f"+show.pruning.trial={number}",
                "+show.pruning.monitor=${monitor}",
                "+show.pruning.folder=${run_dir}",
            ]
        return Job(
            number=number + 1,
            overrides=overrides,
            run=run_folder(cfg),
            cfg=cfg,
            argv=self.command.argv(overrides, *more),
            output=self.folder / "output" / f"{number + 1}.txt",
            pruned=pruned,
        )

    def done(self, job: Job) -> None:
        # Together, or another worker would take over a trial that it believes to be running.
        with self.mutex, self._alone():
            self._tell(job.number - 1, job)
            job.release()

    def _tell(self, number: int, job: Job) -> None:
        state = job.state
        if state == "finished":
            value = job.metrics.get(f"best {self.cfg.monitor}", math.nan)
            if math.isfinite(value):
                self.study.tell(number, value)
            else:
                job.why = f"it has no best {self.cfg.monitor}"
                state = "failed"
        if state == "failed":
            study = self.storage.get_study_id_from_name(STUDY)
            trial = self.storage.get_trial_id_from_study_id_trial_number(study, number)
            self.storage.set_trial_user_attr(trial, "why", job.why)
            self.study.tell(number, state=TrialState.FAIL)
        elif state == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)

    def rows(self) -> list[Row]:
        trials = self.study.get_trials(deepcopy=False)
        repeated = {trial.user_attrs.get(REPEATS) for trial in trials}
        return [self._row(trial) for trial in trials if trial.number not in repeated]

    def _row(self, trial: FrozenTrial) -> Row:
        run = RunFolder(Path(trial.user_attrs["run"]))
        state = {
            TrialState.COMPLETE: "finished",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "failed",
        }.get(trial.state, "live" if run.is_live() else "resumable")
        overrides = {key: str(value) for key, value in trial.params.items()}
        # The value of a pruned trial is that of its last validation.
        metrics = {} if trial.value is None else {f"best {self.cfg.monitor}": trial.value}
        if state == "finished" and run.metrics.is_file():
            written = json.loads(run.metrics.read_text(encoding="utf-8"))
            metrics |= {k: v for k, v in written.items() if k not in ("limits", "checkpoint")}
        why = trial.user_attrs.get("why", "")
        return Row(trial.number + 1, overrides, state, str(run.path), metrics, why)

    def draw(self) -> None:
        from .picture import draw

        draw(self.study, f"best {self.cfg.monitor}", self.folder)
