"""Every experiment trains on every device here; a run is continued, and not repeated."""

import csv
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROBE, Compose, names, starter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from {{ cookiecutter.package_name }} import run
from {{ cookiecutter.package_name }}.checkpoint import load_run
from {{ cookiecutter.package_name }}.errors import UserError
from {{ cookiecutter.package_name }}.run import Run
from {{ cookiecutter.package_name }}.train import train


@pytest.mark.parametrize("experiment", ["default", *names("experiment")])
def test_every_experiment_runs_on_every_device(
    config: Compose, experiment: str, accelerator: str
) -> None:
    chosen = [] if experiment == "default" else [f"experiment={experiment}"]
    metrics = train(config(*chosen, "debug=fast", f"trainer.accelerator={accelerator}"))
    assert metrics["steps"] == 1


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={name}"
        for group in ("model", "task", "optimizer", "scheduler")
        for name in names(group)
    ],
)
def test_every_part_trains_to_the_end(config: Compose, choice: str) -> None:
    metrics = train(config(choice, "trainer.max_epochs=2", "trainer.limit_train_batches=8"))
    assert metrics["epochs"] == 2
    losses = [value for name, value in metrics.items() if name.endswith("loss")]
    assert torch.tensor(losses).isfinite().all()


@pytest.mark.parametrize("debug", names("debug"))
def test_every_debug_preset_runs_again_each_time(config: Compose, debug: str) -> None:
    preset = config(f"debug={debug}")
    preset.trainer.max_epochs = min(preset.trainer.max_epochs, 2)
    first = Run.of(preset).folder
    train(preset)
    assert first.is_dir()
    assert Run.of(preset).folder != first


def test_a_metric_that_is_not_there_is_said_before_the_training(config: Compose) -> None:
    with pytest.raises(UserError, match="monitor=val/los is not logged: did you mean val/loss"):
        train(config("monitor=val/los"))


def test_a_run_leaves_everything_in_its_folder(finished: tuple[Run, dict[str, float]]) -> None:
    run, metrics = finished
    there = {path.relative_to(run.folder).as_posix() for path in run.folder.rglob("*.*")}
    assert there >= {
        "checkpoints/best.ckpt",
        f"checkpoints/step_{metrics['steps']:09d}.ckpt",
        "config.yaml",
        "curves.png",
        "log.txt",
        "metrics.csv",
        "metrics.json",
        starter.LEAVES,
    }
    saved = json.loads(run.metrics.read_text(encoding="utf-8"))
    assert {key: saved[key] for key in metrics} == metrics
    assert starter.has_learned(metrics)


def test_tensorboard_goes_on_with_a_run(config: Compose) -> None:
    def asked(epochs: int) -> Any:
        short = ("trainer.limit_train_batches=2", "scheduler=constant", "callbacks=best")
        return config("logger=tensorboard", f"trainer.max_epochs={epochs}", *short)

    train(asked(1))
    train(asked(2))
    events = Run.of(asked(2)).folder.glob("tensorboard/events.out.tfevents.*")
    assert len(list(events)) >= 2


def test_a_finished_run_is_shown_and_not_trained_again(
    config: Compose, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config("trainer.max_epochs=1", "trainer.limit_train_batches=2")
    first = train(cfg)
    monkeypatch.setattr("lightning.Trainer.fit", None)
    with caplog.at_level(logging.INFO):
        again = train(cfg)
    assert "is finished" in caplog.text
    assert {key: again[key] for key in first} == first


def test_the_same_command_continues_as_if_it_had_not_been_stopped(
    config: Compose, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(task: Any) -> None:
        if task.current_epoch == 2:
            raise ConnectionAbortedError

    cfg = config("trainer.max_epochs=4", "save.every_n_steps=20")
    with monkeypatch.context() as patched:
        patched.setattr(starter.Task, "on_train_epoch_start", power_cut)
        with pytest.raises(ConnectionAbortedError):
            train(cfg)
    with caplog.at_level(logging.INFO):
        metrics = train(cfg)
    assert "Going on from" in caplog.text
    assert metrics["epochs"] == 4
    with (Run.of(cfg).folder / "metrics.csv").open(newline="") as file:
        validated = [row["epoch"] for row in csv.DictReader(file) if row["val/loss"]]
    assert validated == ["0", "1", "2", "3"]
    undisturbed = train(config("trainer.max_epochs=4", "resume=never"))
    assert metrics == undisturbed


def test_a_run_that_stopped_early_stays_stopped(config: Compose) -> None:
    def asked(epochs: int) -> Any:
        patience = "callbacks.early_stopping.patience=1"
        return config(
            f"trainer.max_epochs={epochs}",
            "scheduler=constant",
            patience,
            *starter.STOPS,
        )

    first = train(asked(40))
    assert first["epochs"] < 40
    assert train(asked(50)) == first
    assert train(asked(40)) == first


def test_max_steps_may_end_a_run_before_its_first_validation(config: Compose) -> None:
    assert train(config("trainer.max_steps=2"))["steps"] == 2


def test_a_test_set_may_be_left_out(config: Compose) -> None:
    assert "test/loss" not in train(config("trainer.max_epochs=1", "trainer.limit_test_batches=0"))


def test_a_result_in_mixed_precision_is_that_of_float32(config: Compose) -> None:
    one = ("trainer.max_epochs=2", "trainer.limit_test_batches=1")
    mixed = config("trainer.precision=bf16-mixed", *one)
    metrics = train(mixed)
    task, datamodule = load_run(str(Run.of(mixed).folder))
    datamodule.setup("test")
    inputs, targets = next(iter(datamodule.test_dataloader()))
    with torch.no_grad():
        logits = task(inputs).flatten(0, -2)
    loss = torch.nn.functional.cross_entropy(logits, targets.flatten())
    assert metrics["test/loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.skipif("cpu" not in PROBE.compiles, reason="needs a C++ compiler")
def test_a_compiled_run_leaves_what_any_other_does(
    config: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("trainer.max_epochs=1", "trainer.limit_train_batches=3", "trainer.accelerator=cpu")
    options += ("scheduler=constant", "optimizer.lr=0.001", "trainer.gradient_clip_val=1")
    plain, compiled = config(*options), config(*options, "compile=true")
    with caplog.at_level(logging.INFO):
        metrics = train(compiled)
    assert "The first step took" in caplog.text
    assert metrics["test/loss"] == pytest.approx(train(plain)["test/loss"], rel=1e-3)
    states = [
        torch.load(Run.of(cfg).checkpoints()[0], weights_only=True)["state_dict"]
        for cfg in (plain, compiled)
    ]
    assert list(states[0]) == list(states[1])
    longer = config(*options, "trainer.max_epochs=2")
    longer.ckpt_path = str(Run.of(compiled).checkpoints()[0])
    train(longer)  # goes on without the compiler
    assert "not to the same bits" in caplog.text


def test_a_torn_row_of_metrics_does_not_stop_a_run(config: Compose) -> None:
    train(config("trainer.max_epochs=1", "scheduler=constant"))
    longer = config("trainer.max_epochs=2", "scheduler=constant")
    metrics = Run.of(longer).folder / "metrics.csv"
    metrics.write_text(metrics.read_text() + "1,")
    assert train(longer)["epochs"] == 2


def test_more_epochs_continue_a_finished_run_and_fewer_are_refused(config: Compose) -> None:
    def asked(epochs: int) -> Any:
        return config(f"trainer.max_epochs={epochs}", "scheduler=constant")

    train(asked(2))
    assert train(asked(3))["epochs"] == 3
    assert Run.of(asked(3)).folder == Run.of(asked(2)).folder
    with pytest.raises(UserError, match="resume=never"):
        train(asked(1))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("trainer.accelerator=cpu", True),
        ("data.num_workers=1", True),
        ("logger=tensorboard", True),
        ("callbacks=best", False),
        ("seed=1", False),
        ("optimizer.lr=0.5", False),
        ("data.batch_size=16", False),
        ("data.global_batch_size=32", False),
        ("trainer.devices=2", True),
        ("trainer.strategy=fsdp", True),
        ("trainer.precision=bf16-mixed", False),
    ],
)
def test_only_what_decides_the_weights_decides_the_folder(
    config: Compose, change: str, same: bool
) -> None:
    assert (Run.of(config(change)).folder == Run.of(config()).folder) is same


def test_a_change_of_code_makes_a_new_run(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Run.of(config()).folder
    edited = tmp_path / "package"
    shutil.copytree(Path(run.__file__).parent, edited)
    monkeypatch.setattr(run, "__file__", str(edited / "run.py"))
    assert Run.of(config()).folder == before
    (edited / "doctor" / "new.py").write_text("x = 1")  # no run uses it
    assert Run.of(config()).folder == before
    (edited / "models" / "new.py").write_text("x = 1")
    assert Run.of(config()).folder != before


def test_no_secret_of_the_environment_is_written_down(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "s3cr3t-f0r-th1s-t3st"
    for name in ("WANDB_API_KEY", "COMET_API_KEY", "MLFLOW_TRACKING_URI", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, secret)
    cfg = config("trainer.max_epochs=1", "trainer.limit_train_batches=2", "logger=tensorboard")
    train(cfg)
    for file in Run.of(cfg).folder.rglob("*.*"):
        assert secret.encode() not in file.read_bytes(), file


def test_training_makes_no_float64(config: Compose) -> None:
    """MPS has none; a whole run on the CPU shows it, optimizer and metrics included."""

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_flatten(out)[0]:
                if isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64:
                    made.add(str(func))
            return out

    made: set[str] = set()
    with Recorder():
        train(config("debug=limit", *starter.RANDOM))
    assert not made
