"""The copy of a run on S3: a server of it runs here, and the project's own commands use it."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import run

PACKAGE = "image_project"
URL = "s3://bucket/runs"
SMALL = ("trainer.max_epochs=3", "trainer.limit_train_batches=20", "save.every_n_steps=1")
BIN = "Scripts" if os.name == "nt" else "bin"

pytestmark = pytest.mark.slow


def environment(folder: Path, *packages: str, ours: bool) -> Path:
    """A Python with these packages, and with all that is installed here if it is `ours`."""
    venv.create(folder, with_pip=True)
    python = folder / BIN / "python"
    if ours:
        found = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        here = next(path for path in sys.path if (Path(path) / "fsspec").is_dir())
        (Path(found.stdout.strip()) / "ours.pth").write_text(here)
    # The constraints are for the tests' own environment, and conflict with these.
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    done = run(*pip, *packages, PIP_CONSTRAINT="")
    if done.returncode != 0:
        pytest.skip(f"{' and '.join(packages)} cannot be installed: {done.stderr.strip()[-200:]}")
    return python


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the project, with its extra `s3`; not installed into what these tests run in."""
    folder = tmp_path_factory.mktemp("s3")
    return environment(folder, f"s3fs=={version('fsspec')}", ours=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of an S3 with one bucket."""
    folder = tmp_path_factory.mktemp("moto")
    moto = environment(folder, "moto[server]", ours=False).with_name("moto_server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([moto, "-H", "127.0.0.1", "-p", str(port)], **quiet) as process:
        endpoint = f"http://127.0.0.1:{port}"
        for _ in range(100):
            try:
                put = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
                urllib.request.urlopen(put, timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield endpoint
        process.kill()


class Machine:
    """A folder of its own, the project's commands, and the keys to a bucket."""

    def __init__(self, python: Path, project: Path, endpoint: str, folder: Path) -> None:
        self.python, self.folder = python, folder
        folder.mkdir()
        self.env = {
            "PYTHONPATH": str(project / "src"),
            "OMP_NUM_THREADS": "1",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def do(self, command: str, *overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
        line = (self.python, "-m", f"{PACKAGE}.{command}", *overrides)
        return run(*line, cwd=self.folder, **{**self.env, **env})

    def train_until(self, number: int, signal_number: int) -> int:
        """The exit status of a training that gets a signal once there is that checkpoint."""
        line = (self.python, "-m", f"{PACKAGE}.train", *SMALL, f"runs_dir={URL}")
        with subprocess.Popen(line, cwd=self.folder, env={**os.environ, **self.env}) as process:
            while process.poll() is None:
                saved = [*self.folder.glob("runs/*/checkpoints/step_*.ckpt")]
                if any(int(path.stem[5:]) >= number for path in saved):
                    process.send_signal(signal_number)
                    break
                time.sleep(0.01)
            return process.wait()

    def start(self, *words: object) -> subprocess.Popen[str]:
        line = [str(word) for word in (self.python, *words)]
        out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(line, cwd=self.folder, env={**os.environ, **self.env}, **out)

    def result(self) -> tuple[str, str, dict[str, float]]:
        """The weights, what was logged, and the metrics of the one run here."""
        weights = "import sys, torch; s = torch.load(sys.argv[1])['state_dict']; print([(k, v.tolist()) for k, v in sorted(s.items())])"
        (folder,) = (self.folder / "runs").glob("*-*")
        newest = folder / "checkpoints" / "last.ckpt"
        printed = run(self.python, "-c", weights, newest)
        assert printed.returncode == 0, printed.stderr
        digest = hashlib.sha256(printed.stdout.encode()).hexdigest()
        metrics = json.loads((folder / "metrics.json").read_text())
        return digest, (folder / "metrics.csv").read_text(), metrics


@pytest.fixture
def machine(python: Path, project: Path, server: str, tmp_path: Path):
    return lambda name: Machine(python, project, server, tmp_path / name)


@pytest.mark.skipif(os.name == "nt", reason="Windows kills by other means")
def test_a_run_on_s3_that_is_killed_goes_on_elsewhere_to_the_same_bits(machine, tmp_path) -> None:
    alone = machine("alone")
    assert alone.do("train", *SMALL).returncode == 0
    assert machine("stopped").train_until(12, signal.SIGTERM) == 143
    killed = machine("killed")
    assert killed.train_until(30, signal.SIGKILL) == -signal.SIGKILL
    assert (
        min(int(path.stem[5:]) for path in killed.folder.glob("runs/*/checkpoints/step_*.ckpt"))
        > 12
    )
    shutil.rmtree(killed.folder)
    last = machine("last")
    # In this host's name again, but from another folder: it waits for a sign of the one killed.
    done = last.do("train", *SMALL, f"runs_dir={URL}", "resume=must")
    assert done.returncode == 0, done.stderr
    assert "has not said that it ended" in done.stdout
    assert "Resuming from" in done.stdout
    assert last.result() == alone.result()
    other = machine("other")
    told = other.do("evaluate", "run=latest", f"runs_dir={URL}")
    assert told.returncode == 0, told.stderr
    tested = last.result()[2]["test/loss"]
    (metrics,) = other.folder.glob("runs/*/evaluate/metrics.json")
    assert json.loads(metrics.read_text())["test/loss"] == tested
    assert "is finished" in other.do("train", *SMALL, f"runs_dir={URL}").stdout


@pytest.mark.parametrize(
    ("where", "env", "says"),
    [
        ("s3://no-bucket/runs", {}, "make the bucket, or correct its name"),
        (URL, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "Could not connect to the endpoint"),
        (
            URL,
            {
                "AWS_ACCESS_KEY_ID": "",
                "AWS_SECRET_ACCESS_KEY": "",
                "AWS_EC2_METADATA_DISABLED": "true",
                "AWS_SHARED_CREDENTIALS_FILE": "none",
            },
            "check the keys",
        ),
    ],
    ids=["no bucket", "no network", "no keys"],
)
def test_what_is_wrong_with_s3_is_one_sentence(machine, where, env, says) -> None:
    done = machine("first").do("train", *SMALL, f"runs_dir={where}", **env)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert says in done.stderr


def test_keys_that_allow_nothing_are_one_sentence(machine, server) -> None:
    def count(actions: int) -> None:
        reset = urllib.request.Request(
            f"{server}/moto-api/reset-auth",
            data=str(actions).encode(),
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(reset, timeout=10).close()

    count(0)  # from now on every request needs keys that the server knows
    try:
        done = machine("first").do("train", *SMALL, f"runs_dir={URL}")
    finally:
        count(10**9)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "may not be used" in done.stderr


def on_two_hosts(hosts: list[Machine], *overrides: str) -> tuple[list[int], str]:
    """The exit statuses of one run on machines that see nothing of each other's disks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        host.start(
            *("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
            *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=run"),
            *(f"--rdzv-conf=is_host={int(number == 0)}", "--local-addr=127.0.0.1"),
            *("-m", f"{PACKAGE}.train", *SMALL, *overrides),
        )
        for number, host in enumerate(hosts)
    ]
    said = "".join(process.communicate(timeout=600)[0] for process in running)
    return [process.returncode for process in running], said


def test_two_hosts_without_a_common_disk_go_on_by_way_of_the_copy(
    python: Path, project: Path, tmp_path: Path
) -> None:
    url = f"runs_dir={(tmp_path / 'far').as_uri()}"
    stop = ("trainer.max_epochs=2", "scheduler=constant")
    longer = ("trainer.max_epochs=3", "scheduler=constant")

    def pair(name: str) -> list[Machine]:
        return [Machine(python, project, "", tmp_path / f"{name}{n}") for n in (1, 2)]

    statuses, said = on_two_hosts(whole := pair("whole"), "runs_dir=runs", *longer)
    assert statuses == [0, 0], said
    first = pair("first")
    statuses, said = on_two_hosts(first, url, *stop)
    assert statuses == [0, 0], said
    # Another two go on from the copy, of which one has been there before.
    new = [pair("new")[0], first[0]]
    statuses, said = on_two_hosts(new, url, *longer)
    assert statuses == [0, 0], said
    assert "step_000000035.ckpt" in said.partition("Resuming from")[2].splitlines()[0], said
    assert new[0].result()[0] == whole[0].result()[0]
    best = [next(host.folder.glob("runs/*/checkpoints/best.ckpt")) for host in new]
    assert best[0].read_bytes() == best[1].read_bytes()  # each has tested with it
    statuses, said = on_two_hosts(pair("parts"), url, "trainer=fsdp")
    assert statuses == [1, 1]
    assert "runs_dir that is a folder which all of them see" in said
