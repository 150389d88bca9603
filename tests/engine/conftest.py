"""What the engine's tests share: configs of runs in a temporary folder, and a finished run.

The projects are baked after this file is read, so their packages are imported in the fixtures.
"""

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def code_read_once() -> Iterator[None]:
    """Keep the code that every identity is computed from."""
    identity: Any = importlib.import_module("image_project.engine.run.identity")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(identity, "essence", functools.cache(identity.essence))
        yield


@pytest.fixture
def config(tmp_path: Path) -> Any:
    """Compose a train config whose run goes to a temporary folder."""
    from .small_runs import compose_config

    runs_dir = f"runs_dir={tmp_path.as_posix()}/runs"
    return lambda *overrides: compose_config("train", runs_dir, *overrides)


@pytest.fixture
def small(config: Any) -> Any:
    """Compose the config of a run of ten steps."""
    from .small_runs import SMALL

    return lambda *overrides: config(*SMALL, *overrides)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run of two whole epochs, and the metrics that train() gave back."""
    from image_project.engine.run import run_folder
    from image_project.train import train

    from .small_runs import compose_config

    runs = tmp_path_factory.mktemp("runs").as_posix()
    cfg = compose_config("train", f"runs_dir={runs}", "trainer.max_epochs=2")
    metrics = train(cfg)
    return run_folder(cfg), metrics
