"""Every experiment trains on every device here, and a run of it is never lost."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose_config, quick

from {{ cookiecutter.package_name }}.engine import device
from {{ cookiecutter.package_name }}.engine.resume.callback import Resume
from {{ cookiecutter.package_name }}.engine.run import RunFolder, run_folder
from {{ cookiecutter.package_name }}.evaluate import evaluate
from {{ cookiecutter.package_name }}.train import train

HERE = device.probe()
DEVICES = ["cpu"] + ["mps"] * bool(HERE.mps) + ["cuda"] * bool(HERE.cuda)


@pytest.mark.parametrize("accelerator", DEVICES)
def test_it_trains_a_batch_on_each_device(
    experiment: str, accelerator: str, tmp_path: Path
) -> None:
    options = (f"trainer.accelerator={accelerator}", "trainer.fast_dev_run=true", "resume=never")
    assert train(quick(experiment, tmp_path, *options))["epochs"] == 1


@pytest.fixture(scope="module")
def undisturbed(experiment: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run that nothing has stopped, and its metrics."""
    cfg = quick(experiment, tmp_path_factory.mktemp("runs"), "trainer.accelerator=cpu")
    metrics = train(cfg)
    return run_folder(cfg), metrics


def rows_of(run: RunFolder) -> list[dict[str, str]]:
    with (run.path / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_it_resumes_to_the_same_weights_and_rows(
    experiment: str, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, metrics = undisturbed
    end_of_batch = Resume.on_train_batch_end

    def power_cut(self: Any, trainer: Any, task: Any, outputs: Any, batch: Any, idx: int) -> None:
        end_of_batch(self, trainer, task, outputs, batch, idx)
        if trainer.current_epoch == 1 and idx == 1:
            raise ConnectionAbortedError

    cfg = quick(experiment, tmp_path, "trainer.accelerator=cpu")
    with monkeypatch.context() as patched:
        patched.setattr(Resume, "on_train_batch_end", power_cut)
        with pytest.raises(ConnectionAbortedError):
            train(cfg)
    assert train(cfg) == metrics
    run = run_folder(cfg)
    assert rows_of(run) == rows_of(whole)
    ours, theirs = (torch.load(one.last, weights_only=True)["state_dict"] for one in (run, whole))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_its_checkpoints_hold_plain_data(undisturbed: Any) -> None:
    run, _ = undisturbed
    for path in run.path.glob("checkpoints/*"):
        assert torch.load(path, map_location="cpu", weights_only=True)["run"]["config"]


def test_evaluate_needs_its_checkpoint_alone(undisturbed: Any) -> None:
    run, metrics = undisturbed
    options = ("+trainer.limit_test_batches=1", "trainer.accelerator=cpu")
    cfg = compose_config("evaluate", "run=latest", *options)
    cfg.run = str(run.path)  # which may hold what Hydra reads as its grammar
    again = evaluate(cfg)
    assert again == {name: metrics[name] for name in again}
