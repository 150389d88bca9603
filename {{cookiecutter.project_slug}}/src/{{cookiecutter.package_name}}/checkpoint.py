"""What is in a checkpoint, and how everything is built again from it.

It holds tensors and plain data only, so that `weights_only=True` loads it. Under `hyper_parameters`
stands the whole resolved config as it was asked for: what was `auto` then is decided again here.
A file from a stranger runs no code: it is not unpickled, and its config can only name what is
trusted below.
"""

import copy
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import LRScheduler

from . import device
from .errors import UserError
from .run import Run
from .shards import REST, read_parts, refuse_code
from .storage import is_sound, write_whole

log = logging.getLogger(__name__)

# What a checkpoint's config may name: anything in our models, tasks and data, and of these packages
# the classes of these kinds (a LightningModule and a metric are Modules).
OURS = tuple(f"{__package__}.{folder}." for folder in ("models", "tasks", "data"))
TRUSTED = (*OURS, "torch.", "torchmetrics.", "lightning.")
KINDS = (torch.nn.Module, torch.optim.Optimizer, LRScheduler, LightningDataModule)


def read(path: Path) -> tuple[dict[str, Any], DictConfig]:
    """A checkpoint, its tensors on the CPU, and the config in it.

    Raises:
        UserError: it is not a whole checkpoint of this project, or wants to run something else.
    """
    try:
        if not is_sound(path):
            raise ValueError("it is broken")
        if path.is_dir():
            checkpoint = read_parts(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config = checkpoint["hyper_parameters"]
        data, task = config["data"], config["task"]
    except Exception as error:  # torch has many kinds for a file that is broken or not its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a whole checkpoint of this project: {reason}") from error
    _refuse_strangers([data, task])
    return checkpoint, OmegaConf.create(config)


def _refuse_strangers(config: Any) -> None:
    """Refuse every `_target_`, at any depth, that is not of a trusted place and kind."""
    if isinstance(config, list):
        for value in config:
            _refuse_strangers(value)
    elif isinstance(config, dict):
        _refuse_strangers(list(config.values()))
        target = config.get("_target_")
        if target is not None and not _trusted(str(target)):
            raise UserError(
                f"This checkpoint wants to run {target}, which is not trusted: if you trust it, add"
                f" its package to TRUSTED or its class to KINDS in {Path(__file__).name}."
            )
    elif "${" in str(config):  # would be looked up in parts of the file that are not checked
        raise UserError(
            f"This checkpoint's config is not resolved ({config}): it is not from here."
        )


def _trusted(target: str) -> bool:
    # By name before it is imported, by its origin after: torch.os.system begins with torch, too.
    if not target.startswith(TRUSTED):
        return False
    named = get_object(target)
    origin = f"{getattr(named, '__module__', '')}."
    if origin.startswith(OURS):
        return True
    return origin.startswith(TRUSTED) and isinstance(named, type) and issubclass(named, KINDS)


def load_task(path: Path) -> LightningModule:
    """The task of a checkpoint with its weights, on the CPU, in evaluation mode."""
    return _task(path, *read(path))


def _task(path: Path, checkpoint: dict[str, Any], config: DictConfig) -> LightningModule:
    task: LightningModule = instantiate(config.task)
    try:
        task.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} was made by other code than this: {reason}") from error
    return task.eval()


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is as it was written, and can be read."""
    try:
        if path.is_dir():
            refuse_code(path)
        file = path / REST if path.is_dir() else path
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch has many kinds for a file that is broken
        return False
    return is_sound(path)


def refuse_to_go_on(path: Path, task: LightningModule, cfg: DictConfig) -> None:
    """Say why a run of `cfg` cannot go on from the checkpoint of another one.

    Raises:
        UserError: it holds the weights alone, or those of another model, or another optimizer's.
    """
    checkpoint, trained = read(path)
    if "optimizer_states" not in checkpoint:
        raise UserError(f"{path} holds the weights alone: say init_from={path} to start from them.")
    there, here = checkpoint["state_dict"], task.state_dict()
    if {k: v.shape for k, v in there.items()} != {k: v.shape for k, v in here.items()}:
        raise UserError(f"{path} is of another model: say init_from={path} for what fits.")
    if trained.optimizer._target_ != cfg.optimizer._target_:
        raise UserError(f"{path} is of {trained.optimizer._target_}: say init_from={path}.")


def load_weights(task: LightningModule, path: Path) -> None:
    """Copy into `task` what a checkpoint has under the same name and of the same shape.

    Raises:
        UserError: it has nothing of that.
    """
    there, here = read(path)[0]["state_dict"], task.state_dict()
    fits = {k: v for k, v in there.items() if k in here and here[k].shape == v.shape}
    if not fits:
        raise UserError(f"{path} has no weight that fits this model: init_from another one.")
    task.load_state_dict(fits, strict=False)
    new = ", ".join(name for name in here if name not in fits)
    log.info(f"Starting from the weights of {path}" + (f", but for {new}" if new else ""))


def load_run(run: str, runs_dir: str = "runs") -> tuple[LightningModule, Any]:
    """The task (best checkpoint, evaluation mode) and the datamodule of a run, for a notebook.

        task, datamodule = load_run("latest")

    Args:
        run: a run's folder, a checkpoint, or `latest`.
        runs_dir: where `latest` looks.
    """
    _, path = Run.find(run, runs_dir)
    checkpoint, trained = read(path)
    choice = device.choose(device.Request(), device.probe())
    return _task(path, checkpoint, trained), instantiate(device.settle(trained, choice).data)


def rebuild(path: Path, cfg: DictConfig, folder: Path) -> tuple[Trainer, LightningModule, Any]:
    """What a checkpoint was trained with, on this machine's device.

    Args:
        path: the checkpoint.
        cfg: configs/evaluate.yaml or predict.yaml; its `data` changes that of the run.
        folder: what the callbacks know as `run_dir`.
    """
    checkpoint, trained = read(path)
    plain = OmegaConf.create(OmegaConf.to_container(cfg))  # without Hydra's guard against new keys
    data = OmegaConf.merge(trained.data, cfg.data)
    cfg = OmegaConf.merge(plain, {"run_dir": str(folder), "data": data})  # type: ignore[assignment]
    want, here = device.request(cfg), device.probe()
    try:  # the precision that the run asked for, where it is possible here
        as_trained = replace(want, precision=trained.trainer.precision)
        choice = device.choose(as_trained if want.precision == "auto" else want, here)
    except UserError:
        choice = device.choose(want, here)
    if choice.num_devices > 1:
        raise UserError("One device evaluates and predicts: leave trainer.devices out.")
    settled = device.settle(cfg, choice)
    log.info(f"{device.line(choice, settled)}; from {path}")
    torch.set_float32_matmul_precision(choice.matmul_precision)
    callbacks = list(instantiate(settled.get("callbacks") or {}).values())
    trainer: Trainer = instantiate(settled.trainer, callbacks=callbacks)
    return trainer, _task(path, checkpoint, trained), instantiate(settled.data)


def _prove(path: Path) -> None:
    """Refuse now what would else be found out when it is needed."""
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = re.search(r"Unsupported \w+: (.*?) was not", str(error))
        raise UserError(
            f"A checkpoint of this run could not be read again ({reason[1] if reason else error}):"
            " hyper-parameters and states must be tensors and plain Python data."
        ) from error


class CheckpointIO(TorchCheckpointIO):
    """Lightning's, with whole files, and a warning in place of an end when the disk is full.

    A checkpoint of the weights alone, the best, is kept in memory until it can be written: no later
    one takes its place. One to go on from is not, since a newer one will.
    """

    def __init__(self) -> None:
        self.proven = False  # that what is written can be read
        self.unwritten: dict[Path, dict[str, Any]] = {}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        weights_only = "optimizer_states" not in checkpoint
        self.unwritten.pop(Path(path), None)
        for earlier in list(self.unwritten):
            # Before the next one: that would say that this one is there.
            if not self._write(self.unwritten[earlier], earlier):
                if weights_only:
                    self.unwritten[Path(path)] = copy.deepcopy(checkpoint)
                return
            del self.unwritten[earlier]
        if not self._write(checkpoint, Path(path)) and weights_only:
            self.unwritten[Path(path)] = copy.deepcopy(checkpoint)

    def _write(self, checkpoint: dict[str, Any], path: Path) -> bool:
        try:
            write_whole(path, lambda file: torch.save(checkpoint, file))
        except OSError as error:
            log.warning(f"{path} cannot be written, training goes on: {error}")
            return False
        if not self.proven:
            _prove(path)
            self.proven = True
        return True

    def write_the_rest(self) -> None:
        """Once more, at the end.

        Raises:
            UserError: the disk is still full.
        """
        for path in list(self.unwritten):
            if not self._write(self.unwritten.pop(path), path):
                raise UserError(f"{path} cannot be written: free some space, and train again.")

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if Path(path).is_dir():
            raise UserError(
                f"{path} is of a run with trainer=fsdp on several devices: take these again, or"
                f" start from its weights: init_from={path}."
            )
        if not is_sound(Path(path)):
            raise UserError(f"{path} is broken: train with resume=never, or take another one.")
        return super().load_checkpoint(path, *args, **kwargs)
