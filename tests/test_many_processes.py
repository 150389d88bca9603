"""One run in several processes: any of them killed or stopped, and the same bits; one folder; no hang.

Real processes of torchrun on the CPU, which talk by gloo, as processes on GPUs do by NCCL.
"""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import several_gpus
from conftest import TEMPLATE
from faults import SMALL, digest, load

PACKAGE = "image_project"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
TRAIN = (sys.executable, "-m", f"{PACKAGE}.train")
PATIENCE = 240  # seconds, in which a hang is found
# Registered first, so it is called last of all.
THREADS_AT_THE_END = f"""
import atexit
from pathlib import Path

def show():
    tasks = Path("/proc/self/task").iterdir()
    print("threads:", [(task / "comm").read_text().strip() for task in tasks], flush=True)

atexit.register(show)
from {PACKAGE}.train import main
main()
"""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="signals are sent")


class Place:
    """A folder in which commands are given, and what they say."""

    def __init__(self, project: Path, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(project / "src"), str(TEMPLATE / "tests"))),
            "OMP_NUM_THREADS": "1",
        }
        self.said = ""

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def wait(self, process: subprocess.Popen[str]) -> int:
        try:
            self.said = process.communicate(timeout=PATIENCE)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            pytest.fail(f"hangs after {process.communicate()[0][-3000:]}")
        return process.returncode

    def give(self, *command: str) -> int:
        """The exit status of a command."""
        return self.wait(self.start(*command))

    def disturbed(
        self, fault: str, rank: int, method: str, call: int, *more: str, restarts: int = 0
    ) -> tuple[int, float]:
        """Exit status, and seconds after the signal, of two processes of which one has a fault."""
        script = str(TEMPLATE / "tests" / "one_of_many.py")
        again = f"--max-restarts={restarts}"
        where = (fault, str(rank), method, str(call))
        status = self.give(*TORCHRUN, again, script, PACKAGE, *where, *SMALL, *more)
        return status, time.time() - float((self.folder / "disturbed").read_text())

    @property
    def runs(self) -> list[Path]:
        return sorted(path for path in (self.folder / "runs").iterdir() if path.is_dir())

    def result(self) -> dict[str, Any]:
        """What must not depend on where a run was disturbed."""
        (run,) = self.runs
        newest = load(sorted(run.glob("checkpoints/step_*.ckpt"))[-1])
        with (run / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {
            "weights": digest(run / "checkpoints" / "last.ckpt"),
            "best": digest(run / "checkpoints" / "best.ckpt"),
            "schedulers": repr(newest["lr_schedulers"]),
            "optimizers": repr(newest["optimizer_states"]),
            "rows": rows,
            "metrics": json.loads((run / "metrics.json").read_text()),
        }


@pytest.fixture
def place(project: Path, tmp_path: Path) -> Place:
    return Place(project, tmp_path)


@pytest.fixture(scope="module")
def undisturbed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of plain `train` on two devices, which starts torchrun by itself."""
    place = Place(project, tmp_path_factory.mktemp("undisturbed"))
    assert place.give(*TRAIN, "trainer.devices=2", *SMALL) == 0, place.said
    assert place.said.count("effective batch size 64") == 1  # one process speaks
    assert place.said.count("best val/loss") == 1
    return place.result()


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("rank", "method", "call"),
    [
        (1, "training_step", 17),
        slow(0, "training_step", 17),
        slow(0, "training_step", 1),
        slow(1, "training_step", 11),
        slow(0, "training_step", 20),
        slow(1, "training_step", 30),
        slow(0, "validation_step", 7),
        slow(1, "validation_step", 8),
        slow(0, "test_step", 1),
        slow(1, "test_step", 2),
        slow(1, "__init__", 1),
        slow(0, "configure_optimizers", 1),
    ],
)
def test_a_killed_process_is_started_again_to_the_same_bits(
    place: Place, undisturbed: dict[str, Any], rank: int, method: str, call: int
) -> None:
    status, _ = place.disturbed("sigkill", rank, method, call, restarts=3)
    assert status == 0, place.said
    assert place.result() == undisturbed


@pytest.mark.parametrize(
    ("fault", "rank", "method", "call"),
    [
        ("sigterm", 1, "training_step", 17),
        slow("sigterm", 0, "training_step", 17),
        slow("sigterm", 1, "training_step", 1),
        slow("sigterm", 1, "training_step", 30),
        slow("sigterm", 1, "validation_step", 4),
        slow("sigterm", 1, "test_step", 1),
        slow("sigterm", 1, "__init__", 1),
        slow("sigterm", 1, "configure_optimizers", 1),
        slow("sigint", 1, "training_step", 17),
        slow("sigterm_to_torchrun", 0, "training_step", 17),
        slow("sigterm_to_torchrun", 0, "validation_step", 4),
        slow("exception", 1, "training_step", 17),
        slow("exception", 0, "validation_step", 4),
    ],
)
def test_a_fault_of_one_process_ends_all_and_the_same_command_goes_on_to_the_same_bits(
    place: Place, undisturbed: dict[str, Any], fault: str, rank: int, method: str, call: int
) -> None:
    status, seconds = place.disturbed(fault, rank, method, call)
    assert status != 0
    assert seconds < 60  # of the 120 that a cluster gives
    assert place.give(*TORCHRUN, "-m", f"{PACKAGE}.train", *SMALL) == 0, place.said
    assert place.result() == undisturbed


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists its threads")
def test_no_thread_of_a_process_group_is_left_when_python_ends_itself(place: Place) -> None:
    """One that is late would want Python then, which aborts the process after all its work."""
    script = place.folder / "threads_at_the_end.py"
    script.write_text(THREADS_AT_THE_END)
    assert place.give(*TORCHRUN, str(script), *SMALL, "trainer.max_epochs=1") == 0, place.said
    named = [line for line in place.said.splitlines() if line.startswith("threads:")]
    assert len(named) == 2
    assert not [line for line in named if "gloo" in line]


@pytest.mark.slow
def test_plain_train_on_two_devices_says_143_when_it_is_terminated(
    place: Place, undisturbed: dict[str, Any]
) -> None:
    process = place.start(*TRAIN, "trainer.devices=2", *SMALL, "trainer.max_epochs=300")
    deadline = time.monotonic() + PATIENCE
    while not list(place.folder.glob("runs/*/checkpoints/step_*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started = time.monotonic()
    process.terminate()
    assert place.wait(process) == 143, place.said
    assert time.monotonic() - started < 60
    assert "The same command resumes from" in place.said


@pytest.mark.slow
def test_processes_killed_at_random_moments_leave_the_same_bits(
    place: Place, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    dice, killed = random.Random(0), 0
    for _ in range(6):
        process = place.start(*TORCHRUN, "--max-restarts=3", "-m", f"{PACKAGE}.train", *SMALL)
        for _ in range(2):
            time.sleep(dice.uniform(2, 16))
            children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True)
            if workers := [int(pid) for pid in children.stdout.split()]:
                os.kill(dice.choice(workers), signal.SIGKILL)
                killed += 1
        assert place.wait(process) == 0, place.said
        assert place.result() == undisturbed
        for path in place.folder.glob("runs/*/metrics.json"):
            path.unlink()
        for path in place.folder.glob("runs/*/checkpoints/*"):
            path.unlink()
    with capsys.disabled():
        print(f"\n{killed} processes killed at random")


@pytest.mark.slow
def test_resume_never_is_one_new_folder_for_all_processes_also_when_one_is_killed(
    place: Place, undisturbed: dict[str, Any]
) -> None:
    for expected in (1, 2):
        status = place.give(*TORCHRUN, "-m", f"{PACKAGE}.train", "resume=never", *SMALL)
        assert status == 0, place.said
        assert len(place.runs) == expected
    script = str(TEMPLATE / "tests" / "one_of_many.py")
    fault = (PACKAGE, "sigkill", "1", "training_step", "17")
    status = place.give(*TORCHRUN, "--max-restarts=2", script, *fault, "resume=never", *SMALL)
    assert status == 0, place.said
    assert len(place.runs) == 3
    weights = {digest(run / "checkpoints" / "last.ckpt") for run in place.runs}
    assert weights == {undisturbed["weights"]}


@pytest.mark.slow
def test_a_model_in_parts_ends_with_the_same_bits_and_is_used_on_one_device(
    project: Path, tmp_path: Path
) -> None:
    """FSDP2: left alone, killed, stopped, and with the newest checkpoint spoiled."""
    fsdp, places = "trainer.strategy=fsdp", {}
    for name in ("alone", "killed", "stopped"):
        (tmp_path / name).mkdir()
        places[name] = Place(project, tmp_path / name)
    train = (*TORCHRUN, "-m", f"{PACKAGE}.train", *SMALL, fsdp)
    assert places["alone"].give(*train) == 0, places["alone"].said
    wanted = several_gpus.result(tmp_path / "alone")

    fault = ("sigkill", 1, "training_step", 17)
    assert places["killed"].disturbed(*fault, fsdp, restarts=3)[0] == 0, places["killed"].said
    assert several_gpus.result(tmp_path / "killed") == wanted

    status, seconds = places["stopped"].disturbed("sigterm", 0, "training_step", 17, fsdp)
    assert status != 0
    assert seconds < 60
    (run,) = places["stopped"].runs
    newest = sorted(run.glob("checkpoints/step_*.ckpt"))[-1]
    part = newest / "__0_0.distcp"
    part.write_bytes(part.read_bytes()[:-8] + bytes(8))
    assert places["stopped"].give(*train) == 0, places["stopped"].said
    assert newest.with_name(f"{newest.name}.broken").is_dir()
    assert several_gpus.result(tmp_path / "stopped") == wanted
    assert len(list(run.glob("checkpoints/step_*.ckpt"))) == 2

    for checkpoint in (run, sorted(run.glob("checkpoints/step_*.ckpt"))[-1]):
        evaluate = (sys.executable, "-m", f"{PACKAGE}.evaluate", f"run={checkpoint}")
        assert places["stopped"].give(*evaluate) == 0, places["stopped"].said
        assert "test/acc" in places["stopped"].said


@pytest.mark.slow
def test_more_than_two_processes_end_with_the_same_bits(project: Path, tmp_path: Path) -> None:
    """DDP may put gradients in another order after a start, and three round by the order."""
    several = ("model.width=1024", "model.num_layers=3", "data.batch_size=8")
    results = []
    for name in ("alone", "killed"):
        (tmp_path / name).mkdir()
        place = Place(project, tmp_path / name)
        start = (*TORCHRUN[:-1], "3", "--max-restarts=3")
        script = str(TEMPLATE / "tests" / "one_of_many.py")
        rank = "1" if name == "killed" else "none"
        fault = (script, PACKAGE, "sigkill", rank, "training_step", "17")
        assert place.give(*start, *fault, *SMALL, *several) == 0, place.said
        results.append(place.result())
    assert (tmp_path / "killed" / "disturbed").is_file()
    assert results[0] == results[1]


@pytest.mark.slow
def test_a_sweep_on_two_devices_runs_each_job_once(place: Place) -> None:
    jobs = ("-m", "seed=1,2", "trainer.devices=2")
    assert place.give(*TRAIN, *jobs, *SMALL) == 0, place.said
    assert len(place.runs) == 2
    assert place.said.count("writing to") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ((*TRAIN, "trainer.devices=2", "optimizer.lr=-1"), "optimizer or scheduler: Invalid"),
        ((*TORCHRUN, "-m", f"{PACKAGE}.train", "trainer.devices=3"), "torchrun has started 2"),
        ((*TORCHRUN, "-m", f"{PACKAGE}.train", "-m", "seed=1,2"), "torchrun cannot start a sweep"),
    ],
)
def test_a_mistake_is_said_once(place: Place, command: tuple[str, ...], says: str) -> None:
    assert place.give(*command) == 1
    assert place.said.count(says) == 1
    assert "train.py" not in place.said  # no traceback of ours
