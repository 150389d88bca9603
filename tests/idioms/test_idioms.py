"""Ordinary Lightning code just works: it trains, resumes to the same bits, and is evaluated.

The code of a user is in code/, the commands are in table.py. A project is baked with that code in a
sub-package of its own; one process imports PyTorch, and each command is a fork of it.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import bake

from .table import HERE, IDIOMS, REGRESSION, Idiom, callback, shipped

IDIOM_TESTS = Path(__file__).parent


class Server:
    """A process that has imported the project."""

    def __init__(self, folder: Path) -> None:
        project = bake(folder, project_slug="idioms-project", starter="image-classification")
        self.source = project / "src"
        package = self.source / "idioms_project"
        shutil.copytree(IDIOM_TESTS / "code", package / "idioms")
        shutil.copytree(IDIOM_TESTS / "configs", package / "configs", dirs_exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "idioms.runs", self.source, folder / "runs"],
            cwd=IDIOM_TESTS.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("idioms"))
    with server.process:
        yield server
        server.process.kill()


class Shell:
    """Gives commands in a folder."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder

    def __call__(self, *argv: str, status: int = 0) -> str:
        answer = self.server.ask(argv=argv, folder=str(self.folder))
        assert answer["status"] == status, answer["output"]
        return answer["output"]

    def train(self, task: str, *overrides: str, data: str = "data.Points", status: int = 0) -> str:
        small = ("trainer.max_epochs=2", "trainer.accelerator=cpu", "show=progress")
        return self("train", *small, *Idiom(task, overrides, data).command(), status=status)

    @property
    def run(self) -> Path:
        (run,) = (self.folder / "runs").iterdir()
        return run

    def metrics(self, of: str = "metrics.json") -> dict[str, Any]:
        return json.loads((self.run / of).read_text())


@pytest.fixture
def shell(server: Server, tmp_path: Path) -> Shell:
    return Shell(server, tmp_path)


QUICK = [name for name, idiom in IDIOMS.items() if idiom.quick]
OTHERS = [name for name, idiom in IDIOMS.items() if not idiom.quick]


def check(server: Server, name: str) -> None:
    if needs := IDIOMS[name].needs:
        pytest.importorskip(needs)
    wrong = {part: text for part, text in server.ask(name=name).items() if text}
    assert wrong == {"name": name}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("name", QUICK)
def test_trains_resumes_exactly_and_is_evaluated(server: Server, name: str) -> None:
    check(server, name)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("name", OTHERS)
def test_trains_resumes_exactly_and_is_evaluated_too(server: Server, name: str) -> None:
    check(server, name)


def test_hyperparameters_are_the_users_own(shell: Shell) -> None:
    """`load_from_checkpoint` of Lightning gives them back, as they were trained."""
    shell.train(REGRESSION, "+task.lr=0.02", "+task.width=5", "+data.seed=7")
    code = (
        f"from {HERE}.regression import Regression; from {HERE}.data import Points;"
        f"best = {str(shell.run / 'checkpoints' / 'best.ckpt')!r};"
        "task, data = Regression.load_from_checkpoint(best), Points.load_from_checkpoint(best);"
        "print(dict(task.hparams), data.hparams.seed, task.net[0].out_features)"
    )
    environment = {**os.environ, "PYTHONPATH": str(shell.server.source)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "{'lr': 0.02, 'width': 5, 'seed': 2} 7 5"


def test_the_chosen_logger_is_self_logger(shell: Shell) -> None:
    shell.train("regression.Pictures", "logger=tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(shell.run / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["picture"]
    assert (shell.run / "metrics.csv").is_file()


def test_without_test_and_validation_a_run_is_finished(shell: Shell) -> None:
    output = shell.train("regression.NoTest", data="data.OnlyTrain")
    assert "NoTest has no test_step: nothing is tested." in output
    assert "is finished" in shell.train("regression.NoTest", data="data.OnlyTrain")
    shell("evaluate", "run=latest")


@pytest.mark.parametrize("keeper", ["EMAWeightAveraging", "own.EveryStepAveraging"])
def test_the_weights_that_were_scored_are_kept(shell: Shell, keeper: str) -> None:
    """Otherwise best.ckpt has the score of the averaged weights, and the others."""
    averages = (
        shipped("EMAWeightAveraging", decay=0.9)
        if keeper == "EMAWeightAveraging"
        else callback("own", f"{HERE}.callbacks.EveryStepAveraging")
    )
    shell.train("finetuning.Transfer", *averages, data="data.SameValAndTest")
    shell("evaluate", "run=latest")
    best = shell.metrics()["best val/loss"]
    assert shell.metrics("evaluate/metrics.json")["test/loss"] == pytest.approx(best, rel=1e-6)
    assert shell.metrics()["test/loss"] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(
    "where", [{}, {"dirpath": "'${run_dir}/own'"}], ids=["anywhere", "dirpath"]
)
def test_the_best_of_an_own_checkpoint_is_tested(shell: Shell, where: dict[str, str]) -> None:
    keeper = shipped("ModelCheckpoint", monitor="val/loss", **where)
    output = shell.train(REGRESSION, "~callbacks.best", *keeper, data="data.SameValAndTest")
    assert "Nothing was validated" not in output
    tested = shell.run / shell.metrics()["checkpoint"]
    assert tested.name.startswith("epoch=")
    shell("evaluate", "run=latest")
    best = shell.metrics()["best val/loss"]
    assert shell.metrics("evaluate/metrics.json")["test/loss"] == pytest.approx(best, rel=1e-6)
    assert {path.name for path in shell.folder.iterdir()} == {"runs", "output.txt"}


def test_nothing_is_kept_that_nobody_asked_for(shell: Shell) -> None:
    shell.train(REGRESSION, "~callbacks.best")
    kept = {path.name for path in shell.run.rglob("*.ckpt")}
    assert {name for name in kept if not name.startswith("step_")} == {"last.ckpt"}


@pytest.mark.parametrize("no_logger", ["logger=null", "~logger"])
def test_no_logger(shell: Shell, no_logger: str) -> None:
    shell.train(REGRESSION, no_logger, "show=default")
    assert shell.metrics()["test/loss"] > 0
    assert not (shell.run / "metrics.csv").exists()


def test_what_is_not_used_of_the_config_is_said(shell: Shell) -> None:
    said = "Regression does not use of the config: model, optimizer, scheduler"
    assert said in shell.train(REGRESSION, "optimizer.lr=5")
    assert shell.run.name.startswith("regression-")


def test_an_option_that_own_optimizers_ignore_is_said(shell: Shell) -> None:
    small = ("trainer.fast_dev_run=true", "trainer.accelerator=cpu", "show=progress")
    task = f"task._target_={HERE}.starter.OwnOptimizer"
    output = shell("train", *small, task, "optimizer.lr=5")
    assert "OwnOptimizer does not use of the config: optimizer.lr=5" in output
    assert "does not use" not in shell("train", *small)


def test_a_refused_command_leaves_no_folder(shell: Shell) -> None:
    shell.train(REGRESSION, "+task.no_such_option=1", status=1)
    assert not [*shell.folder.glob("runs/*")]


def test_a_stream_with_a_schedule_over_steps_needs_max_steps(shell: Shell) -> None:
    said = shell.train("regression.OneCycle", data="data.Stream", status=1)
    assert "trainer.max_steps" in said
    assert len(said.strip().splitlines()) <= 3, said
    shell.train("regression.OneCycle", "trainer.max_steps=14", data="data.Stream")


def test_predict_uses_an_ordinary_predict_dataloader(shell: Shell) -> None:
    shell.train(REGRESSION)
    shell("predict", "run=latest", "~show")
    import torch

    predictions = torch.load(shell.run / "predictions.pt", weights_only=True)
    assert [len(one) for one in predictions] == [8, 4]
    writer = callback("own", f"{HERE}.callbacks.Writer", output_dir="'${run_dir}'")
    (shell.run / "predictions.pt").unlink()
    shell("predict", "run=latest", "~show", *writer)
    written = torch.load(shell.run / "written.pt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(written, predictions, strict=True))
    assert not (shell.run / "predictions.pt").exists()
    assert "neither a predict_dataloader nor read_inputs" in shell(
        "predict", "run=latest", "input=x", status=1
    )


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_decides_nothing(shell: Shell, server: Server, workers: int) -> None:
    shell.train("regression.DictRegression", data="data.DictPoints")
    other = Shell(server, shell.folder / "other")
    number = f"+data.num_workers={workers}"
    other.train("regression.DictRegression", number, data="data.DictPoints")
    assert other.run.name == shell.run.name
    assert (other.run / "metrics.csv").read_text() == (shell.run / "metrics.csv").read_text()


def test_on_exception_and_its_checkpoint(shell: Shell) -> None:
    says = callback("says", f"{HERE}.callbacks.SaysWhy")
    keeps = shipped("OnExceptionCheckpoint", dirpath="'${run_dir}/own'")
    output = shell.train("regression.Fails", *says, *keeps, status=1)
    assert "on_exception: ZeroDivisionError" in output
    assert (shell.run / "own" / "on_exception.ckpt").is_file()


def test_finders_find(shell: Shell) -> None:
    """Where standard output is no terminal, too; the found value is the one that is trained with."""
    finder = shipped("LearningRateFinder", num_training_steps=20)
    shell.train(REGRESSION, *finder, "show=default")
    rows = (shell.run / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("lr-Adam")
    used = {row.split(",")[column] for row in rows[1:]} - {""}
    assert len(used) == 1 and used != {"0.01"}


def test_a_metric_by_step_and_by_epoch_is_one_curve() -> None:
    from image_project.callbacks.curves import columns_by_name

    logged = ("epoch", "step", "train/loss_step", "train/loss_epoch", "val_loss", "lr-Adam")
    assert columns_by_name(logged) == {
        ("train", "loss"): "train/loss_epoch",
        ("val", "loss"): "val_loss",
    }
