"""What the starters' tests share: runs of both projects."""

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run of the image project, and the metrics that train() gave back."""
    from engine.small_runs import compose_config
    from image_project.engine.run import run_folder
    from image_project.train import train

    runs = tmp_path_factory.mktemp("runs").as_posix()
    cfg = compose_config("train", f"runs_dir={runs}", "trainer.max_epochs=3")
    metrics = train(cfg)
    return run_folder(cfg), metrics


@pytest.fixture
def tiny(tmp_path: Path) -> Any:
    """Compose a run of a tiny language model, which goes to a temporary folder."""
    from .small_texts import TINY, compose_text

    runs_dir = f"runs_dir={tmp_path.as_posix()}/runs"
    return lambda *overrides: compose_text("train", runs_dir, *TINY, *overrides)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run of a tiny language model, and its metrics."""
    from text_project.engine.run import run_folder
    from text_project.train import train

    from .small_texts import TINY, compose_text

    runs = tmp_path_factory.mktemp("runs").as_posix()
    cfg = compose_text("train", f"runs_dir={runs}", *TINY, "trainer.max_epochs=2")
    metrics = train(cfg)
    return run_folder(cfg), metrics
