"""Everything that trains or tests, put together from a run's config."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    Callback,
    Checkpoint,
    LearningRateMonitor,
    ProgressBar,
)
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.model_helpers import is_overridden
from omegaconf import DictConfig
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from . import device
from .errors import UserError
from .parallel.torchrun import from_rank_zero, init_process_group
from .report.extras import may_fail
from .report.metrics_csv import MetricsCSV
from .report.monitors import Monitors
from .report.unused import UnusedConfig
from .resume.callback import Resume
from .resume.checkpoint import (
    is_loadable,
    load_state,
    load_weights,
    read,
    refuse_unfit_checkpoint,
    trained_run,
    warn_if_untrusted,
)
from .resume.checkpoint_io import CheckpointIO
from .resume.state import model_checkpoints
from .run import Run, find, initial_checkpoint, num_parameters, plain_config
from .speed import fast_log, fast_loop
from .speed.compile import FirstStep, compile_in_place
from .speed.fused import FusedOptimizers

log = logging.getLogger(__name__)

# Hooks of a callback after which no weight changes: an error there must not cost the results.
AFTER_TRAINING = (
    *("on_fit_end", "on_test_start", "on_test_epoch_start", "on_test_batch_start"),
    *("on_test_batch_end", "on_test_epoch_end", "on_test_end", "teardown"),
)
MAY_FAIL = {"callbacks": AFTER_TRAINING, "show": ("on_train_end", *AFTER_TRAINING)}
LOGGERS_MAY_FAIL = ("log_metrics", "save", "after_save_checkpoint", "finalize")


@dataclass
class Built:
    """The objects of a run.

    Args:
        trainer: with the engine's callbacks, the user's and the loggers.
        task: with its model, on the CPU.
        datamodule: a LightningDataModule, not yet set up.
        resume_from: the checkpoint with which `fit` begins.
        compiled: whether the task's modules are compiled.
    """

    trainer: Trainer
    task: LightningModule
    datamodule: Any
    resume_from: Path | None = None
    compiled: bool = False


def build(run: Run) -> Built:
    """Build what the run's config describes, for the run's device.

    A run that trains begins from its newest checkpoint, from `ckpt_path`, or with the weights of
    `init_from`.

    Raises:
        UserError: the checkpoint does not fit.
    """
    cfg = run.config
    seed_everything(cfg.seed, workers=True, verbose=False)
    device.limit_threads()
    torch.set_float32_matmul_precision(run.settings.matmul_precision)
    datamodule, task = build_data(cfg), build_task(cfg)
    callbacks = []
    for group, hooks in MAY_FAIL.items():
        for one in _instantiate_group(cfg.get(group)):
            may_fail(one, hooks)
            callbacks.append(one)
    for owner in (task, datamodule):
        _allow_no_loader(owner)
    allow_equal_hparam_names(task, datamodule)
    options: dict[str, Any] = {"plugins": list(instantiate(cfg.trainer.get("plugins") or []))}
    if any(isinstance(one, Precision) for one in options["plugins"]):
        options["precision"] = None  # Lightning takes one of both
    if not run.trains:
        trainer = instantiate(cfg.trainer, callbacks=callbacks, _convert_="all", **options)
        return Built(trainer, task, datamodule)

    if _saves(cfg):
        warn_if_untrusted(plain_config(run.requested))
    compiled = run.settings.compiles(num_parameters(task))
    if compiled:
        compile_in_place(task, same_bits=bool(cfg.trainer.deterministic))
        callbacks.append(FirstStep())
    own = from_rank_zero("newest", lambda: run.folder.newest(is_loadable))
    if own is not None and not own.exists():
        raise UserError(f"{own} is not on this host. Put runs_dir where every host sees it.")
    if cfg.resume == "must" and own is None:  # open_run has refused a folder without any
        raise UserError(f"No checkpoint in {run.folder.path} can be loaded. Remove resume=must.")
    start = own or _initial(cfg, task)
    resume = Resume(
        run.folder,
        seed=cfg.seed,
        every_n_minutes=cfg.save.every_n_minutes,
        every_n_steps=cfg.save.every_n_steps,
        signals=run.signals,
        same_run=own is not None,
        device_name=run.settings.name + (", compiled" if compiled else ""),
        enabled=_saves(cfg),
    )
    engine: list[Callback] = [
        resume,
        FusedOptimizers(),
        Monitors(),
        UnusedConfig(run.requested),
    ]
    # The logger that a user chooses is `self.logger`: ours comes last.
    loggers = sorted(
        _instantiate_group(cfg.get("logger")), key=lambda one: isinstance(one, MetricsCSV)
    )
    for logger in loggers:
        may_fail(logger, LOGGERS_MAY_FAIL)
    if not loggers:  # which LearningRateMonitor refuses
        callbacks = [one for one in callbacks if not isinstance(one, LearningRateMonitor)]
    if not cfg.trainer.get("enable_progress_bar", True):
        callbacks = [one for one in callbacks if not isinstance(one, ProgressBar)]
    if "default_root_dir" not in cfg.trainer:
        options["default_root_dir"] = str(run.folder.path)
    if "enable_checkpointing" not in cfg.trainer:  # it adds a ModelCheckpoint if there is none
        options["enable_checkpointing"] = any(isinstance(one, Checkpoint) for one in callbacks)
    options |= {"callbacks": [*engine, *callbacks], "logger": loggers}
    trainer = instantiate(cfg.trainer, _convert_="all", **options)  # max_time takes a dict
    if type(files := trainer.strategy.checkpoint_io) is not TorchCheckpointIO:
        log.warning(f"{type(files).__name__} is not used: a run writes its checkpoints itself.")
    trainer.strategy.checkpoint_io = CheckpointIO(plain_config(run.requested))
    fast_log.install(task)
    if cfg.fast_loop:
        fast_loop.install(trainer)
    return Built(trainer, task, datamodule, start, compiled)


def _allow_no_loader(owner: Any) -> None:
    """Let `val_dataloader` or `test_dataloader` return None where there are no data for it."""
    for name in ("val_dataloader", "test_dataloader"):
        if owner is not None and is_overridden(name, owner) and name not in vars(owner):
            # Not a function in here, since a loader's workers may get the owner by pickle.
            vars(owner)[name] = functools.partial(_loaders, getattr(type(owner), name), owner)


def _loaders(hook: Callable[[Any], Any], owner: Any) -> Any:
    return [] if (loaders := hook(owner)) is None else loaders


def allow_equal_hparam_names(task: LightningModule, datamodule: LightningDataModule | None) -> None:
    """Let task and datamodule have a hyper-parameter of the same name, such as `seed`.

    Lightning gives loggers those of both in one dict, and refuses two values of one name.
    """
    theirs: Any = getattr(datamodule, "hparams", {})
    both = [(task.hparams[name], theirs[name]) for name in task.hparams.keys() & theirs.keys()]
    if not all(
        type(a) is type(b) and isinstance(a, int | float | str | None) and a == b for a, b in both
    ):
        datamodule._log_hyperparams = False  # type: ignore[union-attr]


def build_task(cfg: DictConfig) -> LightningModule:
    """Build the task and its model, as every command does."""
    return instantiate(cfg.task, _convert_="partial")  # plain lists and dicts: it may save them


def build_data(cfg: DictConfig) -> LightningDataModule | None:
    """Build the datamodule; there is none where a task has loaders of its own."""
    return instantiate(cfg.get("data") or None, _convert_="all")


def build_trained(checkpoint: Path, cfg: DictConfig, folder: Path) -> Built:
    """Build what a checkpoint was trained with, with its weights.

    Args:
        checkpoint: a file, or a folder that FSDP has written.
        cfg: configs/evaluate.yaml or predict.yaml.
        folder: where the callbacks write.
    """
    run, trained = trained_run(checkpoint, cfg, folder)
    built = build(run)
    built.trainer.precision_plugin.convert_module(built.task)  # before loading float64
    load_state(built.task, trained, checkpoint)
    seed_everything(run.config.seed, workers=True, verbose=False)  # the same test as in training
    return built


def _saves(cfg: DictConfig) -> bool:
    return not cfg.trainer.get("fast_dev_run") and cfg.trainer.get("enable_checkpointing", True)


def _instantiate_group(group: Any) -> list[Any]:
    """Build the objects of a config group: `callbacks`, `logger`."""
    return [one for one in instantiate(group or {}).values() if one is not None]


def _initial(cfg: DictConfig, task: LightningModule) -> Path | None:
    if (weights := initial_checkpoint(cfg, "init_from")) is not None:
        load_weights(task, weights)
    if (other := initial_checkpoint(cfg, "ckpt_path")) is not None:
        refuse_unfit_checkpoint(other, task, cfg)
    return other


def fit(run: Run, built: Built) -> Path | None:
    """Train to the end, from wherever the run was.

    Returns:
        The checkpoint of the best weights, or of the last where nothing says which are the best.

    Raises:
        SystemExit: a signal has ended the run; what it has learned is saved.
        UserError: the disk is full.
    """
    trainer, folder = built.trainer, run.folder
    folder.share("checkpoints", in_parts=run.settings.strategy == "fsdp")
    init_process_group(trainer.strategy)
    # As before the test, since `setup` is called for each: a random split must be the same one.
    seed_everything(run.config.seed, workers=True, verbose=False)
    trainer.fit(built.task, built.datamodule, ckpt_path=built.resume_from)
    resume = next(one for one in trainer.callbacks if isinstance(one, Resume))  # type: ignore[attr-defined]
    stopped = run.signals.received is not None
    if trainer.world_size > 1:
        (stopped,) = resume.agreement.any(stopped)
    if stopped:
        run.signals.exit()
    _refuse_no_batches(trainer)
    for one in trainer.early_stopping_callbacks:
        if trainer.should_stop and one.stopping_reason_message:
            log.info(one.stopping_reason_message.replace("Signaling Trainer to stop.", "Stopped."))
    best = _best(trainer)
    if resume.enabled:
        trainer.save_checkpoint(folder.last, weights_only=True)
        files = trainer.strategy.checkpoint_io
        assert isinstance(files, CheckpointIO)
        files.flush()
        best = best or folder.last
    folder.share("weights")
    seed_everything(run.config.seed, workers=True, verbose=False)  # the same test from anywhere
    return best if best is not None and best.exists() else None


def _refuse_no_batches(trainer: Trainer) -> None:
    """Refuse data that gave no batch, which Lightning takes for a training that has ended."""
    if trainer.fit_loop.epoch_loop.batch_progress.total.ready:
        return
    loaders = tree_leaves(trainer.train_dataloader)
    numbers = [
        f"{sized_len(one.dataset)} samples, batch_size={one.batch_size}, drop_last={one.drop_last}"
        for one in loaders
        if isinstance(one, DataLoader) and not isinstance(one.dataset, IterableDataset)
    ]
    raise UserError(
        f"There is no batch to train on ({'; '.join(numbers) or 'the data are empty'}). Give the"
        " training more data, or lower data.batch_size."
    )


def _best(trainer: Trainer) -> Path | None:
    """Return the best weights of the first ModelCheckpoint that monitors a metric."""
    paths = (one.best_model_path for one in model_checkpoints(trainer) if one.monitor)
    return next((Path(path) for path in paths if path), None)


def summary(trainer: Trainer) -> dict[str, float]:
    """Return what the training was: epochs, steps, and the best score of each monitored metric."""
    metrics: dict[str, float] = {
        "epochs": trainer.fit_loop.epoch_progress.current.ready,
        "steps": trainer.global_step,
    }
    for one in model_checkpoints(trainer):
        if one.best_model_score is not None:
            metrics[f"best {one.monitor}"] = float(one.best_model_score)
    return metrics


def compute_test_metrics(built: Built, checkpoint: Path | None = None) -> dict[str, float]:
    """Return the test metrics, computed in float32 so that every device gives the same.

    Args:
        built: what to test.
        checkpoint: whose weights to test; None: those that the task has.
    """
    task, datamodule = built.task, built.datamodule
    if not is_overridden("test_step", task):
        log.info(f"{type(task).__name__} has no test_step: nothing is tested.")
        return {}
    if not has_loader("test", built):
        log.info(f"{type(datamodule or task).__name__} has no test_dataloader: nothing is tested.")
        return {}
    metrics: dict[str, float] = {}
    with float32(built.trainer):
        for tested in built.trainer.test(task, datamodule, ckpt_path=checkpoint, verbose=False):
            metrics |= tested  # one dict for each test dataloader
    return metrics


def has_loader(stage: str, built: Built) -> bool:
    """Return whether the datamodule or the task has a `test_dataloader`, for the stage `test`."""
    owners = [one for one in (built.datamodule, built.task) if one is not None]
    return any(is_overridden(f"{stage}_dataloader", owner) for owner in owners)


def predict_as_lightning(built: Built) -> Any:
    """Return what `predict_step` gives for `predict_dataloader`; None if a callback writes it."""
    trainer = built.trainer
    writers = [one for one in trainer.callbacks if isinstance(one, BasePredictionWriter)]  # type: ignore[attr-defined]
    predictions = trainer.predict(built.task, built.datamodule, return_predictions=not writers)
    return None if writers else predictions


@contextlib.contextmanager
def float32(trainer: Trainer) -> Iterator[None]:
    """Compute in float32, without autocast, TF32 and torch.compile, however it was trained."""
    precision = trainer.strategy.precision_plugin
    if isinstance(precision, MixedPrecision):
        trainer.strategy.precision_plugin = Precision()
    try:
        with device.exact_float32(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        trainer.strategy.precision_plugin = precision


def load_run(run: str, runs_dir: str = "runs") -> tuple[LightningModule, Any]:
    """Return the task (best weights, evaluation mode, CPU) and the datamodule, for a notebook.

        task, datamodule = load_run("latest")

    Args:
        run: a run's folder, a checkpoint, or `latest`.
        runs_dir: where `latest` looks.
    """
    _, path = find(run, runs_dir)
    checkpoint, trained = read(path)
    settings = device.resolve(device.Requested(), device.probe())
    seed_everything(trained.seed, workers=True, verbose=False)  # for the same random splits
    datamodule, task = build_data(device.apply(trained, settings)), build_task(trained)
    load_state(task, checkpoint, path)
    seed_everything(trained.seed, workers=True, verbose=False)
    return task, datamodule
