"""The processes of one run, one per device. torchrun starts them; if one ends, it ends all.

    torchrun --nproc-per-node 2 -m <package>.train experiment=NAME

Plain `train` starts torchrun by itself where there are several devices. Nothing at the top of this
file imports torch, since a run on one device needs none of it.
"""

import atexit
import contextlib
import functools
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from .. import ROOT
from ..errors import UserError

log = logging.getLogger(__name__)

RUN_FOLDER_VARIABLE = "CHOSEN_RUN_FOLDER"  # an environment variable
# Error messages of a rank whose peer has died.
PEER_DIED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
TEARDOWN_SECONDS = 15  # in which torchrun ends the others, once one has failed
# What torchrun sets, all of it.
TORCHRUN_VARIABLES = (
    *("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
)
# Lightning and data libraries would take a process with one of these for one of several: some
# would wait for the others, and some write nothing. With those of Slurm, Lightning also requeues
# the job, which the job script does here.
OTHER_LAUNCHERS = ("SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_", "PMI_", "PMIX_", "JSM_NAME")
ALONE = {"RANK": "0", "PROCID": "0", "SIZE": "1", "NTASKS": "1"}  # ends of names, of one process


def forget_other_launchers() -> None:
    """Remove what a launcher other than torchrun has left in the environment, and say so."""
    names = [name for name in os.environ if name.startswith(OTHER_LAUNCHERS)]
    if torchrun_layout() is None:
        own = (*TORCHRUN_VARIABLES, "NODE_RANK", "GROUP_RANK")
        names += [name for name in own if name in os.environ]
    gone = {name: os.environ.pop(name) for name in names}
    several = [
        f"{name}={value}"
        for name, value in gone.items()
        if ALONE.get(name.rpartition("_")[2], value) != value
    ]
    if several and torchrun_layout() is None:
        log.warning(
            f"{', '.join(several)} in the environment: ignored, since torchrun did not start this"
            " process."
        )


def torchrun_layout() -> tuple[int, int] | None:
    """Return (processes on each host, hosts) as torchrun has started them; None if it has not."""
    if not os.environ.keys() >= set(TORCHRUN_VARIABLES):
        return None
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return here, int(os.environ["WORLD_SIZE"]) // here


def is_rank_zero() -> bool:
    """Return whether this is the process that logs, writes and decides."""
    return torchrun_layout() is None or os.environ["RANK"] == "0"


def from_rank_zero(what: str, choose: Callable[[], Path | None]) -> Path | None:
    """Return what rank 0 has chosen, on every rank: each sees the disk at another moment.

    Args:
        what: a key in the store, the same on every rank and used once per process.
        choose: called on rank 0 only.
    """
    if torchrun_layout() is None:
        return choose()
    store = _store()
    if is_rank_zero():
        chosen = choose()
        store.set(what, str(chosen or ""))
        return chosen
    while not store.check([what]):  # not a wait of its own, in which no signal would be handled
        time.sleep(0.05)
    answer = store.get(what).decode()
    return Path(answer) if answer else None


def once_per_launch(what: str, choose: Callable[[], Path]) -> Path:
    """Return what was chosen at torchrun's start, also after it has restarted the processes."""
    if torchrun_layout() is None:
        return choose()
    if _torchrun().check([what]):
        return Path(_torchrun().get(what).decode())
    chosen = choose()
    _torchrun().set(what, str(chosen))
    return chosen


def init_process_group(strategy: Any) -> None:
    """Make the process group, in a store of its own.

    Lightning would use torchrun's store, where restarted processes find the addresses of the dead
    ones, and wait for them.
    """
    import torch.distributed as dist

    alone = torchrun_layout() is None or not hasattr(strategy, "process_group_backend")
    if alone or dist.is_initialized():
        return
    size = int(os.environ["WORLD_SIZE"])
    there, started = _store().add("there", 1), time.monotonic()
    while there < size:  # here, where a signal is handled, and not in PyTorch
        if time.monotonic() - started > strategy._timeout.total_seconds():
            raise UserError("A process of this run has not started. See the output of its host.")
        time.sleep(0.05)
        there = _store().add("there", 0)
    on_gpu = strategy.root_device.type != "cpu"
    dist.init_process_group(
        strategy._get_process_group_backend(),
        store=_store(),
        rank=int(os.environ["RANK"]),
        world_size=size,
        timeout=strategy._timeout,
        device_id=strategy.root_device if on_gpu else None,
    )
    # Destroy the groups before Python shuts down: a late gloo thread would otherwise abort the
    # process. The 0.1 s are for threads of groups that FSDP still holds.
    atexit.register(time.sleep, 0.1)
    atexit.register(dist.destroy_process_group)  # the last one registered is called first


@functools.cache
def _torchrun() -> Any:
    from torch.distributed import rendezvous

    return next(rendezvous("env://"))[0]


@functools.cache
def _store() -> Any:
    """Return the store of the processes that run now: a restart gets another prefix.

    torchrun's store outlives a restart. Rank 0 of each start opens a port and answers with a
    random prefix; a port that does not answer is of a dead start.
    """
    from torch.distributed import DistError, PrefixStore, TCPStore

    host, size = os.environ["MASTER_ADDR"], int(os.environ["WORLD_SIZE"])
    if is_rank_zero():
        prefix = uuid.uuid4().hex
        _torchrun().set("port", str(_serve_prefix(host, size, prefix).port))
        return PrefixStore(prefix, _torchrun())
    while True:
        time.sleep(0.05)
        if not _torchrun().check(["port"]):
            continue
        port = int(_torchrun().get("port"))
        with contextlib.suppress(OSError, DistError):  # of a process that was killed
            socket.create_connection((host, port), timeout=1).close()
            there = TCPStore(host, port, size, timeout=timedelta(seconds=1))
            return PrefixStore(there.get("prefix").decode(), _torchrun())


@functools.cache  # which keeps the server alive as long as this process lives
def _serve_prefix(host: str, size: int, prefix: str) -> Any:
    from torch.distributed import TCPStore

    store = TCPStore(host, 0, size, is_master=True, wait_for_workers=False)
    store.set("prefix", prefix)
    return store


def refuse_wrong_launcher() -> None:
    """Refuse processes that would train the same run several times. Call it before importing torch.

    Raises:
        UserError: srun has started several, or torchrun a sweep.
    """
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if torchrun_layout() is None and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        raise UserError(
            "srun has started several processes, which do not know of each other. Let it start one"
            f" torchrun per host: srun --ntasks-per-node=1 torchrun ... -m {ROOT}.train"
        )
    if torchrun_layout() is not None and sweep:
        raise UserError(
            f"torchrun cannot start a sweep. python -m {ROOT}.train -m ... starts the"
            " processes of each run by itself."
        )
    if torchrun_layout() is not None:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each of them would warn


def launch(count: int, folder: Path) -> None:
    """Run this command in `count` processes by torchrun, and wait for them.

    Args:
        folder: of the run, since of a sweep's jobs each has its own.

    Raises:
        SystemExit: with the status of the first process that failed, or of a signal.
        UserError: there is no command line to run again, as in a notebook.
    """
    if not HydraConfig.initialized():
        raise UserError(
            f"{count} devices need a process each: torchrun --nproc-per-node {count} -m"
            f" {ROOT}.train, or trainer.devices=1."
        )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the run itself has said what it was
    before = dict(os.environ)
    os.environ[RUN_FOLDER_VARIABLE] = str(folder)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, on each way the same bits
    torchrun = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={count}"]
    try:
        run(parse_args([*torchrun, "-m", f"{ROOT}.train", *_command()]))
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
        sys.exit(status if status > 0 else 128 - status)
    except SignalException as end:
        sys.exit(128 + end.sigval)
    finally:
        os.environ.clear()
        os.environ.update(before)


def _command() -> list[str]:
    """Return the arguments of this job; of a sweep, those of one run."""
    asked = HydraConfig.get()
    folders = [s.path for s in asked.runtime.config_sources if s.provider == "command-line"]
    flags = [f"--config-dir={path}" for path in folders]
    return [f"--config-name={asked.job.config_name}", *flags, *asked.overrides.task]


@contextlib.contextmanager
def report_once() -> Iterator[None]:
    """Print an error that all ranks raise once, and errors that follow from it not at all."""
    try:
        yield
    except Exception as error:
        if torchrun_layout() is None:
            raise
        lost = isinstance(error, RuntimeError) and any(sign in str(error) for sign in PEER_DIED)
        if lost or not is_rank_zero():
            time.sleep(TEARDOWN_SECONDS)  # within which torchrun ends this process
        if lost:
            raise UserError(
                "Another process of this run has died. The same command resumes the run."
            ) from error
        raise
