"""Several runs at once on one machine, each on a GPU of its own where there are any."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol

from ...engine.device import visible_gpus
from ...engine.signals import Stop
from .job import Job
from .results import describe

log = logging.getLogger(__name__)


class Sweep(Protocol):
    """What gives the jobs, and remembers what became of them. Several processes may share it."""

    def next(self) -> Job | None:
        """One that no other worker sees to, claimed; None when there is nothing to do."""

    def done(self, job: Job) -> None:
        """It has been computed, as far as it was; the claim is given back."""


def compute(sweep: Sweep, num_workers: int, stop: Stop) -> None:
    """Do all that is left of a sweep, until it is done or `stop` has a signal."""
    running: list[Job] = []

    def work(environment: dict[str, str]) -> None:
        while stop.signal is None and (job := sweep.next()) is not None:
            running.append(job)
            name = f"run {job.number}, {describe(job.point)}"
            if job.state != "finished":
                log.info(f"{name}: what it prints goes to {job.output}")
            job.compute(stop, environment)
            running.remove(job)
            sweep.done(job)
            log.info(f"{name}: {job.state}{job.why and f', {job.why}'}")

    with ThreadPoolExecutor(num_workers) as pool:
        workers = [pool.submit(work, environment) for environment in environments(num_workers)]
        # Python hands signals to this, the main thread.
        while wait(workers, timeout=0.2).not_done:
            if stop.signal is not None:
                for job in list(running):
                    job.stop(stop.signal)
    for worker in workers:
        worker.result()  # raises what was raised in it


def environments(num_workers: int) -> list[dict[str, str]]:
    """The variables of each worker's processes. A single one has the machine as it is."""
    # srun may have started several sweeps on one list, and each of their runs is one process.
    here = {key: value for key, value in os.environ.items() if key != "SLURM_STEP_NUM_TASKS"}
    if num_workers == 1:
        return [here]
    gpus = visible_gpus()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # More threads than cores would wait for each other.
    shared = {"OMP_NUM_THREADS": str(max(1, (cores or 1) // num_workers)), **here}
    own = [
        {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(num_workers)
    ]
    return [shared | variables for variables in own]
