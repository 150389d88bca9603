"""What is in a checkpoint, and how everything is built again from it.

It holds tensors and plain data only, so that `weights_only=True` loads it. Under `hyper_parameters`
stands the whole resolved config as it was asked for: what was `auto` then is decided again here.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from . import device
from .errors import UserError
from .run import Run

log = logging.getLogger(__name__)


def read(path: Path) -> tuple[dict[str, Any], DictConfig]:
    """A checkpoint, its tensors on the CPU, and the config in it.

    Raises:
        UserError: it is not a whole checkpoint of this project.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return checkpoint, OmegaConf.create(checkpoint["hyper_parameters"])
    except Exception as error:  # torch has many kinds for a file that is broken or not its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} is not a whole checkpoint of this project: {reason}") from error


def load_task(path: Path) -> LightningModule:
    """The task of a checkpoint with its weights, on the CPU, in evaluation mode."""
    checkpoint, config = read(path)
    task: LightningModule = instantiate(config.task)
    task.load_state_dict(checkpoint["state_dict"])
    return task.eval()


def load_run(run: str, runs_dir: str = "runs") -> tuple[LightningModule, Any]:
    """The task (best checkpoint, evaluation mode) and the datamodule of a run, for a notebook.

        task, datamodule = load_run("latest")

    Args:
        run: a run's folder, a checkpoint, or `latest`.
        runs_dir: where `latest` looks.
    """
    _, path = Run.find(run, runs_dir)
    _, trained = read(path)
    choice = device.choose(device.Request(), device.probe())
    return load_task(path), instantiate(device.settle(trained, choice).data)


def rebuild(path: Path, cfg: DictConfig, folder: Path) -> tuple[Trainer, LightningModule, Any]:
    """What a checkpoint was trained with, on this machine's device.

    Args:
        path: the checkpoint.
        cfg: configs/evaluate.yaml or predict.yaml; its `data` changes that of the run.
        folder: what the callbacks know as `run_dir`.
    """
    _, trained = read(path)
    plain = OmegaConf.create(OmegaConf.to_container(cfg))  # without Hydra's guard against new keys
    data = OmegaConf.merge(trained.data, cfg.data)
    cfg = OmegaConf.merge(plain, {"run_dir": str(folder), "data": data})  # type: ignore[assignment]
    want, here = device.request(cfg), device.probe()
    try:  # the precision that the run asked for, where it is possible here
        as_trained = replace(want, precision=trained.trainer.precision)
        choice = device.choose(as_trained if want.precision == "auto" else want, here)
    except UserError:
        choice = device.choose(want, here)
    settled = device.settle(cfg, choice)
    log.info(device.line(choice, settled))
    torch.set_float32_matmul_precision(choice.matmul_precision)
    callbacks = list(instantiate(settled.callbacks).values())
    trainer: Trainer = instantiate(settled.trainer, callbacks=callbacks)
    return trainer, load_task(path), instantiate(settled.data)
