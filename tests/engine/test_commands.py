"""The commands as they are typed, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import run

PACKAGE = "image_project"
COMMANDS = ("train", "evaluate", "predict", "rehearse", "doctor", "benchmark", "sweep", "runs")


def command(*words: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", PACKAGE, *words, cwd=cwd, **env)


# An experiment of a person, and what stderr says of it.
FIRST_LINE = b"# @package _global_\n"
YAML = {
    "no_first_line": (b"trainer: {max_epochs: 2}", "Make its first line: # @package _global_"),
    "nor_here": (b"defaults: [override /model: convnet]", "Make its first line: # @package"),
    "section": (FIRST_LINE + b"optimiser: {lr: 0.5}", "'optimiser': did you mean optimizer"),
    "key": (FIRST_LINE + b"save: {every_n_step: 5}", "did you mean save.every_n_steps"),
    "kind": (FIRST_LINE + b"fast_loop: often", "fast_loop=often must be true or false"),
    "tab": (FIRST_LINE + b"trainer:\n\tmax_epochs: 2", "tab.yaml, line 3 cannot be read"),
    "twice": (FIRST_LINE + b"seed: 1\nseed: 2", "twice.yaml, line 3 cannot be read"),
    "latin_1": (FIRST_LINE + b"name: caf\xe9", "latin_1.yaml, line 2 is not UTF-8"),
}
# What is typed, and what stderr says. The first ones are answered before PyTorch is imported.
AT_ONCE = [
    ("traim", "There is no command 'traim'. There are: train"),
    ("evaluate", "run is missing. Add run="),
    ("evaluate run=nowhere", "No checkpoint in nowhere"),
    ("evaluate runs/mlp", "Write run=runs/mlp"),
    ("evaluate run=latest", "No run in runs has a checkpoint"),
    ("predict run=nowhere input=x", "No checkpoint in nowhere"),
    ("train data.batchsize=3", "did you mean data.batch_size"),
    ("train modle=x", "did you mean"),
    ("train trainer=defualt", "did you mean default"),
    ("train data.batch_size=many", "not 'many'"),
    ("train trainer.fast_dev_run=x", "takes a value like False, not 'x'"),
    ("train callbacks.best=0", "takes settings of its own, not 0"),
    ("train data=[1]", "A group takes names of files"),
    ("train save.every_n_steps=x", "save.every_n_steps=x must be a whole number or null"),
    ("train save.every_n_steps=0", "save.every_n_steps=0 must be more than 0"),
    ("train trainer.accumulate_grad_batches=0", "must be more than 0"),
    ("train runs_dir=null", "runs_dir=null must be a text"),
    ("train run_dir=x", "run_dir is filled in. Use runs_dir and name"),
    ("train +foo=1", "Nothing reads the setting 'foo'"),
    ("train +callbacks.early_stoping.patience=3", "did you mean callbacks.early_stopping"),
    ("sweep sweep.num_workers=null seed=1,2", "sweep.num_workers=null must be a whole number"),
    ("benchmark benchmark.seconds=null", "benchmark.seconds=null must be a number"),
    *((f"train --config-dir ../mine experiment={name}", says) for name, (_, says) in YAML.items()),
    ("train model.width=1,2", "python -m image_project sweep trains each"),
    ("train name=a=b", "Quote it"),
    ("train resume=Never", "must be one of: auto, never, must"),
    ("train mode=maxx", "must be one of: min, max"),
    ("train seed=-1", "seed=-1 must be"),
    ("train trainer.max_epochs=0", "trainer.max_epochs=0 must be 1 or more"),
    ("train trainer.max_steps=0", "would train nothing"),
]
LATER = [
    ("train +trainer.callbacks=[a]", "Move it to a file in configs/callbacks/"),
    ("train model.width=null", "model.width=null must be a whole number"),
    ("train model.width=0", "width must be 1 or more"),
    ("train data.split_seed=-1", "must be from 0"),
    ("train +trainer.detect_anomly=true", "no argument 'detect_anomly': did you mean detect_an"),
    ("train +optimizer.lrr=1", "AdamW has no argument 'lrr': did you mean lr?"),
    ("train trainer.val_check_interval=1000000", "trainer: `val_check_interval` (1000000) must be"),
    ("train monitor=null", "Add '~callbacks.early_stopping'"),
    ("train name=a/b", "must be the name of one folder"),
    ("train trainer.accelerator=abacus", "must be one of: auto, cpu"),
    ("train trainer.precision=31", "must be one of: auto, 32-true"),
    ("train data._target_=nope.Foo", "No module named 'nope'"),
    ("train +model.colour=red", "colour"),
    ("train optimizer.lr=-1", "Invalid learning rate"),
    ("train data.batch_size=0", "data.batch_size=0"),
    ("train model.dropout=1.5", "1.5"),
    ("train monitor=val/los", "monitor=val/los is not logged: did you mean val/loss"),
    ("train resume=must", "No checkpoint to resume from"),
]
# Given one after the other in one process: to import PyTorch takes longer than to find a mistake.
GIVE_ALL = """
import contextlib, importlib, io, json, os, sys

main, told = importlib.import_module(sys.argv[1]).main, []
for words in json.loads(sys.argv[2]):
    out, err, status = io.StringIO(), io.StringIO(), 0
    sys.argv = ["image_project", *words.split()]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:  # as Python does at its end
            status = end.code if isinstance(end.code, int) else int(bool(end.code))
            print(end.code or "", file=sys.stderr)
    waited = "torch" in sys.modules or "lightning" in sys.modules
    told.append([status, out.getvalue(), err.getvalue(), waited, os.listdir()])
print(json.dumps(told))
"""
Told = dict[str, tuple[int, str, str, bool, list[str]]]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """For each command: exit status, stdout, stderr, whether PyTorch was imported, files left."""
    words = ["", *(f"{name} --help" for name in COMMANDS)]
    words += [words for words, _ in (*AT_ONCE, *LATER)]
    given = (f"{PACKAGE}.__main__", json.dumps(words))
    here = tmp_path_factory.mktemp("mistakes")
    (here.parent / "mine/experiment").mkdir(parents=True)
    for name, (content, _) in YAML.items():
        (here.parent / f"mine/experiment/{name}.yaml").write_bytes(content)
    done = run(sys.executable, "-c", GIVE_ALL, *given, cwd=here)
    assert done.returncode == 0, done.stderr
    return dict(zip(words, json.loads(done.stdout.splitlines()[-1]), strict=True))


def test_the_command_lists_its_sub_commands(told: Told) -> None:
    status, out, *_ = told[""]
    assert status == 0
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == [*COMMANDS]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_how_a_command_is_used_and_does_not_wait_for_torch(told: Told, name: str) -> None:
    status, out, _, waited, _ = told[f"{name} --help"]
    assert (status, waited) == (0, False)
    assert name in out
    if name not in ("doctor", "runs"):
        assert "accelerator: auto" in out  # every setting is listed


@pytest.mark.parametrize(("words", "says"), [*AT_ONCE, *LATER])
def test_a_mistake_is_one_sentence_on_stderr_and_exit_1(told: Told, words: str, says: str) -> None:
    status, _, stderr, waited, _ = told[words]
    assert status == 1
    assert says in stderr
    assert len(stderr.strip().splitlines()) == 1
    assert not waited or (words, says) in LATER


def test_a_refused_command_leaves_no_folder_that_could_be_resumed(told: Told) -> None:
    files = {words: left for words, (*_, left) in told.items()}
    assert files[AT_ONCE[-1][0]] == []
    for words, left in files.items():
        assert left in ([], ["runs"]), words


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = command("train", "runs_dir=file", cwd=tmp_path)
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def training(*words: str, cwd: Path) -> subprocess.Popen[str]:
    """Start a training that ends only when it is stopped."""
    long = ("trainer.max_epochs=1000", "~callbacks.early_stopping", *words)
    return subprocess.Popen(
        [sys.executable, "-m", f"{PACKAGE}.train", *long],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_a_stopped_training_says_so_and_its_status_is_not_0(
    tmp_path: Path, number: int, status: int
) -> None:
    with training(cwd=tmp_path) as started:
        assert started.stdout is not None
        for line in started.stdout:
            if line.startswith("epoch 2/"):
                started.send_signal(number)
                break
        rest, _ = started.communicate()
    assert started.returncode == status
    assert "Interrupted. The same command resumes from" in rest


@pytest.mark.skipif(sys.platform == "win32", reason="Windows breaks no pipes")
def test_a_pipe_that_is_closed_is_no_error_of_the_run(tmp_path: Path) -> None:
    """As by `train | head -1`."""
    with training("trainer.max_epochs=3", cwd=tmp_path) as started:
        assert started.stdout is not None
        started.stdout.readline()
        started.stdout.close()
        assert started.stderr is not None
        stderr = started.stderr.read()
    assert started.returncode == 0
    assert stderr == ""
    assert list(tmp_path.glob("runs/*/metrics.json"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows closes no streams")
def test_closed_streams_are_no_error_of_the_run(tmp_path: Path) -> None:
    """As by `train <&- >&- 2>&-`."""
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=4", "show=progress")
    train = (sys.executable, "-m", PACKAGE, "train", *short)
    done = run("sh", "-c", '"$@" <&- >&- 2>&-', "sh", *train, cwd=tmp_path)
    assert done.returncode == 0
    assert list(tmp_path.glob("runs/*/metrics.json"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_a_terminal_that_is_gone_is_no_error_of_the_run(tmp_path: Path) -> None:
    """As with `nohup`, or in a session of its own: the bar is written to nobody."""
    import pty

    master, terminal = pty.openpty()
    words = ("train", "trainer.max_epochs=4", "trainer.limit_train_batches=4")
    process = subprocess.Popen(
        [sys.executable, "-m", PACKAGE, *words],
        cwd=tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    seen = b""
    while b"Epoch 1" not in seen:
        seen += os.read(master, 65536)
    os.close(master)
    assert process.wait() == 0
    assert list(tmp_path.glob("runs/*/metrics.json"))


def test_what_is_left_of_other_launchers_is_ignored_and_said_once(tmp_path: Path) -> None:
    """Lightning would wait for the others, or write nothing as a rank above 0."""
    left = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "nowhere"}
    left |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mine", "SLURM_NNODES": "1"}
    left |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_PROCID": "1"}
    left |= {"LSB_JOBID": "7", "LSB_DJOB_RANKFILE": "nowhere", "JSM_NAMESPACE_LOCAL_RANK": "1"}
    left |= {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2", "OMPI_COMM_WORLD_RANK": "2"}
    left |= {"PMI_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=4", "show=progress")
    done = command("train", *short, cwd=tmp_path, **left)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "ignored" in line]
    assert len(said) == 1
    assert "RANK=1" in said[0]
    assert "WORLD_SIZE=4" in said[0]
    assert "1 device" in done.stdout
    assert list(tmp_path.glob("runs/*/metrics.csv"))


def test_a_logger_that_is_not_installed_is_one_sentence(tmp_path: Path) -> None:
    missing = [name for name in ("wandb", "mlflow", "comet_ml") if not find_spec(name)]
    if not missing:
        pytest.skip("every logger is installed here")
    done = command("train", f"logger={missing[0].removesuffix('_ml')}", cwd=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "install" in done.stderr


def test_the_fallback_for_mps_is_set_before_torch_can_load() -> None:
    code = (
        f"import os, sys; import {PACKAGE};"
        "value = os.environ['PYTORCH_ENABLE_MPS_FALLBACK'];"
        "sys.exit('torch' in sys.modules or value != sys.argv[1])"
    )
    for given, expected in ({}, "1"), ({"PYTORCH_ENABLE_MPS_FALLBACK": "0"}, "0"):
        env = {k: v for k, v in os.environ.items() if k != "PYTORCH_ENABLE_MPS_FALLBACK"}
        python = [sys.executable, "-c", code, expected]
        assert subprocess.run(python, env={**env, **given}, check=False).returncode == 0


def test_the_whole_path_from_a_foreign_folder(tmp_path: Path) -> None:
    short = ("trainer.max_epochs=1", "trainer.limit_train_batches=4")
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


@pytest.mark.parametrize(
    "text",
    ["a time, there was", "it's", "日本語", "a=b: {x} [y]", "a\\'b, c", "${x}, y", "a, b\\"],
)
def test_a_text_need_not_be_quoted_for_hydra(text: str) -> None:
    from image_project.engine import cli

    from .small_runs import compose_config

    typed = cli.as_typed(f"input={text}", "input")
    assert compose_config("predict", "run=latest", typed).input == text
    assert cli.as_typed("seed=1,2", "input") == "seed=1,2"


@pytest.mark.parametrize(
    ("name", "group"), [("train", "logger"), ("train", "callbacks"), ("evaluate", "show")]
)
def test_a_group_of_many_may_be_null(name: str, group: str) -> None:
    from image_project.engine import cli

    from .small_runs import compose_config

    assert not compose_config(name, cli.as_typed(f"{group}=null", "")).get(group)
