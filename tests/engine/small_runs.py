"""Small runs of the image project, by whose config and data the engine is tested."""

import csv
import hashlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from image_project.engine import device
from image_project.engine.run import RunFolder
from image_project.tasks.classification import ClassificationTask
from image_project.train import train
from omegaconf import DictConfig

HERE = device.probe()
DEVICES = ["cpu"] + ["mps"] * bool(HERE.mps) + ["cuda"] * bool(HERE.cuda)
# Two epochs of five steps, with a checkpoint before each.
SMALL = (
    "trainer.max_epochs=2",
    "trainer.limit_train_batches=5",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=1",
    "trainer.log_every_n_steps=1",
    "save.every_n_steps=1",
    "show=progress",  # pictures take a third of so short a run
)
Compose = Callable[..., DictConfig]
Finished = tuple[RunFolder, dict[str, float]]
Result = tuple[str, str, list[dict[str, str]], dict[str, Any]]


def compose_config(name: str, *overrides: str, package: str = "image_project") -> DictConfig:
    """Compose a config as the command line does."""
    with initialize_config_module(f"{package}.configs", version_base="1.3"):
        return compose(name, list(overrides))


def digest(checkpoint: Path) -> str:
    """Return a hash of the weights in a checkpoint."""
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    sha = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


def rows_of(run: RunFolder) -> list[dict[str, str]]:
    """Return the rows of metrics.csv."""
    with (run.path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def result(run: RunFolder) -> Result:
    """Return what must not depend on where a run was stopped."""
    metrics = json.loads(run.metrics.read_text(encoding="utf-8"))
    return digest(run.last), digest(run.best), rows_of(run), metrics


def stop_at(step: int, cfg: DictConfig, number: int = signal.SIGTERM) -> int:
    """Train until a signal in that step, and return the exit status."""

    def interrupt(task: Any, batch: Any, batch_idx: int) -> None:
        if task.global_step == step:
            signal.raise_signal(number)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ClassificationTask, "on_train_batch_start", interrupt)
        with pytest.raises(SystemExit) as end:
            train(cfg)
    return int(end.value.code or 0)
