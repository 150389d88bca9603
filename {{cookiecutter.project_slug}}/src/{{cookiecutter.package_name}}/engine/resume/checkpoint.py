"""What is in a checkpoint, and what of it may be used.

A checkpoint holds tensors and plain data only, so `weights_only=True` loads it. The key `run` holds
the run's resolved config as it was requested: what was `auto` then is decided again here. A file
from a stranger runs no code: it is not unpickled, and its config can only name what is trusted.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object
from lightning import LightningDataModule, LightningModule
from omegaconf import DictConfig, OmegaConf
from torch.optim.lr_scheduler import LRScheduler

from .. import ROOT, device
from ..errors import UserError
from ..files import checksum_matches
from ..parallel.sharded_checkpoint import EXTRA_STATE, read_parts, refuse_code
from ..run import Run, RunFolder

log = logging.getLogger(__name__)

HERE = "trusted in configs/trusted.yaml"
# What a checkpoint's config may name: anything of the project's own package but its engine and
# tools; of these packages the classes of these kinds (a LightningModule and a metric are Modules);
# and what stands in configs/trusted.yaml.
OURS = f"{ROOT}."
NOT_OURS = (f"{ROOT}.engine.", f"{ROOT}.tools.")
TRUSTED = (OURS, "torch.", "torchmetrics.", "lightning.")
ALSO_TRUSTED = Path(__file__).parents[2] / "configs" / "trusted.yaml"
KINDS = (torch.nn.Module, torch.optim.Optimizer, LRScheduler, LightningDataModule)


def read(path: Path) -> tuple[dict[str, Any], DictConfig]:
    """Return a checkpoint, its tensors on the CPU, and the config in it.

    Raises:
        UserError: it is not a whole checkpoint of this project, or wants to run something else.
    """
    try:
        if not checksum_matches(path):
            raise ValueError("it is broken")
        if path.is_dir():
            checkpoint = read_parts(path)
        else:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        config = checkpoint["run"]["config"]
        data, task = config.get("data"), config["task"]
    except Exception as error:  # torch has many kinds for a file that is broken or not its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a whole checkpoint of this project: {reason}") from error
    if strangers := untrusted([data, task]):
        raise UserError(
            f"{path} wants to run {', '.join(strangers)}, which is not trusted. If you trust it,"
            f" add it to {HERE}."
        )
    return checkpoint, OmegaConf.create(config)


def warn_if_untrusted(config: dict[str, Any]) -> None:
    """Say before a training what its checkpoints could not be built from again."""
    if strangers := untrusted([config.get("data"), config["task"]]):
        log.warning(
            f"evaluate and predict will refuse to run {', '.join(strangers)} for a checkpoint. If"
            f" they shall, add it to {HERE}."
        )


def untrusted(config: Any) -> list[str]:
    """Return every `_target_`, at any depth, that is not of a trusted place and kind."""
    if isinstance(config, list):
        return [target for value in config for target in untrusted(value)]
    if isinstance(config, dict):
        target = config.get("_target_")
        inner = untrusted(list(config.values()))
        if target is None or _trusted(str(target)) or target in _also_trusted():
            return inner
        return [str(target), *inner]
    if "${" in str(config):  # would be looked up in parts of the file that are not checked
        raise UserError(
            f"This checkpoint's config is not resolved ({config}): it is not from this project."
        )
    return []


def _trusted(target: str) -> bool:
    # By name before it is imported, by its origin after: torch.os.system begins with torch, too.
    if not target.startswith(TRUSTED):
        return False
    named = get_object(target)
    origin = f"{getattr(named, '__module__', '')}."
    if origin.startswith(OURS):
        return not origin.startswith(NOT_OURS)
    return origin.startswith(TRUSTED) and isinstance(named, type) and issubclass(named, KINDS)


def _also_trusted() -> list[str]:
    there = ALSO_TRUSTED.is_file()
    named = OmegaConf.select(OmegaConf.load(ALSO_TRUSTED), "trusted") if there else None
    return [named] if isinstance(named, str) else [*(named or [])]


def is_loadable(path: Path) -> bool:
    """Return whether a checkpoint is as it was written, and can be read."""
    try:
        if path.is_dir():
            refuse_code(path)
        file = path / EXTRA_STATE if path.is_dir() else path
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch has many kinds for a file that is broken
        return False
    return checksum_matches(path)


def refuse_unfit_checkpoint(path: Path, task: LightningModule, cfg: DictConfig) -> None:
    """Say why a run of `cfg` cannot resume from the checkpoint of another one.

    Raises:
        UserError: it has only weights, or those of another model, or another optimizer's state.
    """
    checkpoint, trained = read(path)
    if "optimizer_states" not in checkpoint:
        raise UserError(f"{path} has only weights. Pass init_from={path} to start from them.")
    task.configure_model()
    there, here = checkpoint["state_dict"], task.state_dict()
    if {k: v.shape for k, v in there.items()} != {k: v.shape for k, v in here.items()}:
        raise UserError(f"{path} is of another model. Pass init_from={path} to load what fits.")
    optimizer = trained.get("optimizer", {}).get("_target_")
    if optimizer != (cfg.get("optimizer") or {}).get("_target_"):
        raise UserError(
            f"{path} is of {optimizer}. Pass init_from={path} to start from its weights."
        )


def load_weights(task: LightningModule, path: Path) -> None:
    """Copy into `task` what a checkpoint has under the same name and of the same shape.

    Raises:
        UserError: nothing fits.
    """
    task.configure_model()
    there, here = read(path)[0]["state_dict"], task.state_dict()
    fits = {k: v for k, v in there.items() if k in here and here[k].shape == v.shape}
    if not fits:
        raise UserError(f"{path} has no weight that fits this model. Use another init_from.")
    task.load_state_dict(fits, strict=False)
    new = ", ".join(name for name in here if name not in fits)
    log.info(f"Starting from the weights of {path}" + (f", except {new}" if new else ""))


def trained_run(path: Path, cfg: DictConfig, folder: Path) -> tuple[Run, dict[str, Any]]:
    """Return the run of a checkpoint, ready to be built on this machine's device, and the file.

    Args:
        path: the checkpoint.
        cfg: configs/evaluate.yaml or predict.yaml; its `data` and `task` change those of the run.
        folder: where results go.
    """
    checkpoint, trained = read(path)
    requested: Any = OmegaConf.create(OmegaConf.to_container(cfg))  # takes new keys
    for group in ("data", "task"):
        # Resolved before `seed` is that of the training: predict has one of its own.
        changes = OmegaConf.to_container(cfg[group], resolve=True) if cfg.get(group) else {}
        requested[group] = OmegaConf.merge(trained.get(group) or {}, changes)
    requested.seed = trained.seed
    wanted, here = device.requested(requested), device.probe()
    try:  # the precision of the training, where it is possible here
        as_trained = replace(wanted, precision=trained.trainer.precision)
        settings = device.resolve(as_trained if wanted.precision == "auto" else wanted, here)
    except UserError:
        settings = device.resolve(wanted, here)
    if settings.num_devices > 1:
        raise UserError("evaluate and predict use one device. Remove trainer.devices.")
    log.info(f"{device.line(settings, requested)}; from {path}")
    return Run(requested, settings, RunFolder(folder), trains=False), checkpoint


def load_state(task: LightningModule, checkpoint: dict[str, Any], path: Path) -> None:
    """Load the weights of a checkpoint into its task, as Lightning's `load_from_checkpoint` does.

    Raises:
        UserError: the code has changed since.
    """
    task.configure_model()
    task.on_load_checkpoint(checkpoint)
    try:
        task.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} was made by other code than this: {reason}") from error
    task.eval()
