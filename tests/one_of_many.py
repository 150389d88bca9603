"""The command `train`, as torchrun starts it in every process, and a fault that comes to one of them.

    torchrun --nproc-per-node 2 one_of_many.py PACKAGE FAULT RANK METHOD CALL [OVERRIDE ...]

FAULT happens at the CALL-th call of METHOD of the task, in the process RANK, once: not again where
torchrun starts it anew.
"""

import importlib
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from faults import at_call

DISTURBED = Path("disturbed")  # a file with the time at which the fault came


def send(number: int, pid: Callable[[], int]) -> Callable[[], None]:
    return lambda: os.kill(pid(), number)


def fail() -> None:
    raise ConnectionAbortedError("a fault of the test")


FAULTS = {
    "sigkill": send(signal.SIGKILL, os.getpid),
    "sigterm": send(signal.SIGTERM, os.getpid),
    "sigint": send(signal.SIGINT, os.getpid),
    "sigterm_to_torchrun": send(signal.SIGTERM, os.getppid),
    "exception": fail,
}


def task_of(package: str) -> type:
    """That of the project's starter."""
    name = f"{package}.tasks.classification"
    if importlib.util.find_spec(name):
        return importlib.import_module(name).ClassificationTask
    return importlib.import_module(f"{package}.tasks.language_modeling").LanguageModelingTask


def main() -> None:
    package, fault, rank, method, call, *overrides = sys.argv[1:]
    train = importlib.import_module(f"{package}.train")
    if os.environ["RANK"] == rank and not DISTURBED.is_file():

        def disturb() -> None:
            DISTURBED.write_text(str(time.time()))
            FAULTS[fault]()

        at_call(task_of(package), method, int(call), disturb)
    sys.argv[1:] = overrides
    train.main()


if __name__ == "__main__":
    main()
