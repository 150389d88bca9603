"""One run on two hosts, which are network namespaces here: a process of one is killed, the same bits."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE
from faults import SMALL
from test_many_processes import PACKAGE, Place

ADDRESSES = ("10.77.0.1", "10.77.0.2")

pytestmark = pytest.mark.slow


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    """Two names of namespaces with a cable between them, and nothing else."""
    if not shutil.which("ip") or os.geteuid() != 0:
        pytest.skip("only root can make network namespaces, with iproute2")
    names = [f"host{number}-{os.getpid()}" for number in (1, 2)]
    try:
        ip("netns", "add", names[0])
        ip("netns", "add", names[1])
        cable = ("type", "veth", "peer", "name", "cable2", "netns", names[1])
        ip("link", "add", "cable1", "netns", names[0], *cable)
    except subprocess.CalledProcessError as error:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode()}")
    for number, (name, address) in enumerate(zip(names, ADDRESSES, strict=True), start=1):
        ip("-n", name, "address", "add", f"{address}/24", "dev", f"cable{number}")
        ip("-n", name, "link", "set", f"cable{number}", "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield names
    for name in names:
        ip("netns", "delete", name)


def on_both(place: Place, hosts: list[str], *program: str) -> tuple[list[int], str]:
    """The exit statuses of a command, given on each host as the README says, and what was said."""
    processes = []
    for number, (host, address) in enumerate(zip(hosts, ADDRESSES, strict=True), start=1):
        place.environment["GLOO_SOCKET_IFNAME"] = f"cable{number}"
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--nnodes=2")
        meet = (
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={ADDRESSES[0]}:29400",
            "--rdzv-id=run",
            f"--rdzv-conf=is_host={int(number == 1)}",
            f"--local-addr={address}",
        )
        enter = ("ip", "netns", "exec", host)
        options = ("--nproc-per-node=1", "--max-restarts=3")
        processes.append(place.start(*enter, *torchrun, *meet, *options, *program))
    statuses, said = [], ""
    for process in processes:
        statuses.append(place.wait(process))
        said += place.said
    return statuses, said


@pytest.fixture(scope="module")
def undisturbed(
    hosts: list[str], project: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    place = Place(project, tmp_path_factory.mktemp("undisturbed"))
    statuses, said = on_both(place, hosts, "-m", f"{PACKAGE}.train", *SMALL)
    assert statuses == [0, 0], said
    assert said.count("2 devices on 2 hosts, effective batch size 64") == 1
    return project, place.result()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_on_one_host_starts_both_again_to_the_same_bits(
    hosts: list[str], undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, rank: int
) -> None:
    project, wanted = undisturbed
    place = Place(project, tmp_path)
    script = str(TEMPLATE / "tests" / "one_of_many.py")
    fault = (PACKAGE, "sigkill", str(rank), "training_step", "17")
    statuses, said = on_both(place, hosts, script, *fault, *SMALL)
    assert (tmp_path / "disturbed").is_file()
    assert statuses == [0, 0], said
    assert place.result() == wanted
