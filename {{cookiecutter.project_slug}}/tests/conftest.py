"""What the tests share. They find experiments by their files: a new one needs no change here."""

from pathlib import Path

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine import device
from {{ cookiecutter.package_name }}.engine.files import is_leftover

CONFIGS = Path(package.__file__).parent / "configs"
LARGE = 10_000_000  # parameters of a model that is composed and rehearsed, and not trained here


def names(group: str) -> list[str]:
    """Return the files of a config group."""
    files = (CONFIGS / group).glob("*.yaml")
    return sorted(file.stem for file in files if not is_leftover(Path(file.name)))


EXPERIMENTS = ["default", *names("experiment")]


def compose_config(command: str, *overrides: str) -> DictConfig:
    """Compose the config of a command as the command line does."""
    with initialize_config_module(f"{package.__name__}.configs", version_base="1.3"):
        return compose(command, list(overrides))


def chosen(experiment: str) -> list[str]:
    return [] if experiment == "default" else [f"experiment={experiment}"]


def quick(experiment: str, folder: Path, *overrides: str) -> DictConfig:
    """Compose an experiment as a run of two epochs of four batches, on any one device."""
    short = (
        *("trainer.max_epochs=2", "trainer.max_steps=-1", "trainer.log_every_n_steps=1"),
        *(f"trainer.limit_{part}_batches=1" for part in ("val", "test")),
        *("trainer.limit_train_batches=4", "trainer.val_check_interval=1.0"),
        *(f"trainer.{key}=auto" for key in ("strategy", "precision")),
        *("trainer.devices=1", "require_accelerator=null", "compile=false"),
        *(f"runs_dir={folder.as_posix()}", "save.every_n_steps=1"),
    )
    return compose_config("train", *chosen(experiment), *short, *overrides)


def settled(cfg: DictConfig) -> DictConfig:
    """Answer every `auto`, as each command does before it builds anything."""
    return device.apply(cfg, device.resolve(device.requested(cfg), device.probe()))


def why_not(experiment: str) -> str | None:
    """Say why it is not trained here: it is large, or its YAML says `tests: {skip: "why"}`."""
    cfg = compose_config("train", *chosen(experiment))
    with torch.device("meta"):  # which takes no memory
        task: L.LightningModule = instantiate(cfg.task, _convert_="partial")
    size = sum(parameter.numel() for parameter in task.parameters())
    too_large = f"{size:,} parameters are too many for a test" if size >= LARGE else None
    return cfg.tests.skip or too_large


@pytest.fixture(scope="module", params=EXPERIMENTS)
def experiment(request: pytest.FixtureRequest) -> str:
    """Each experiment that is trained here."""
    if reason := why_not(request.param):
        pytest.skip(reason)
    return str(request.param)
