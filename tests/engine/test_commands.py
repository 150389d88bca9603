"""The commands as they are typed, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK

import {{ cookiecutter.package_name }} as package


def command(module: str, *args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"{package.__name__}.{module}", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
        # Windows' consoles may not know the lines of Rich's tables.
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **env},
    )


MISTAKES = [
    (["data.batchsize=3"], "did you mean data.batch_size"),
    (["modle=x"], "did you mean"),
    (["trainer=defualt"], "did you mean default"),
    (["data.batch_size=many"], "not 'many'"),
    (["trainer.fast_dev_run=3"], "takes a value like False, not 3"),
    (["resume=Never"], "none of auto, never, must"),
    (["mode=maxx"], "none of min, max"),
    (["seed=-1"], "seed=-1 is not"),
    (["trainer.max_epochs=0"], "trainer.max_epochs=0 is not 1 or more"),
    (["trainer.max_steps=0"], "would train nothing"),
    (["data._target_=nope.Foo"], "cannot be imported"),
    (["name=a/b"], "not the name of one folder"),
    (["name=a=b"], "quote it"),
    (["trainer.accelerator=abacus"], "none of auto, cpu"),
    (["trainer.precision=31"], "none of auto, 32-true"),
    (["+model.colour=red"], "colour"),
    (["optimizer.lr=-1"], "Invalid learning rate"),
    (["data.batch_size=0"], "data.batch_size=0"),
    (["model.dropout=1.5"], "1.5"),
]
# Given one after the other in one process: to import PyTorch takes longer than to find a mistake.
GIVE_ALL = """
import contextlib, importlib, io, json, sys

main, told = importlib.import_module(sys.argv[1]).main, []
for words in json.loads(sys.argv[2]):
    sys.argv, stderr, status = ["train", *words], io.StringIO(), 0
    with contextlib.redirect_stderr(stderr):
        try:
            main()
        except SystemExit as end:  # as Python does at its end
            status = end.code if isinstance(end.code, int) else 1
            print(end.code, file=sys.stderr)
    told.append([status, stderr.getvalue()])
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """By what is said: the exit status and stderr."""
    words = [f"{package.__name__}.train", json.dumps([args for args, _ in MISTAKES])]
    folder = tmp_path_factory.mktemp("mistakes")
    done = subprocess.run(
        [sys.executable, "-c", GIVE_ALL, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=True,
    )
    # Nothing is left of what was refused before it was built.
    assert all((run / "config.yaml").is_file() for run in folder.glob("runs/*"))
    answers = json.loads(done.stdout.splitlines()[-1])
    return dict(zip([says for _, says in MISTAKES], answers, strict=True))


@pytest.mark.parametrize(("args", "says"), MISTAKES)
def test_a_mistake_is_one_sentence_on_stderr_and_exit_1(
    told: dict[str, list[Any]], args: list[str], says: str
) -> None:
    status, stderr = told[says]
    assert status == 1
    assert says in stderr
    assert len(stderr.strip().splitlines()) == 1


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command("train", "runs_dir=file", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_stopped_training_says_so_and_its_status_is_not_0(
    tmp_path: Path, number: int, status: int
) -> None:
    long = (*QUICK, "trainer.max_epochs=1000", "~callbacks.early_stopping")
    module = f"{package.__name__}.train"
    with subprocess.Popen(
        [sys.executable, "-m", module, *long], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as training:
        assert training.stdout is not None
        for line in training.stdout:
            if line.startswith("epoch 2/"):
                training.send_signal(number)
                break
        rest = training.stdout.read()
    assert training.returncode == status
    assert "Interrupted; the same command goes on" in rest


def test_a_task_of_a_slurm_job_is_not_taken_for_a_process_of_a_run(tmp_path: Path) -> None:
    """As in `sbatch --ntasks=2`, `salloc` and the second task of `srun`: Lightning would wait."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mine", "SLURM_NNODES": "1", "SLURM_NTASKS": "2"}
    task = {"SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
    done = command("train", "debug=fast", cwd=tmp_path, **job, **task)
    assert done.returncode == 0, done.stderr
    assert "1 device" in done.stdout


def test_a_logger_that_is_not_installed_is_one_sentence(tmp_path: Path) -> None:
    missing = [name for name in ("wandb", "mlflow", "comet_ml") if not find_spec(name)]
    if not missing:
        pytest.skip("every logger is installed here")
    done = command("train", f"logger={missing[0].removesuffix('_ml')}", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "install" in done.stderr


@pytest.mark.parametrize(
    ("module", "args", "says"),
    [
        ("evaluate", [], "run is missing: add run="),
        ("evaluate", ["run=nowhere"], "no checkpoint in nowhere"),
        ("evaluate", ["runs/mlp"], "say run=runs/mlp"),
        ("evaluate", ["run=latest"], "No run in runs has a checkpoint"),
        ("predict", ["run=nowhere", "input=x"], "no checkpoint in nowhere"),
    ],
)
def test_evaluate_and_predict_say_what_is_missing(
    tmp_path: Path, module: str, args: list[str], says: str
) -> None:
    done = command(module, *args, cwd=tmp_path)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "module", ["train", "evaluate", "predict", "rehearse", "benchmark", "sweep"]
)
def test_help_lists_the_settings(tmp_path: Path, module: str) -> None:
    done = command(module, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "accelerator: auto" in done.stdout


def test_help_and_mistakes_do_not_wait_for_torch() -> None:
    for module in ("train", "evaluate", "predict", "rehearse.__main__", "benchmark.__main__"):
        code = (
            f"import sys; import {package.__name__}.{module};"
            "sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_fallback_for_mps_is_set_before_torch_can_load() -> None:
    code = (
        f"import os, sys; import {package.__name__};"
        "value = os.environ['PYTORCH_ENABLE_MPS_FALLBACK'];"
        "sys.exit('torch' in sys.modules or value != sys.argv[1])"
    )
    for given, expected in ({}, "1"), ({"PYTORCH_ENABLE_MPS_FALLBACK": "0"}, "0"):
        env = {k: v for k, v in os.environ.items() if k != "PYTORCH_ENABLE_MPS_FALLBACK"}
        run = [sys.executable, "-c", code, expected]
        assert subprocess.run(run, env={**env, **given}, check=False).returncode == 0


def test_the_whole_path_from_a_foreign_folder(tmp_path: Path) -> None:
    whole = "trainer.limit_test_batches=1.0"  # as evaluate does
    short = (*QUICK, "trainer.max_epochs=1", "trainer.limit_train_batches=4", whole)
    trained = command("train", *short, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "effective batch size" in trained.stdout.splitlines()[0]
    evaluated = command("evaluate", "run=latest", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    line = next(line for line in trained.stdout.splitlines() if "test/loss" in line)
    assert line.split() in [out.split() for out in evaluated.stdout.splitlines()]
    again = command("train", *short, cwd=tmp_path)
    assert again.returncode == 0
    assert "is finished" in again.stdout
