"""What the tests share: configs by their files, devices by a real operation on them, one run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }} import device, train
from {{ cookiecutter.package_name }}.run import Run

CONFIGS = Path(package.__file__).parent / "configs"
PROBE = device.probe()
DEVICES = ["cpu"] + ["mps"] * bool(PROBE.mps) + ["cuda"] * bool(PROBE.cuda)

Compose = Callable[..., DictConfig]


def names(group: str) -> list[str]:
    """The files of a config group: a new one is tested without a change here."""
    return sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))


def compose_config(name: str, *overrides: str) -> DictConfig:
    """The config of `name` as the command line composes it."""
    with initialize_config_module(f"{package.__name__}.configs", version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture
def config(tmp_path: Path) -> Compose:
    """A train config whose run goes to a temporary folder."""
    return lambda *overrides: compose_config(
        "train", f"runs_dir={tmp_path.as_posix()}/runs", *overrides
    )


@pytest.fixture(params=DEVICES)
def accelerator(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, float]]:
    """A finished run of two epochs, and the metrics that train() gave back."""
    runs = tmp_path_factory.mktemp("runs")
    cfg = compose_config("train", f"runs_dir={runs.as_posix()}", "trainer.max_epochs=2")
    metrics = train.train(cfg)
    return Run.of(cfg), metrics
