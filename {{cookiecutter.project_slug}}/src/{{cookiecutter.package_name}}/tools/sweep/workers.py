"""Several runs at once on one machine, each on a GPU of its own where there are any."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol

from ...engine.device import visible_gpus
from ...engine.limits import usable_cores
from ...engine.run import Signals
from .job import Job
from .results import describe

log = logging.getLogger(__name__)


class Queue(Protocol):
    """The runs of a sweep. Several processes may share it."""

    def next(self) -> Job | None:
        """Return a claimed run, or None when there is nothing left to do."""

    def done(self, job: Job) -> None:
        """Record how a run has ended, and give the claim back."""


def compute(queue: Queue, num_workers: int, signals: Signals) -> None:
    """Compute all that is left of a sweep, until it is done or a signal comes."""
    running: list[Job] = []

    def work(environment: dict[str, str]) -> None:
        while signals.received is None and (job := queue.next()) is not None:
            running.append(job)
            name = f"run {job.number}, {describe(job.overrides)}"
            if job.state != "finished":
                log.info(f"{name}: its output goes to {job.output}")
            job.compute(signals, environment)
            running.remove(job)
            queue.done(job)
            log.info(f"{name}: {job.state}{job.why and f', {job.why}'}")

    with ThreadPoolExecutor(num_workers) as pool:
        workers = [pool.submit(work, environment) for environment in environments(num_workers)]
        # Python hands signals to the main thread, which is this one.
        while wait(workers, timeout=0.2).not_done:
            if signals.received is not None:
                for job in list(running):
                    job.stop(signals.received)
    for worker in workers:
        worker.result()  # raises what was raised in it


def environments(num_workers: int) -> list[dict[str, str]]:
    """Return the environment variables of each worker. A single worker gets the whole machine."""
    # srun may have started several sweeps on one list, and each of their runs is one process.
    here = {key: value for key, value in os.environ.items() if key != "SLURM_STEP_NUM_TASKS"}
    if num_workers == 1:
        return [here]
    gpus = visible_gpus()
    # More threads than cores would wait for each other.
    shared = {"OMP_NUM_THREADS": str(max(1, usable_cores() // num_workers)), **here}
    own = [
        {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} if gpus else {} for i in range(num_workers)
    ]
    return [shared | variables for variables in own]
