"""What the tests share: configs by their files, devices by a real operation on them, one run."""

from collections.abc import Callable
from pathlib import Path

import {{ cookiecutter.starter | replace('-', '_') }} as starter
import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }} import device, train
from {{ cookiecutter.package_name }}.run import Run

CONFIGS = Path(package.__file__).parent / "configs"
PROBE = device.probe()
QUICK = [f"{key}={value}" for key, value in starter.TINY.items()]  # as it is typed
DEVICES = ["cpu"] + ["mps"] * bool(PROBE.mps) + ["cuda"] * bool(PROBE.cuda)

Compose = Callable[..., DictConfig]


def names(group: str) -> list[str]:
    """The files of a config group: a new one is tested without a change here."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def compose_config(name: str, *overrides: str) -> DictConfig:
    """The config of `name` as the command line composes it."""
    with initialize_config_module(f"{package.__name__}.configs", version_base="1.3"):
        return compose(name, list(overrides))


def quick(*overrides: str, command: str = "train") -> DictConfig:
    """A config, made small where an override does not say otherwise and a part can be."""
    cfg = compose_config(command, *overrides)
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    for key, value in starter.TINY.items():
        group, _, setting = key.partition(".")
        if key not in given and setting in cfg[group]:
            OmegaConf.update(cfg, key, value)
    return cfg


@pytest.fixture
def config(tmp_path: Path) -> Compose:
    """A train config whose run is quick, and goes to a temporary folder."""
    return lambda *overrides: quick(f"runs_dir={tmp_path.as_posix()}/runs", *overrides)


@pytest.fixture(params=DEVICES)
def accelerator(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, float]]:
    """A finished run of two epochs, and the metrics that train() gave back."""
    runs = tmp_path_factory.mktemp("runs")
    whole = ("trainer.max_epochs=2", "trainer.limit_test_batches=1.0")
    cfg = quick(f"runs_dir={runs.as_posix()}", *whole)
    metrics = train.train(cfg)
    return Run.of(cfg), metrics
