"""A real Slurm cluster of this machine alone, in a folder, for as long as a test needs it.

It needs root, and Debian's packages slurm-wlm and munge. Its daemons listen on free ports, have a key
of their own, and know nothing of a Slurm that may be installed here already.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NEEDS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))

# cred_expire: a job that is requeued waits for that long, by default two minutes.
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=5
KillWait=20
OverTimeLimit=0
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=usual Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=2
"""


def missing() -> str:
    """Why there can be no cluster here, or nothing."""
    absent = [name for name in NEEDS if not shutil.which(name, path=PLACES)]
    if absent:
        return f"{', '.join(absent)} missing: apt install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "only root can start Slurm's daemons"


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "PATH": PLACES, "SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *command: object, **options: object) -> str:
        """What a command of Slurm's prints."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words, check=False, capture_output=True, text=True, env=self.env, **options
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """What the controller knows of a job, or of each task of an array."""
        shown = self.run("scontrol", "show", "job", "--oneliner", job)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait(self, job: str, *states: str, seconds: float = 180) -> dict[str, str]:
        until(lambda: self.facts(job)["JobState"] in states, f"job {job} is {states}", seconds)
        return self.facts(job)


def until(true: Callable[[], object], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Started, and taken down at the end with all of its jobs."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    text = CONFIGURATION.format(
        folder=folder,
        host=socket.gethostname(),
        controller=free_port(),
        daemon=free_port(),
        cores=os.cpu_count(),
    )
    (folder / "slurm.conf").write_text(text, encoding="utf-8")
    here = Cluster(folder)
    files = [
        f"--{what}={folder / f'munge.{end}'}"
        for what, end in (
            ("key-file", "key"),
            ("socket", "socket"),
            ("pid-file", "pid"),
            ("log-file", "log"),
            ("seed-file", "seed"),
        )
    ]
    with ExitStack() as daemons:
        daemons.enter_context(daemon(here, "munged", "--foreground", "--force", *files))
        until((folder / "munge.socket").exists, "munged answers")
        daemons.enter_context(daemon(here, "slurmctld", "-D", "-i"))
        until(lambda: answers(here, "scontrol", "ping"), "slurmctld answers")
        daemons.enter_context(daemon(here, "slurmd", "-D"))
        until(
            lambda: here.run("sinfo", "-h", "-p", "usual", "-o", "%t") == "idle", "the node is idle"
        )
        try:
            yield here
        finally:
            here.run("scancel", "--full", "--signal=KILL", "--user=root")
            here.run("scancel", "--user=root")
            until(lambda: not here.run("squeue", "-h"), "all jobs have ended")


def answers(here: Cluster, *command: str) -> bool:
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=here.env)
    return done.returncode == 0 and "UP" in done.stdout


@contextmanager
def daemon(here: Cluster, *command: str) -> Iterator[None]:
    with (here.folder / f"{command[0]}.out").open("wb") as said:
        process = subprocess.Popen(
            command, env=here.env, stdout=said, stderr=said, stdin=subprocess.DEVNULL
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
