"""`deploy/slurm.sbatch` on a real Slurm of one node: whatever it does to a job, the same bits."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import faults
import pytest
from conftest import bake, run
from one_node_slurm import Cluster, cluster, missing, until

TRAIN = "image_project.train"
SHORT = ("trainer.accelerator=cpu", "trainer.max_epochs=20", "data.batch_size=16")
TWO = (*SHORT, "trainer.devices=2")
SMALL = ("--gpus-per-node=0", "--cpus-per-task=1")  # what this node has

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "there is all that it needs"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        project = bake(tmp_path_factory.mktemp("slurm"), package_name="image_project")
        patch.setenv("PYTHONPATH", str(project / "src"))
        patch.chdir(project)
        with cluster(tmp_path_factory.mktemp("one_node")) as started:
            yield started


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster) -> dict[str, str]:
    """The weights without Slurm: by plain train, and by torchrun with two processes."""
    commands = {
        "train": ("python", "-m", TRAIN, *SHORT),
        "torchrun": ("torchrun", "--standalone", "--nproc-per-node=2", "-m", TRAIN, *TWO),
        "seed=1": ("python", "-m", TRAIN, *SHORT, "seed=1"),
    }
    for name, command in commands.items():
        done = run(*command, f"runs_dir={name.replace('=', '')}")
        assert done.returncode == 0, done.stderr
    return {name: weights(name.replace("=", "")) for name in commands}


def weights(runs: str) -> str:
    (folder,) = Path(runs).iterdir()
    assert (folder / "metrics.json").is_file(), "it is finished"
    return faults.digest(folder / "checkpoints" / "last.ckpt")


def log(job: str) -> str:
    path = Path(f"slurm-{job}.log")
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def submit(slurm: Cluster, *words: str) -> str:
    return slurm.run("sbatch", "--parsable", *words)


def requeue(slurm: Cluster, job: str) -> str:
    slurm.run("scontrol", "requeue", job)
    return job


def end_of_time(slurm: Cluster, job: str) -> str:
    """What Slurm itself does two minutes before the limit."""
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    return job


def preempt(slurm: Cluster, job: str) -> str:
    """With a minute's notice."""
    urgent = submit(slurm, "--partition=urgent", "--exclusive", "--output=urgent", "--wrap=sleep 3")
    slurm.wait(urgent, "COMPLETED", seconds=300)
    return job


def cancel(slurm: Cluster, job: str) -> str:
    """And submit it again."""
    slurm.run("scancel", job)
    slurm.wait(job, "CANCELLED")
    until(lambda: not slurm.run("squeue", "-h"), "it has ended")
    assert slurm.facts(job)["JobState"] == "CANCELLED", "it does not come back by itself"
    return ""


@pytest.mark.parametrize("launch", ["train", "torchrun"])
@pytest.mark.parametrize("disturb", [requeue, end_of_time, preempt, cancel])
def test_whatever_slurm_does_to_a_job_it_ends_with_the_same_weights(
    slurm: Cluster,
    undisturbed: dict[str, str],
    disturb: Callable[[Cluster, str], str],
    launch: str,
) -> None:
    runs = f"{disturb.__name__}_{launch}"
    processes = "1" if launch == "train" else "2"
    command = (
        *(f"--export=ALL,PROCESSES={processes}", *SMALL, "deploy/slurm.sbatch"),
        *(*(SHORT if launch == "train" else TWO), f"runs_dir={runs}"),
    )
    job = submit(slurm, *command)
    until(lambda: "epoch 3/20" in log(job), f"job {job} trains", 180)
    stopped = disturb(slurm, job) or submit(slurm, *command)
    slurm.wait(stopped, "COMPLETED", seconds=300)
    said = log(job) if stopped == job else log(stopped)
    (went_on,) = re.findall(r"Resuming from \S+step_(\d+)\.ckpt", said)
    assert int(went_on) > 2 * 1440 // 20 // int(processes), "saved when it was told to stop"
    assert weights(runs) == undisturbed[launch]
    if stopped == job:
        assert "epoch 1/20" in said, "the log goes on"
        assert int(slurm.facts(job)["Restarts"]) == 1


def test_an_array_is_a_run_for_each_seed(slurm: Cluster, undisturbed: dict[str, str]) -> None:
    words = ("--array=0-1", *SMALL, "deploy/slurm.sbatch", *SHORT, "runs_dir=array")
    array = submit(slurm, *words)
    until(lambda: not slurm.run("squeue", "-h"), "the array has ended", 300)
    folders = [*Path("array").iterdir()]
    assert len(folders) == 2, array
    found = {faults.digest(folder / "checkpoints" / "last.ckpt") for folder in folders}
    assert found == {undisturbed["train"], undisturbed["seed=1"]}


def test_an_error_ends_the_job_and_is_not_tried_again(slurm: Cluster) -> None:
    job = submit(slurm, *SMALL, "deploy/slurm.sbatch", "optimizer.lr=-1")
    failed = slurm.wait(job, "FAILED", "COMPLETED", seconds=300)
    assert (failed["JobState"], failed["ExitCode"], failed["Restarts"]) == ("FAILED", "1:0", "0")
    assert "Invalid learning rate" in log(job)


@pytest.mark.parametrize(
    "allocate",
    [
        ("salloc", "--job-name=mine", "--ntasks=2", "--cpus-per-task=1"),
        ("srun", "--ntasks=1"),
        ("salloc", "srun", "--ntasks=1"),
    ],
    ids=" ".join,
)
def test_plain_train_works_in_an_allocation(slurm: Cluster, allocate: tuple[str, ...]) -> None:
    said = slurm.run(*allocate, "python", "-m", TRAIN, "debug=fast", *SHORT[:1])
    assert "1 device" in said and "test/acc" in said


def test_plain_train_works_in_a_batch_job_of_several_tasks(slurm: Cluster) -> None:
    command = f"python -m {TRAIN} debug=fast {SHORT[0]}"
    job = submit(slurm, "--ntasks=2", "--cpus-per-task=1", f"--wrap={command}")
    facts = slurm.wait(job, "COMPLETED", "FAILED")
    said = Path(f"slurm-{job}.out").read_text(encoding="utf-8")
    assert facts["JobState"] == "COMPLETED", said
    assert "1 device" in said and "test/acc" in said


def test_the_cluster_is_taken_down(tmp_path: Path) -> None:
    with cluster(tmp_path / "another") as started:
        pids = [
            int((started.folder / f"{name}.pid").read_text()) for name in ("slurmctld", "slurmd")
        ]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert os.environ.get("SLURM_CONF") != str(started.folder / "slurm.conf")
