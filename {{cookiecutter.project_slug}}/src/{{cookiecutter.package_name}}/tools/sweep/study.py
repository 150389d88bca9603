"""A search by Optuna, whose study is a database in the sweep's folder.

A trial is a run. Its point follows from the seed, its number and the trials before, so that a study
which was killed goes on to the same points. A worker holds a lock while it sees to a trial: one
that is running and has none belongs to a worker that was killed, and somebody else takes it over.
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

from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ...engine.errors import UserError
from ...engine.run import Run, identity, training_limits, write_json
from .command import Command
from .job import Job, claimed
from .results import Row, folder_of
from .space import Space, extremes

try:
    import optuna
except ImportError as error:
    raise UserError("sweep=optuna needs Optuna: pip install -e '.[sweep]'") from error

from optuna.trial import FrozenTrial, TrialState, create_trial

from .database import NAME, PRUNER, storage
from .distributions import distribution, rounded

AGAIN = "again"  # a trial's attribute: the number of the one that failed, and that it repeats


class Study:
    """Arguments as of Listed."""

    repeats: Sequence[str] = ()

    def __init__(self, cfg: DictConfig, name: str, command: Command, space: Space) -> None:
        if not space:
            raise UserError("Nothing is swept: add values, as in optimizer.lr=interval(0.001,0.1).")
        if cfg.sweep.num_runs < 1:
            raise UserError(f"sweep.num_runs={cfg.sweep.num_runs} is too small: use 1 or more.")
        self.cfg, self.command = cfg, command
        self._sampler(seed=0)  # refused now, if it must be
        instantiate(cfg.sweep.pruner)
        ends = {key: extremes(override) for key, override in space.items()}
        first = {key: values[0] for key, values in ends.items()}
        for key, values in ends.items():
            for value in values:
                command.check(first | {key: value})
        self.distributions = {key: distribution(override) for key, override in space.items()}
        chosen = OmegaConf.to_container(cfg.sweep, resolve=True)
        assert isinstance(chosen, dict)
        lines = sorted(str(override.input_line) for override in space.values())
        deciding = [lines, *(chosen[key] for key in ("seed", "sampler", "pruner"))]
        base = identity(command.compose(first))
        self.folder = folder_of(cfg, name, [base, training_limits(cfg), deciding])
        self.mutex, self.started = threading.Lock(), datetime.now()
        self.folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with self._alone():
            write_json(self.folder / PRUNER, chosen["pruner"] or {})
            self.storage = storage(self.folder)
            self.study = optuna.create_study(
                storage=self.storage,
                study_name=NAME,
                direction=f"{cfg.mode}imize",
                load_if_exists=True,
            )
        self.num_runs = cfg.sweep.num_runs
        self.title = f"{self.num_runs} runs of {', '.join(lines)}"

    def _alone(self) -> FileLock:
        """Against the other workers of this study, for as long as one is chosen."""
        return FileLock(self.folder / "lock")

    def next(self) -> Job | None:
        with self.mutex, self._alone():
            trials = self.study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state == TrialState.RUNNING:
                    job = self._job(trial.number, trial.params)
                    if claimed(job, self.folder):
                        return job
            repeated = {trial.user_attrs[AGAIN] for trial in trials if AGAIN in trial.user_attrs}
            for trial in trials:
                if trial.state == TrialState.FAIL and trial.number not in repeated:
                    assert trial.datetime_complete is not None
                    if trial.datetime_complete < self.started:  # not by this command
                        return self._add(len(trials), trial.params, {AGAIN: trial.number})
            if len(trials) - len(repeated) < self.num_runs:
                return self._add(len(trials), self._propose(trials), {})
        return None

    def _propose(self, trials: list[FrozenTrial]) -> dict[str, Any]:
        """The next point, as it would be in a study that was never stopped."""
        position = repr((self.cfg.sweep.seed, len(trials))).encode()
        seed = int.from_bytes(hashlib.blake2b(position, digest_size=4).digest(), "little")
        sampler = self._sampler(seed)
        here = optuna.create_study(direction=f"{self.cfg.mode}imize", sampler=sampler)
        here.add_trials(trials)
        point = here.ask(self.distributions).params
        return {key: rounded(value, self.distributions[key]) for key, value in point.items()}

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler: optuna.samplers.BaseSampler = instantiate(self.cfg.sweep.sampler, seed=seed)
        return sampler

    def _add(self, number: int, params: Mapping[str, Any], attributes: dict[str, Any]) -> Job:
        """Written whole or not at all: a trial that is asked for and killed has half of a point."""
        job = self._job(number, params)
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions=self.distributions,
            user_attrs={"run": job.run.folder.as_posix(), **attributes},
        )
        claimed(job, self.folder)
        self.study.add_trial(trial)
        return job

    def _job(self, number: int, params: Mapping[str, Any]) -> Job:
        point = {key: str(value) for key, value in params.items()}
        cfg, pruned, words = self.command.compose(point), None, []
        if self.cfg.sweep.pruner is not None:
            pruned = {"study": self.folder.as_posix(), "trial": number}
            quoted = "'" + self.folder.as_posix().replace("'", "\\'") + "'"
            words = [
                f"+callbacks.pruning._target_={__package__}.pruning.Pruning",
                f"+callbacks.pruning.study={quoted}",
                f"+callbacks.pruning.trial={number}",
                "+callbacks.pruning.monitor=${monitor}",
                "+callbacks.pruning.folder=${run_dir}",
            ]
        return Job(
            number=number + 1,
            point=point,
            run=Run.of(cfg),
            cfg=cfg,
            words=self.command.words(point, *words),
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
            study = self.storage.get_study_id_from_name(NAME)
            trial = self.storage.get_trial_id_from_study_id_trial_number(study, number)
            self.storage.set_trial_user_attr(trial, "why", job.why)
            self.study.tell(number, state=TrialState.FAIL)
        elif state == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)

    def rows(self) -> list[Row]:
        trials = self.study.get_trials(deepcopy=False)
        repeated = {trial.user_attrs.get(AGAIN) for trial in trials}
        return [self._row(trial) for trial in trials if trial.number not in repeated]

    def _row(self, trial: FrozenTrial) -> Row:
        run = Run(Path(trial.user_attrs["run"]))
        state = {
            TrialState.COMPLETE: "finished",
            TrialState.PRUNED: "pruned",
            TrialState.FAIL: "failed",
        }.get(trial.state, "live" if run.is_live() else "resumable")
        point = {key: str(value) for key, value in trial.params.items()}
        # Of a pruned one its last, as Optuna has it.
        metrics = {} if trial.value is None else {f"best {self.cfg.monitor}": trial.value}
        if state == "finished" and run.metrics.is_file():
            metrics |= json.loads(run.metrics.read_text(encoding="utf-8"))
            del metrics["training_limits"]
        why = trial.user_attrs.get("why", "")
        return Row(trial.number + 1, point, state, str(run.folder), metrics, why)

    def importances(self) -> dict[str, float]:
        """By Optuna; empty where the runs are too few or too equal."""
        try:
            evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        except (ValueError, RuntimeError):
            return {}
