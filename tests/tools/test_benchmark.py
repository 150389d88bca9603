"""The benchmark compares like with like, and claims no more than it has measured."""

import functools
import importlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run
from hydra import compose, initialize_config_module
from image_project.engine import device
from image_project.engine.errors import UserError
from image_project.engine.run import identity
from image_project.tools.benchmark import subject as subject_module
from image_project.tools.benchmark.__main__ import TARGETS, benchmark
from image_project.tools.benchmark.clock import Clock, Over
from image_project.tools.benchmark.hardware import peak
from image_project.tools.benchmark.measure import Comparison, Row, how_many, measure
from image_project.tools.benchmark.report import Report, machine, remarks, show, verdict
from image_project.tools.benchmark.subject import Subject
from image_project.tools.benchmark.work import Units, declared_flops, measured_flops
from torch import nn

HERE = device.probe()
DEVICES = ["cpu"] + ["mps"] * bool(HERE.mps) + ["cuda"] * bool(HERE.cuda)
EXACT = ("trainer.precision=32-true", "matmul_precision=highest")


@pytest.fixture(scope="module", autouse=True)
def _code_read_once() -> Iterator[None]:
    """Keep the code that every identity is computed from."""
    source: Any = importlib.import_module("image_project.engine.run.identity")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(source, "essence", functools.cache(source.essence))
        yield


def compose_config(name: str, *overrides: str) -> Any:
    with initialize_config_module("image_project.configs", version_base="1.3"):
        return compose(name, list(overrides))


def subject_of(*overrides: str, accelerator: str = "cpu") -> Subject:
    cfg = compose_config("benchmark", *overrides)
    requested = replace(device.requested(cfg), accelerator=accelerator, devices=1)
    return Subject(cfg, device.resolve(requested, HERE))


@pytest.fixture(scope="module")
def row() -> Row:
    asked = compose_config("benchmark", "benchmark.rounds=2", "benchmark.steps=3").benchmark
    return measure(subject_of(), asked)


@pytest.mark.parametrize("accelerator", DEVICES)
@pytest.mark.parametrize(
    "overrides",
    [
        # SGD: Adam's steps are the same with gradients of any size.
        ("trainer.accumulate_grad_batches=2", "optimizer=sgd"),
        ("trainer.gradient_clip_val=0.1", "optimizer=sgd", "data.augment=true"),
        ("trainer.limit_train_batches=3", "scheduler=one_cycle"),  # several epochs
        pytest.param(("experiment=convnet",), marks=pytest.mark.slow),
    ],
    ids=lambda overrides: overrides[0],
)
def test_both_loops_take_the_same_steps_to_the_same_loss(
    overrides: tuple[str, ...], accelerator: str
) -> None:
    measured = subject_of(*overrides, *EXACT, accelerator=accelerator)
    project = measured.project(Clock(measured.device, 1, 6))
    bare = measured.bare(Clock(measured.device, 1, 6))
    assert (project.steps, len(bare.each)) == (6, 6)
    assert project.loss == pytest.approx(bare.loss, rel=1e-3)


def test_both_loops_of_a_language_model_end_at_the_same_loss() -> None:
    text_device: Any = importlib.import_module("text_project.engine.device")
    text_subject: Any = importlib.import_module("text_project.tools.benchmark.subject")
    text_clock: Any = importlib.import_module("text_project.tools.benchmark.clock")
    small = ("model.context=16", "model.width=16", "model.num_layers=1", "model.num_heads=2")
    with initialize_config_module("text_project.configs", version_base="1.3"):
        cfg = compose("benchmark", [*small, *EXACT, "trainer.accelerator=cpu"])
    settings = text_device.resolve(text_device.requested(cfg), text_device.probe())
    measured = text_subject.Subject(cfg, settings)
    losses = [
        loop(text_clock.Clock(measured.device, 1, 4)).loss
        for loop in (measured.project, measured.bare)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_another_training_is_not_called_the_same(row: Row) -> None:
    assert row.same_loss
    assert any("same loss" in line for line in remarks(row, {"threads": 1}))
    rounds = [
        replace(played, bare=replace(played.bare, loss=played.bare.loss * 1.1))
        for played in row.rounds
    ]
    other = replace(row, rounds=rounds)
    assert any("Not the same training" in line for line in remarks(other, {"threads": 1}))


def test_what_is_measured_is_what_train_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Any] = []

    def build(*args: Any) -> Any:
        built.append(original(*args))
        return built[-1]

    original = subject_module.build
    monkeypatch.setattr(subject_module, "build", build)
    measured = subject_of()
    measured.project(Clock(measured.device, 1, 2))
    trainer, task = built[0].trainer, built[0].task
    names = {type(callback).__name__ for callback in trainer.callbacks}
    assert {"Resume", "FusedOptimizers", "ModelCheckpoint", "Curves"} <= names
    assert [type(logger).__name__ for logger in trainer.loggers] == ["MetricsCSV"]
    assert task.global_step == 2  # it ends inside the third; a bare loop would leave it at 0


def test_speeds_within_the_noise_are_a_tie_and_others_are_not() -> None:
    beside = [100.0, 104.0, 97.0, 101.0, 99.0]
    again = [103.0, 99.0, 101.0, 98.0, 104.0]
    assert Comparison.of([101.0, 102.0, 98.0, 100.0, 99.0], beside, again).verdict == "a tie"
    slower = Comparison.of([80.0, 81.0, 79.0, 82.0, 80.0], beside, again)
    assert slower.verdict == "different"
    assert slower.ratio.median == pytest.approx(0.8, abs=0.02)
    faster = Comparison.of([130.0, 128.0, 131.0, 127.0, 133.0], beside, again)
    assert faster.verdict == "different"
    assert "tie" not in verdict(slower)


def test_the_table_has_plain_numbers_and_lines_without_blanks_at_their_ends(
    row: Row, capsys: pytest.CaptureFixture[str]
) -> None:
    step = replace(row.project.step, low=0.427, median=0.574, high=1.06)
    slow = replace(row, project=replace(row.project, step=step))
    show(Report("mlp-1", [], "today", machine(HERE), [slow], []))
    lines = capsys.readouterr().out.splitlines()
    assert "427 to 1,060" in lines[2]
    assert lines == [line.rstrip() for line in lines]


def test_the_noise_does_not_depend_on_which_of_two_equal_loops_is_first() -> None:
    one, other = [100.0, 90.0, 110.0], [101.0, 108.0, 95.0]
    assert Comparison.of(one, one, other).noise == Comparison.of(one, other, one).noise


def test_a_few_rounds_decide_nothing(row: Row) -> None:
    assert row.comparison.verdict == "unknown"
    assert "too few" in verdict(row.comparison)


def test_a_validation_does_not_count() -> None:
    clock = Clock(torch.device("cpu"), 1, 2)
    task = nn.Linear(1, 1)
    task.training_step = lambda batch: task(batch).sum()  # type: ignore[assignment]
    clock.watch(task)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)

    def train() -> None:
        while True:
            task.training_step(torch.ones(1, 1)).backward()  # type: ignore[operator]
            optimizer.step()
            clock.outside(lambda: time.sleep(0.5))()

    with clock.running(), pytest.raises(Over):
        train()
    timing = clock.timing()
    assert timing.steps == 2
    assert timing.seconds < 0.4
    assert timing.each == []  # each step had a validation before it


@pytest.mark.parametrize("asked", ["auto", 40])
def test_the_steps_fit_into_the_time_unless_they_are_asked_for(asked: str | int) -> None:
    warmup, steps = how_many(asked, rounds=3, seconds=10, step=0.05)
    assert steps == 40 if asked == 40 else (steps + warmup) * 10 * 0.05 <= 10
    assert warmup >= 1


def test_a_step_that_takes_too_long_is_refused_with_what_to_do() -> None:
    with pytest.raises(UserError, match=r"benchmark\.seconds") as refused:
        how_many("auto", rounds=7, seconds=30, step=60)
    assert "\n" not in str(refused.value)


def test_integers_in_two_axes_are_tokens() -> None:
    tokens, images = Units(), Units()
    tokens.add([torch.zeros(4, 16, dtype=torch.int64)] * 2)
    images.add([torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)])
    assert (tokens.name, tokens.total) == ("tokens", 64)
    assert (images.name, images.total) == ("samples", 4)


def test_the_flops_that_a_model_declares_win_over_those_measured() -> None:
    """A product of a weight takes two, forward, and as many for each of two gradients."""
    found = []

    def look(loop: Any) -> None:
        loop.task.model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
        batch = torch.ones(16, 4)
        loop.training_step = lambda batch, index: loop.task.model(batch).sum()
        expected = 6 * (4 * 8 + 8 * 2) - 2 * 4 * 8  # no gradient of the batch
        found.append((measured_flops(loop, batch), expected))
        found.append((declared_flops(loop, "samples"), None))
        loop.task.model.flops_per_sample = lambda: 7
        found.append((declared_flops(loop, "samples"), 7))

    subject_of().once(look)
    for flops, expected in found:
        assert (flops and flops.each) == expected


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Tesla T4", None),
    ],
)
def test_a_peak_is_that_of_the_very_gpu(name: str, teraflops: float | None) -> None:
    assert peak(name) == (None if teraflops is None else teraflops * 1e12)


def test_each_device_has_a_row_and_no_run_is_made(tmp_path: Path) -> None:
    asked = ("benchmark.targets=[mps,cuda,cpu]", "benchmark.rounds=1", "benchmark.steps=2")
    runs = f"runs_dir={(tmp_path / 'runs').as_posix()}"
    report = benchmark(compose_config("benchmark", runs, *asked))
    rows = {row["target"]: row for row in report.as_plain()["rows"]}
    assert set(rows) == set(TARGETS)
    assert rows["cpu"]["project"]["rate"]["median"] > 0
    for target in ("mps", "cuda"):
        assert ("why" in rows[target]) is not bool(getattr(HERE, target))
    assert list(tmp_path.iterdir()) == []


def test_the_command_leaves_a_table_and_nothing_else(tmp_path: Path) -> None:
    small = ("benchmark.targets=[cpu]", "benchmark.rounds=1", "benchmark.steps=2")
    done = run(sys.executable, "-m", "image_project", "benchmark", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "bare loop" in done.stdout
    (file,) = (tmp_path / "benchmarks").glob("*/*")
    assert [path.name for path in tmp_path.iterdir()] == ["benchmarks"]
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["overrides"] == list(small)
    assert [row["target"] for row in report["rows"]] == ["cpu"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["optimizer.lr=-1"], "Invalid learning rate"),
        (["benchmark.targets=[abacus]"], "must be of: mps, cuda, cpu"),
        (["benchmark.rounds=0"], "must be more than 0"),
    ],
)
def test_a_failing_experiment_is_one_sentence(tmp_path: Path, args: list[str], says: str) -> None:
    words = (*args, "benchmark.steps=2")
    done = run(sys.executable, "-m", "image_project", "benchmark", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_fails_on_a_device_leaves_the_others_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(Subject, "project", refuse)
    asked = ("benchmark.targets=[cpu]", "benchmark.steps=2")
    report = benchmark(compose_config("benchmark", *asked))
    assert report.rows == []
    (failed,) = report.unmeasured
    assert "Lower data.batch_size" in failed.why


def test_a_benchmark_is_of_the_run_that_train_would_make() -> None:
    plain, asked = compose_config("train"), compose_config("benchmark", "benchmark.rounds=3")
    assert identity(plain) == identity(asked)
