"""A sweep is a list of runs: the same command resumes it, whatever was killed."""

import contextlib
import functools
import importlib
import json
import logging
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import run
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from image_project.engine.errors import UserError
from image_project.engine.run import Signals, run_folder
from image_project.tools.sweep.__main__ import plan, sweep, take_swept
from image_project.tools.sweep.command import Command
from image_project.tools.sweep.means import means
from image_project.tools.sweep.space import read_space
from image_project.tools.sweep.workers import environments
from omegaconf import open_dict
from scipy import stats

STAND_IN = Path(__file__).parent / "stand_in.py"
SEARCH = ("sweep=optuna", "sweep.num_runs=6", "sweep.sampler.n_startup_trials=3")
GRID = ("optimizer.lr=0.1,0.01", "seed=0,1")


@pytest.fixture(scope="module", autouse=True)
def _code_read_once() -> Any:
    """Keep the code that every identity is computed from."""
    identity: Any = importlib.import_module("image_project.engine.run.identity")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(identity, "essence", functools.cache(identity.essence))
        yield


def compose_config(name: str, *overrides: str, package: str = "image_project") -> Any:
    with initialize_config_module(f"{package}.configs", version_base="1.3"):
        return compose(name, list(overrides))


@contextlib.contextmanager
def planned(*words: str) -> Iterator[tuple[Any, int]]:
    """Yield the sweep that these words describe, not started, and its number of workers."""
    fixed, swept = take_swept(words)
    ours = [word for word in fixed if word.startswith("sweep")]
    command = Command(fixed=tuple(word for word in fixed if word not in ours))
    # Hydra stays initialized, since a search composes its runs one by one.
    with initialize_config_module("image_project.configs", version_base="1.3"):
        cfg = compose("sweep", fixed)
        yield plan(cfg, "a", command, swept), cfg.sweep.num_workers


@pytest.fixture
def done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """Compute a sweep of stand-ins in this process; return its exit status and what it said."""
    replace_train = runpy.run_path(str(STAND_IN))["replace_train"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Command, "argv", replace_train(0.0))
    caplog.set_level(logging.INFO, "image_project")

    def done(*words: str) -> tuple[int, str]:
        caplog.clear()
        with planned(*words) as (runs, num_workers):
            return int(not sweep(runs, num_workers)), caplog.text

    return done


def start(folder: Path, *words: str, seconds: float = 0.0) -> "subprocess.Popen[str]":
    """Start a sweep of stand-ins in a process of its own."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, STAND_IN, str(seconds), *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results(folder: Path) -> dict[str, Any]:
    (written,) = folder.glob("runs/sweeps/*/sweep.json")
    return dict(json.loads(written.read_text(encoding="utf-8")))


def begun(folder: Path) -> list[int]:
    """Return how often each run was begun."""
    return [len(path.read_text()) for path in folder.glob("runs/*/begun")]


def wait_for(number: int, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while len(begun(folder)) < number and time.monotonic() < deadline:
        time.sleep(0.02)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    "words", [GRID, pytest.param(SEARCH, marks=pytest.mark.slow)], ids=lambda words: words[0]
)
def test_a_sweep_that_is_killed_again_and_again_ends_with_the_same_results(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    with start(whole, *words) as undisturbed:
        for number in (1, 3):
            with start(killed, *words, seconds=0.3) as sweep:
                wait_for(number, killed)
                sweep.kill()
        with start(killed, *words) as last:
            assert last.stdout is not None
            assert last.stdout.read()
        assert undisturbed.stdout is not None
        assert undisturbed.stdout.read()
    assert (last.returncode, undisturbed.returncode) == (0, 0)
    assert results(killed) == results(whole)
    assert {row["state"] for row in results(whole)["runs"]} == {"finished"}
    # What was finished is not computed again, nor what the killed sweep's last process still did.
    assert begun(killed) == [1] * len(results(whole)["runs"])


def test_a_finished_sweep_is_shown_and_no_run_begun_again(tmp_path: Path, done: Any) -> None:
    for _ in range(2):
        status, said = done(*GRID)
        assert status == 0
    assert begun(tmp_path) == [1] * 4
    assert len([line for line in said.splitlines() if "runs/mlp-" in line]) <= 4
    assert "sweep.json" in said


def test_a_larger_grid_takes_what_a_smaller_one_has_computed(tmp_path: Path, done: Any) -> None:
    assert done("seed=0,1")[0] == 0
    assert done("seed=0,1,2")[0] == 0
    assert begun(tmp_path) == [1] * 3


def test_a_failing_run_does_not_stop_the_rest_and_is_tried_again(tmp_path: Path, done: Any) -> None:
    for tries in (1, 2):
        status, said = done("seed=12,13,14")
        assert status == 1
        assert "failed: seed=13: it went wrong" in said
        states = {row["overrides"]["seed"]: row["state"] for row in results(tmp_path)["runs"]}
        assert states == {"12": "finished", "13": "failed", "14": "finished"}
        assert sorted(begun(tmp_path)) == [1, 1, tries]


def test_what_failed_in_a_study_is_tried_again_with_the_same_values(
    tmp_path: Path, done: Any
) -> None:
    for _ in range(2):
        assert done("sweep=optuna", "sweep.num_runs=2", "seed=13")[0] == 1
    assert begun(tmp_path) == [2, 2]
    rows = results(tmp_path)["runs"]
    assert [(row["state"], row["why"]) for row in rows] == [("failed", "it went wrong")] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_ends_the_runs_too_and_the_status_says_so(
    tmp_path: Path, number: int, status: int
) -> None:
    with start(tmp_path, "seed=0,1,2", seconds=100) as sweep:
        wait_for(1, tmp_path)
        sweep.send_signal(number)
        said = sweep.communicate(timeout=120)[0]
    assert sweep.returncode == status
    assert "The same command resumes the sweep" in said
    assert begun(tmp_path) == [1]


@pytest.mark.slow
def test_workers_in_several_processes_share_a_sweep_without_double_work(tmp_path: Path) -> None:
    """As the tasks of a Slurm array do; and one process may have several of them."""
    words = (*SEARCH, "sweep.num_workers=2")
    with start(tmp_path, *words, seconds=0.3) as one, start(tmp_path, *words, seconds=0.3) as other:
        said = one.communicate(timeout=300)[0] + other.communicate(timeout=300)[0]
    assert (one.returncode, other.returncode) == (0, 0), said
    assert begun(tmp_path) == [1] * 6
    with start(tmp_path, *words) as again:
        said = again.communicate(timeout=300)[0]
    assert (again.returncode, begun(tmp_path)) == (0, [1] * 6), said
    assert [row["state"] for row in results(tmp_path)["runs"]] == ["finished"] * 6


def test_more_runs_continue_the_same_study_and_optuna_draws_it(tmp_path: Path, done: Any) -> None:
    assert done(*SEARCH, "sweep.num_runs=3")[0] == 0
    first = results(tmp_path)["runs"]
    status, said = done(*SEARCH, "sweep.num_runs=5")
    assert status == 0
    more = results(tmp_path)["runs"]
    assert more[:3] == first
    assert len(more) == 5
    pictures = {path.name for path in tmp_path.glob("runs/sweeps/*/*.png")}
    assert pictures == {"history.png", "importances.png", "parallel.png"}
    assert all(name in said for name in pictures)


@pytest.mark.slow
def test_real_runs_are_trained_and_pruned_and_can_be_finished_by_hand(tmp_path: Path) -> None:
    words = (
        "trainer.max_epochs=4",
        "trainer.limit_train_batches=4",
        "trainer.limit_val_batches=2",
        "trainer.limit_test_batches=1",
        "show=progress",
    )
    search = (
        "sweep=optuna",
        "optimizer.lr=choice(0.01,1e-9)",
        "optimizer.weight_decay=0.01",
        "sweep.num_runs=2",
        "sweep.seed=2",  # of which the first is good, and the second bad
        "sweep.pruner.n_startup_trials=1",
        "sweep.pruner.n_warmup_steps=1",
    )
    start = (sys.executable, "-m", "image_project")
    done = run(*start, "sweep", *search, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    written = results(tmp_path)
    states = {(row["overrides"]["optimizer.lr"], row["state"]) for row in written["runs"]}
    assert states == {("0.01", "finished"), ("1e-09", "pruned")}
    assert written["best"]["overrides"] == {"optimizer.lr": "0.01"}
    (pruned,) = (row["run"] for row in written["runs"] if row["state"] == "pruned")
    values = ("optimizer.lr=1e-09", "optimizer.weight_decay=0.01")
    by_hand = run(*start, "train", *words, *values, cwd=tmp_path)
    assert "Resuming from" in by_hand.stdout
    assert Path(tmp_path, pruned, "metrics.json").is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_process_that_waited_while_another_pruned_its_run_trains_no_further(
    tmp_path: Path,
) -> None:
    """A killed sweep may leave one that has not started yet, beside that of the next sweep."""
    from image_project.tools.sweep.pruning import Pruning

    pruning = Pruning(study="runs/sweeps/a", trial=3, monitor="val/loss", folder=str(tmp_path))
    assert not pruning.is_pruned()
    (tmp_path / "pruned.json").write_text(json.dumps({"study": "runs/sweeps/a", "trial": 3}))
    rank_zero: Any = SimpleNamespace(is_global_zero=True)
    with Signals(), pytest.raises(SystemExit) as end:
        pruning.on_fit_start(rank_zero, rank_zero)
    assert end.value.code == 143


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Nothing is swept"),
        (["-m", "seed=1,2"], "Remove -m"),
        (["seeed=1,2"], "mean seed"),
    ],
)
def test_a_mistake_is_one_sentence_before_anything_begins(
    tmp_path: Path, words: list[str], says: str
) -> None:
    mistaken = run(sys.executable, "-m", "image_project", "sweep", *words, cwd=tmp_path)
    assert mistaken.returncode == 1
    assert says in mistaken.stderr
    assert len(mistaken.stderr.strip().splitlines()) == 1
    assert not mistaken.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optimizer.lr=interval(1,2)"], "has no list of values"),
        (["data.batch_size=1.5,3"], "not 1.5"),
        (["seed=-1,1"], "seed=-1 must be"),
        (["sweep.num_workers=0", "seed=1,2"], "Use 1 or more"),
        (["debug=fast", "seed=1,2"], "Add resume=auto"),
        (["name='${now:%S}'", "seed=1,2"], "Remove \\$"),
        (["+sweep.num_run=3", "seed=1,2"], "did you mean num_runs"),
        (["sweep=seeds", "seed=null"], "Remove seed=null"),
        (["sweep=seeds", "seed=1,2"], "chooses seed itself"),
        (["sweep=seeds", "sweep.num_seeds=1"], "Use 2 or more"),
        (["sweep=kfold", "sweep.num_folds=1"], "Use 2 or more"),
        (["sweep=optuna", "optimizer.lr=interval(2,1)"], "is empty"),
        (["sweep=optuna", "sweep.num_runs=0"], "Use 1 or more"),
        (["sweep=optuna", "data.batch_size=interval(8,64)"], "not 8.0"),
    ],
)
def test_what_cannot_be_swept_is_refused(tmp_path: Path, words: list[str], says: str) -> None:
    words = [*words, f"runs_dir={tmp_path.as_posix()}/runs"]
    with pytest.raises(UserError, match=says), planned(*words):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_resolvers_of_hydra_give_in_a_sweep_what_they_give_in_the_run(tmp_path: Path) -> None:
    words = ["name='${hydra:runtime.choices.model}-${hydra:job.name}'", f"runs_dir={tmp_path}/runs"]
    with planned(*words, "model=mlp,convnet") as (runs, _):
        names = [job.run.path.name for job in runs.jobs]
        for job in runs.jobs:
            typed = [*words, *(f"{key}={value}" for key, value in job.overrides.items())]
            cfg = compose("train", typed, return_hydra_config=True)
            with pytest.MonkeyPatch.context() as patched, open_dict(cfg):
                cfg.hydra.job.name = "train"
                patched.setattr(HydraConfig.instance(), "cfg", None)
                HydraConfig.instance().set_config(cfg)
                del cfg.hydra
                assert run_folder(cfg).path == job.run.path
    assert [name.rpartition("-")[0] for name in names] == ["mlp-train", "convnet-train"]


def test_data_without_folds_cannot_be_cross_validated(tmp_path: Path) -> None:
    from text_project.engine.errors import UserError as TextUserError
    from text_project.tools.sweep.__main__ import plan as text_plan
    from text_project.tools.sweep.command import Command as TextCommand

    cfg = compose_config("sweep", "sweep=kfold", package="text_project")
    with pytest.raises(TextUserError, match="has no folds"):
        text_plan(cfg, "a", TextCommand(), [])


def test_unknown_keys_and_prunings_are_refused_too(tmp_path: Path) -> None:
    for word, says in (
        ("optimizer.lrr=interval(1,2)", r"optimizer\.lrr"),
        ("sweep.pruner._target_=no.Pruner", r"no\.Pruner"),
    ):
        words = ("sweep=optuna", word, f"runs_dir={tmp_path.as_posix()}/runs")
        with pytest.raises(HydraException, match=says), planned(*words):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("optimizer.lr=interval(1,1)", "is empty"),
        ("optimizer.lr=tag(log,interval(0,1))", "has no logarithm"),
        ("optimizer.lr=tag(fine,interval(1,2))", "the only tag is log"),
        ("seed=tag(log,choice(1,2))", "only an interval"),
        ("seed=range(3,1)", "is empty"),
        ("model=glob(*)", "has no values to try"),
        ("seed=3", "has no values to try"),
        ("seed=choice(1", "cannot be read"),
    ],
)
def test_a_space_in_a_yaml_is_checked(line: str, says: str) -> None:
    key, _, value = line.partition("=")
    with pytest.raises(UserError, match=says):
        read_space({key: value}, [], [])


def test_the_command_line_wins_over_the_space_of_a_yaml() -> None:
    in_yaml = {"optimizer.lr": "interval(1, 2)", "seed": "1,2", "model.dropout": "choice(0.1,0.2)"}
    space = read_space(in_yaml, ["optimizer.lr=0.1,0.2"], ["seed=3"])
    lines = [override.input_line for override in space.values()]
    assert lines == ["model.dropout=choice(0.1,0.2)", "optimizer.lr=0.1,0.2"]


def test_train_says_what_to_type_for_many_runs(tmp_path: Path) -> None:
    for word in ("seed=1,2", "sweep=optuna"):
        mistaken = run(sys.executable, "-m", "image_project", "train", word, cwd=tmp_path)
        assert mistaken.returncode == 1
        assert "python -m image_project sweep" in mistaken.stderr
        assert len(mistaken.stderr.strip().splitlines()) == 1


def test_without_optuna_a_search_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "optuna.py").write_text("raise ImportError('a test')")
    code = "from image_project.tools.sweep.__main__ import main; main()"
    missing = run(sys.executable, "-c", code, "sweep=optuna", cwd=tmp_path)  # first on the path
    assert missing.returncode == 1
    assert "pip install -e '.[sweep]'" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 1


def test_a_sweep_needs_no_torch_of_its_own() -> None:
    slow = "{'torch', 'lightning', 'matplotlib', 'optuna', 'scipy'}"
    code = "import sys; import image_project.tools.sweep.__main__;"
    code += f"sys.exit(bool({slow} & set(sys.modules)))"
    assert run(sys.executable, "-c", code).returncode == 0


def test_a_run_of_a_search_is_the_run_of_a_train_command(tmp_path: Path) -> None:
    """What prunes it is no part of its identity."""
    runs_dir = f"runs_dir={tmp_path.as_posix()}/runs"
    plain, swept = (
        compose_config("train", runs_dir, *more) for more in ((), ("+show.pruning.trial=3",))
    )
    assert run_folder(plain).path == run_folder(swept).path


@pytest.mark.parametrize(
    ("variable", "workers", "given"),
    [
        ("3,5", 2, ["3", "5"]),
        ("3,5", 3, ["3", "5", "3"]),
        ("GPU-1a,GPU-2b", 1, ["GPU-1a,GPU-2b"]),
        ("", 2, ["", ""]),
    ],
)
def test_each_worker_gets_a_gpu_of_its_own(
    variable: str, workers: int, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    visible = [variables["CUDA_VISIBLE_DEVICES"] for variables in environments(workers)]
    assert visible == given


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_of_a_sweep_under_srun_is_one_process(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert all("SLURM_STEP_NUM_TASKS" not in given for given in environments(workers))


def test_the_interval_is_students() -> None:
    values = [0.91, 0.94, 0.96, 0.93]
    (mean,) = means({}, [{"test/acc": value, "epochs": 3} for value in values], independent=True)
    expected = stats.t.interval(0.95, 3, stats.tmean(values), stats.sem(values))
    assert mean.interval == pytest.approx(expected)
    assert mean.deviation == pytest.approx(stats.tstd(values))
    assert mean.num_runs == 4


def test_the_tables_have_one_order_and_no_row_for_what_is_the_same_in_every_run(
    tmp_path: Path, done: Any
) -> None:
    status, said = done("sweep=seeds", "sweep.num_seeds=2")
    assert status == 0
    assert "best val/loss  test/loss  test/acc" in said
    rows = said[said.index("\nmetric ") :].splitlines()[2:5]
    assert [row.partition("  ")[0] for row in rows] == ["best val/loss", "test/loss", "test/acc"]
    assert "baseline" not in said
    written = {mean["metric"] for mean in results(tmp_path)["means"]}
    assert "baseline/test_loss" in written


def test_folds_have_a_mean_and_no_interval(tmp_path: Path, done: Any) -> None:
    """They share samples: an interval of independent runs would be too narrow."""
    assert done("sweep=kfold", "sweep.num_folds=2", "optimizer.lr=0.1,0.01")[0] == 0
    written = results(tmp_path)
    assert [row["overrides"] for row in written["runs"]] == [
        {"optimizer.lr": lr, "data.fold": str(fold)} for lr in ("0.1", "0.01") for fold in range(2)
    ]
    assert len({row["run"] for row in written["runs"]}) == 4
    of_loss = [mean for mean in written["means"] if mean["metric"] == "test/loss"]
    assert [mean["overrides"] for mean in of_loss] == [
        {"optimizer.lr": "0.1"},
        {"optimizer.lr": "0.01"},
    ]
    assert [mean["interval"] for mean in of_loss] == [None, None]
    losses = [
        row["metrics"]["test/loss"]
        for row in written["runs"]
        if row["overrides"]["optimizer.lr"] == "0.01"
    ]
    assert of_loss[1]["mean"] == pytest.approx(sum(losses) / 2)


@pytest.mark.parametrize("package", ["image_project", "text_project"])
def test_every_sweep_composes_with_every_setting_of_train(package: str) -> None:
    configs = Path(str(importlib.import_module(package).__file__)).parent / "configs"
    keys = set(compose_config("train", package=package))
    for name in sorted(file.stem for file in (configs / "sweep").glob("*.yaml")):
        cfg = compose_config("sweep", f"sweep={name}", package=package)
        assert keys <= set(cfg)
        assert cfg.sweep.num_workers == 1
