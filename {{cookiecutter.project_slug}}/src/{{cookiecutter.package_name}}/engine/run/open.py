"""Opening a run: its device, its folder, and whether there is anything left to train."""

import contextlib
import functools
import itertools
import logging
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from .. import device
from ..errors import UserError
from ..files import is_url, on_this_machine
from ..parallel.torchrun import (
    RUN_FOLDER_VARIABLE,
    from_rank_zero,
    is_rank_zero,
    launch,
    once_per_launch,
    refuse_wrong_launcher,
    torchrun_layout,
)
from .folder import RunFolder
from .identity import identity, training_limits
from .signals import Signals
from .unused import unused_groups

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What a command computes, and where.

    Args:
        requested: the config as it was composed, every `auto` still auto: what checkpoints keep.
        settings: what the device policy made of it.
        folder: where everything is written.
        results: of a finished run, its metrics.
        trains: whether the run trains, or only uses a trained model.
    """

    requested: DictConfig
    settings: device.Settings
    folder: RunFolder
    results: dict[str, float] | None = None
    trains: bool = True
    signals: Signals = field(default_factory=Signals)

    @functools.cached_property
    def config(self) -> DictConfig:
        """The config with an answer in place of every `auto`, and the folder filled in."""
        folder = {"run_dir": str(self.folder.path), "run_name": self.folder.path.name}
        requested: Any = OmegaConf.merge(self.requested, folder)
        return device.apply(requested, self.settings)

    @property
    def needs_torchrun(self) -> bool:
        return self.settings.num_devices > 1 and torchrun_layout() is None

    def launch(self) -> dict[str, float]:
        """Train in one process a device, started by torchrun, and return their results."""
        _ = self.config  # what it refuses is said here, by one process
        launch(self.settings.num_devices, self.folder.path)
        logging.disable(logging.INFO)  # the processes have shown the results
        return self.folder.results(training_limits(self.requested)) or {}

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Hold the folder's lock, and turn a signal into a saved checkpoint and an exit status."""
        with self.signals, self.folder.alone() if is_rank_zero() else contextlib.nullcontext():
            try:
                yield
            except BaseException:
                if self.signals.received is None:
                    raise
                saved = self.requested.resume != "never" and self.folder.checkpoints()
                then = f"The same command resumes from {saved[0]}." if saved else ""
                log.info(f"Interrupted. {then or f'See {self.folder.path}.'}")
                self.signals.exit()

    def start(self) -> None:
        """Write config.yaml, open log.txt, and say what runs where."""
        if is_rank_zero():
            self.folder.start(self.config)
        line = device.line(self.settings, self.requested)
        log.info(f"{line}; writing to {self.folder.path}")
        self._mention_unfinished()

    def log_start(self, task: Any, *, compiled: bool, resume_from: Path | None) -> None:
        """Say what is trained, and where it begins."""
        count = f"{num_parameters(task):,} parameters"
        log.info(f"{type(task).__name__}: {count}{', compiled' * compiled}")
        if resume_from is not None:
            log.info(f"Resuming from {resume_from}")

    def finish(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Write metrics.json: the run is finished."""
        if is_rank_zero():
            limits = training_limits(self.requested)
            self.folder.finish(metrics, limits=limits, checkpoint=checkpoint)

    def _mention_unfinished(self) -> None:
        """Say how to continue a run of the same name that other code or another config began."""
        if self.folder.checkpoints() or self.requested.ckpt_path or self.requested.resume != "auto":
            return
        name = self.folder.path.name.rpartition("-")[0]
        others = (RunFolder(path) for path in self.folder.path.parent.glob(f"{name}-????????"))
        unfinished = [
            other.checkpoints()[0]
            for other in others
            if other.checkpoints() and not (other.metrics.exists() or other.pruned.exists())
        ]
        if unfinished:
            newest = max(unfinished, key=lambda path: path.stat().st_mtime)
            log.info(
                f"This is a new run: its code or config differs from that of the unfinished"
                f" {newest.parents[1]}. To continue that one, add ckpt_path={newest}."
            )


def num_parameters(task: Any) -> int:
    """Return the number of parameters, without those of LazyLinear and the like: not yet known."""
    return sum(one.numel() for one in task.parameters() if not hasattr(one, "materialize"))


def open_run(cfg: DictConfig) -> Run:
    """Return the run that `cfg` describes.

    Raises:
        UserError: this machine or this config cannot do it.
    """
    validate(cfg)
    refuse_wrong_launcher()
    settings = device.resolve(device.requested(cfg), device.probe())
    logging.disable(logging.NOTSET if is_rank_zero() else logging.WARNING)  # only rank 0 logs
    folder, limits = run_folder(cfg), training_limits(cfg)
    folder.fetch(with_checkpoints=False)
    finished = from_rank_zero(
        "finished", lambda: folder.metrics if folder.results(limits) else None
    )
    if finished is not None:
        if is_rank_zero() and folder.mirror is not None:
            folder.mirror.finish()
        return Run(cfg, settings, folder, folder.results(limits) or {})
    folder.fetch()
    if cfg.seed is None:
        cfg = OmegaConf.merge(cfg, {"seed": _drawn_seed(folder)})  # type: ignore[assignment]
    if cfg.resume == "must" and not folder.checkpoints():
        raise UserError(
            f"No checkpoint to resume from in {folder.path}. Remove resume=must to start from"
            " scratch."
        )
    return Run(cfg, settings, folder)


def run_folder(cfg: DictConfig) -> RunFolder:
    """Return the folder of the run that `cfg` describes; with `resume=never` a new one."""
    name = str(cfg.name or _class_name(cfg))
    if Path(name).name != name:
        raise UserError(f"name={name} must be the name of one folder.")
    path = on_this_machine(cfg.runs_dir) / f"{name}-{identity(cfg)}"
    chosen = from_rank_zero("folder", lambda: _new(path, cfg) if cfg.resume == "never" else path)
    if chosen is None or not chosen.name.startswith(path.name):
        raise UserError(
            f"This process would train {path}, and rank 0 {chosen}. Give every host the same code"
            " and the same command."
        )
    if not is_url(cfg.runs_dir):
        return RunFolder(chosen)
    from ..remote.mirror import Mirror

    return RunFolder(chosen, Mirror(chosen, f"{cfg.runs_dir.rstrip('/')}/{chosen.name}"))


def _class_name(cfg: DictConfig) -> str:
    """Return the name of the model's class; of the task's, if it has no model from the config."""
    has_model = cfg.get("model") and "_target_" in cfg.model and "model" not in unused_groups(cfg)
    return (cfg.model if has_model else cfg.task)._target_.rpartition(".")[2].lower()


def _new(path: Path, cfg: DictConfig) -> Path:
    """Return the first of `path`, `path`-2, `path`-3, ... that does not exist."""
    if RUN_FOLDER_VARIABLE in os.environ:  # by the process that has started torchrun
        return Path(os.environ[RUN_FOLDER_VARIABLE])
    taken: set[str] = set()
    if is_url(cfg.runs_dir):
        from ..remote.url import Folder

        taken = Folder(cfg.runs_dir).folders()
    copies = (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))
    both = itertools.chain([path], copies)
    free = (copy for copy in both if not copy.exists() and copy.name not in taken)
    return once_per_launch("new folder", lambda: next(free))


def _drawn_seed(folder: RunFolder) -> int:
    """Return the seed of a run with seed=null: the one that config.yaml has, or a fresh one."""

    def choose() -> Path:
        if folder.config.is_file():
            return Path(str(OmegaConf.load(folder.config).seed))
        return Path(str(secrets.randbelow(2**32)))

    return int(str(from_rank_zero("seed", choose)))


def validate(cfg: DictConfig) -> None:
    """Refuse values that would be taken for something else, or fail after an hour.

    Types are checked by engine/config.py, devices by device/policy.py.
    """
    for key, allowed in (("resume", ("auto", "never", "must")), ("mode", ("min", "max"))):
        if cfg[key] not in allowed:
            raise UserError(f"{key}={cfg[key]} must be one of: {', '.join(allowed)}.")
    if not 0 <= (cfg.seed or 0) < 2**32:
        raise UserError(f"seed={cfg.seed} must be a whole number from 0 to {2**32 - 1}, or null.")
    if cfg.trainer.max_epochs is None or cfg.trainer.max_epochs < 1:
        raise UserError(
            f"trainer.max_epochs={cfg.trainer.max_epochs} must be 1 or more: schedules follow from"
            " it. Set trainer.max_steps or trainer.max_time beside it to stop earlier."
        )
    for key in ("callbacks", "logger"):
        if cfg.trainer.get(key):
            raise UserError(f"trainer.{key} is not used. Move it to a file in configs/{key}/.")
    for key in ("max_steps", "limit_train_batches"):
        if cfg.trainer.get(key) == 0:
            raise UserError(f"trainer.{key}=0 would train nothing. Use 1 or more.")
    above, from_zero = "must be more than 0", "must be 0 or more"
    for key, rule in (
        ("trainer.accumulate_grad_batches", above),
        ("trainer.check_val_every_n_epoch", above),
        ("trainer.val_check_interval", above),
        ("trainer.gradient_clip_val", from_zero),
        ("trainer.log_every_n_steps", from_zero),
        ("save.every_n_minutes", from_zero),
        ("save.every_n_steps", above),
    ):
        value = OmegaConf.select(cfg, key)
        if isinstance(value, int | float) and (value < 0 or (value == 0 and rule == above)):
            raise UserError(f"{key}={value} {rule}.")
    for key in ("run_dir", "run_name"):
        if cfg[key] is not None:
            raise UserError(f"{key} is filled in. Use runs_dir and name.")
