"""A sweep is a list of runs: the same command goes on with it, whatever was killed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, Compose, compose_config, names
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from scipy import stats
from test_commands import command

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }} import run as run_module
from {{ cookiecutter.package_name }}.errors import UserError
from {{ cookiecutter.package_name }}.run import Run
from {{ cookiecutter.package_name }}.runs import listings
from {{ cookiecutter.package_name }}.sweep.__main__ import (
    plan,
    take_swept,
)
from {{ cookiecutter.package_name }}.sweep.command import Command
from {{ cookiecutter.package_name }}.sweep.means import means, student_t
from {{ cookiecutter.package_name }}.sweep.space import read_space
from {{ cookiecutter.package_name }}.sweep.workers import (
    environments,
)

STAND_IN = Path(__file__).parent / "stand_in.py"


def start(folder: Path, *words: str, seconds: float = 0.0) -> "subprocess.Popen[str]":
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, STAND_IN, str(seconds), *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(folder: Path, *words: str, seconds: float = 0.0) -> tuple[int, str]:
    """The exit status, and what was printed."""
    with start(folder, *words, seconds=seconds) as sweep:
        said = sweep.communicate(timeout=300)[0]
    return sweep.returncode, said


def results(folder: Path) -> dict[str, Any]:
    (written,) = folder.glob("runs/sweeps/*/sweep.json")
    return dict(json.loads(written.read_text(encoding="utf-8")))


def begun(folder: Path) -> list[int]:
    """How often each run was begun."""
    return [len(path.read_text()) for path in folder.glob("runs/*/begun")]


SEARCH = ("sweep=optuna", "sweep.num_runs=6", "sweep.sampler.n_startup_trials=3")
KINDS = {"grid": ("optimizer.lr=0.1,0.01,0.001", "seed=0,1"), "optuna": SEARCH}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_that_is_killed_again_and_again_ends_with_the_same_results(
    tmp_path: Path, kind: str
) -> None:
    words = KINDS[kind]
    assert done(tmp_path / "whole", *words)[0] == 0
    for number in (2, 4):
        with start(tmp_path / "killed", *words, seconds=0.3) as sweep:
            deadline = time.monotonic() + 60
            while len(begun(tmp_path / "killed")) < number and time.monotonic() < deadline:
                time.sleep(0.02)
            sweep.kill()
    assert done(tmp_path / "killed", *words)[0] == 0
    whole, killed = results(tmp_path / "whole"), results(tmp_path / "killed")
    assert killed == whole
    assert {row["state"] for row in whole["runs"]} == {"finished"}
    # What was finished is not computed again, nor what the killed sweep's last process still did.
    assert begun(tmp_path / "killed") == [1] * len(whole["runs"])


def test_a_finished_sweep_is_shown_and_no_run_begun_again(tmp_path: Path) -> None:
    for _ in range(2):
        status, said = done(tmp_path, *KINDS["grid"])
        assert status == 0
    assert begun(tmp_path) == [1] * 6
    assert len([line for line in said.splitlines() if "runs/mlp-" in line]) <= 6
    assert "sweep.png" in said


def test_a_larger_grid_takes_what_a_smaller_one_has_computed(tmp_path: Path) -> None:
    assert done(tmp_path, "seed=0,1")[0] == 0
    assert done(tmp_path, "seed=0,1,2")[0] == 0
    assert begun(tmp_path) == [1] * 3


def test_a_failing_run_does_not_stop_the_rest_and_is_tried_again(tmp_path: Path) -> None:
    for tries in (1, 2):
        status, said = done(tmp_path, "seed=12,13,14")
        assert status == 1
        assert "failed: seed=13: it went wrong" in said
        states = {row["point"]["seed"]: row["state"] for row in results(tmp_path)["runs"]}
        assert states == {"12": "finished", "13": "failed", "14": "finished"}
        assert sorted(begun(tmp_path)) == [1, 1, tries]


def test_what_failed_in_a_study_is_tried_again_at_the_same_point(tmp_path: Path) -> None:
    for _ in range(2):
        assert done(tmp_path, "sweep=optuna", "sweep.num_runs=2", "seed=13")[0] == 1
    assert begun(tmp_path) == [2, 2]
    rows = results(tmp_path)["runs"]
    assert [(row["state"], row["why"]) for row in rows] == [("failed", "it went wrong")] * 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_runs_too_and_the_status_says_so(
    tmp_path: Path, number: int, status: int
) -> None:
    with start(tmp_path, "seed=0,1,2", seconds=100) as sweep:
        deadline = time.monotonic() + 60
        while not begun(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.02)
        sweep.send_signal(number)
        said = sweep.communicate(timeout=120)[0]
    assert sweep.returncode == status
    assert "the same command goes on" in said
    assert begun(tmp_path) == [1]


def test_workers_in_several_processes_share_a_sweep_without_double_work(
    tmp_path: Path,
) -> None:
    """As the tasks of a Slurm array do; and one process may have several of them."""
    words = (*SEARCH, "sweep.num_workers=2")
    with start(tmp_path, *words, seconds=0.3) as one, start(tmp_path, *words, seconds=0.3) as other:
        said = one.communicate(timeout=300)[0] + other.communicate(timeout=300)[0]
    assert (one.returncode, other.returncode) == (0, 0), said
    assert begun(tmp_path) == [1] * 6
    assert done(tmp_path, *words)[0] == 0
    assert [row["state"] for row in results(tmp_path)["runs"]] == ["finished"] * 6


def test_more_runs_go_on_with_the_same_study(tmp_path: Path) -> None:
    assert done(tmp_path, *SEARCH)[0] == 0
    first = results(tmp_path)["runs"]
    assert done(tmp_path, *SEARCH, "sweep.num_runs=8")[0] == 0
    more = results(tmp_path)["runs"]
    assert more[:6] == first
    assert len(more) == 8


def test_real_runs_are_trained_and_pruned_and_can_be_finished_by_hand(tmp_path: Path) -> None:
    words = (
        *QUICK,
        "trainer.max_epochs=4",
        "trainer.limit_train_batches=4",
        "trainer.limit_val_batches=2",
        "trainer.limit_test_batches=1",
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
    sweep = command("sweep", *search, *words, cwd=tmp_path)
    assert sweep.returncode == 0, sweep.stdout + sweep.stderr
    written = results(tmp_path)
    states = {(row["point"]["optimizer.lr"], row["state"]) for row in written["runs"]}
    assert states == {("0.01", "finished"), ("1e-09", "pruned")}
    assert written["best"]["point"] == {"optimizer.lr": "0.01"}
    assert len(list(tmp_path.glob("runs/sweeps/*/sweep.png"))) == 1
    (pruned,) = (line for line in listings(tmp_path / "runs") if line.state == "pruned")
    by_hand = command(
        "train", *words, "optimizer.lr=1e-09", "optimizer.weight_decay=0.01", cwd=tmp_path
    )
    assert "Going on from" in by_hand.stdout
    assert {line.state for line in listings(tmp_path / "runs")} == {"finished"}
    assert Path(tmp_path, pruned.run, "metrics.json").is_file()


@pytest.mark.parametrize(
    ("words", "says"),
    [([], "Nothing is swept"), (["-m", "seed=1,2"], "Leave -m out"), (["seeed=1,2"], "mean seed")],
)
def test_a_mistake_is_one_sentence_before_anything_begins(
    tmp_path: Path, words: list[str], says: str
) -> None:
    mistaken = command("sweep", *words, cwd=tmp_path)
    assert mistaken.returncode == 1
    assert says in mistaken.stderr
    assert len(mistaken.stderr.strip().splitlines()) == 1
    assert not mistaken.stdout
    assert list(tmp_path.iterdir()) == []


def planned(tmp_path: Path, *words: str) -> Any:
    """The sweep that these words describe, not started."""
    fixed, swept = take_swept([*words, f"runs_dir={tmp_path.as_posix()}/runs"])
    ours = [word for word in fixed if word.startswith("sweep")]
    command = Command(fixed=tuple(word for word in fixed if word not in ours))
    with initialize_config_module(f"{package.__name__}.configs", version_base="1.3"):
        return plan(compose("sweep", fixed), "a", command, swept)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optimizer.lr=interval(1,2)"], "has no list of values"),
        (["data.batch_size=1.5,3"], "not 1.5"),
        (["seed=-1,1"], "seed=-1 is not"),
        (["sweep.num_workers=0", "seed=1,2"], "use 1 or more"),
        (["debug=fast", "seed=1,2"], "add resume=auto"),
        (["sweep=seeds", "seed=1,2"], "chooses seed itself"),
        (["sweep=seeds", "sweep.num_seeds=1"], "use 2 or more"),
        (["sweep=kfold", "sweep.num_folds=1"], "use 2 or more"),
        (["sweep=optuna", "optimizer.lr=interval(2,1)"], "is empty"),
        (["sweep=optuna", "sweep.num_runs=0"], "use 1 or more"),
        (["sweep=optuna", "data.batch_size=interval(8,64)"], "not 8.0"),
    ],
)
def test_what_cannot_be_swept_is_refused(tmp_path: Path, words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        planned(tmp_path, *words)
    assert list(tmp_path.iterdir()) == []


def test_unknown_keys_and_prunings_are_refused_too(tmp_path: Path) -> None:
    with pytest.raises(HydraException, match=r"optimizer\.lrr"):
        planned(tmp_path, "sweep=optuna", "optimizer.lrr=interval(1,2)")
    with pytest.raises(HydraException, match=r"no\.Pruner"):
        planned(tmp_path, "sweep=optuna", "sweep.pruner._target_=no.Pruner")
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
        mistaken = command("train", word, cwd=tmp_path)
        assert mistaken.returncode == 1
        assert f"python -m {package.__name__}.sweep" in mistaken.stderr
        assert len(mistaken.stderr.strip().splitlines()) == 1


def test_without_optuna_a_search_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "optuna.py").write_text("raise ImportError('a test')")
    code = f"from {package.__name__}.sweep.__main__ import main; main()"
    missing = subprocess.run(
        [sys.executable, "-c", code, "sweep=optuna"],
        cwd=tmp_path,  # which comes first on the path
        capture_output=True,
        text=True,
        check=False,
    )
    assert missing.returncode == 1
    assert "pip install -e '.[sweep]'" in missing.stderr
    assert len(missing.stderr.strip().splitlines()) == 1


def test_a_sweep_needs_no_torch_of_its_own() -> None:
    slow = "{'torch', 'lightning', 'matplotlib', 'optuna'}"
    code = f"import sys; import {package.__name__}.sweep.__main__;"
    code += f"sys.exit(bool({slow} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_result_depends_on_what_stands_beside_a_run(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Run.of(config()).folder
    assert Run.of(config("+callbacks.pruning.trial=3")).folder == before
    edited = tmp_path / "package"
    shutil.copytree(Path(run_module.__file__).parent, edited)
    monkeypatch.setattr(run_module, "__file__", str(edited / "run.py"))
    (edited / "sweep" / "new.py").write_text("x = 1")
    (edited / "runs.py").write_text("x = 1")
    assert Run.of(config()).folder == before


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
    for freedom in (*range(1, 12), 40, 99):
        assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom))
    values = [0.91, 0.94, 0.96, 0.93]
    (mean,) = means({}, [{"test/acc": value, "epochs": 3} for value in values], independent=True)
    expected = stats.t.interval(0.95, 3, stats.tmean(values), stats.sem(values))
    assert mean.interval == pytest.approx(expected)
    assert mean.deviation == pytest.approx(stats.tstd(values))
    assert mean.num_runs == 4


def test_the_tables_have_one_order_and_no_row_for_what_is_the_same_in_every_run(
    tmp_path: Path,
) -> None:
    status, said = done(tmp_path, "sweep=seeds", "sweep.num_seeds=2")
    assert status == 0
    assert "best val/loss  test/loss  test/acc" in said
    rows = said[said.index("\nmetric ") :].splitlines()[2:5]
    assert [row.partition("  ")[0] for row in rows] == ["best val/loss", "test/loss", "test/acc"]
    assert "baseline" not in said
    means = {mean["metric"] for mean in results(tmp_path)["means"]}
    assert "baseline/test_loss" in means


def test_folds_have_a_mean_and_no_interval(tmp_path: Path) -> None:
    """They share samples: an interval of independent runs would be too narrow."""
    with_folds = "num_folds" in compose_config("train").data
    if not with_folds:
        with pytest.raises(UserError, match="has no folds"):
            planned(tmp_path, "sweep=kfold")
        return
    assert done(tmp_path, "sweep=kfold", "sweep.num_folds=3", "optimizer.lr=0.1,0.01")[0] == 0
    written = results(tmp_path)
    points = [row["point"] for row in written["runs"]]
    assert points == [
        {"optimizer.lr": lr, "data.fold": str(fold)} for lr in ("0.1", "0.01") for fold in range(3)
    ]
    assert len({row["run"] for row in written["runs"]}) == 6
    of_loss = [mean for mean in written["means"] if mean["metric"] == "test/loss"]
    assert [mean["point"] for mean in of_loss] == [
        {"optimizer.lr": "0.1"},
        {"optimizer.lr": "0.01"},
    ]
    assert [mean["interval"] for mean in of_loss] == [None, None]
    assert of_loss[1]["mean"] == pytest.approx(results_mean(written, "0.01"))


def results_mean(written: dict[str, Any], lr: str) -> float:
    rows = [row for row in written["runs"] if row["point"]["optimizer.lr"] == lr]
    return float(sum(row["metrics"]["test/loss"] for row in rows) / len(rows))


@pytest.mark.parametrize("name", names("sweep"))
def test_every_sweep_composes_with_every_setting_of_train(name: str) -> None:
    cfg = compose_config("sweep", f"sweep={name}")
    assert set(compose_config("train")) <= set(cfg)
    assert cfg.sweep.num_workers == 1
