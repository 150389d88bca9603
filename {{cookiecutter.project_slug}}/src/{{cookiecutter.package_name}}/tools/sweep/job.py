"""One run of a sweep, computed by a fresh process of `train`.

The run's folder says what is done, so that nothing is lost with the process of the sweep.
"""

import json
import logging
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

from ...engine.run import Run
from ...engine.signals import Stop
from .command import Point

log = logging.getLogger(__name__)

TRIES = 4  # of a run that is killed, and goes on


@dataclass
class Job:
    """
    Args:
        number: to name it by.
        point: what sets it apart from the others.
        run: its folder.
        cfg: its config.
        words: the command that computes it.
        output: a file for what the command prints.
        pruned: what its pruned.json says if it was this job that was pruned.
    """

    number: int
    point: Point
    run: Run
    cfg: DictConfig
    words: list[str]
    output: Path
    pruned: dict[str, Any] | None = None
    claim: FileLock | None = field(default=None, init=False)
    why: str = field(default="", init=False)  # it has failed
    metrics: dict[str, float] = field(default_factory=dict, init=False)
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    is_told: bool = field(default=False, init=False)  # to stop

    @property
    def state(self) -> str:
        """One of finished, pruned, failed, live, resumable, waiting."""
        if (metrics := self.run.results(self.cfg)) is not None:
            self.metrics = metrics
            return "finished"
        if self.pruned is not None and self.run.pruned.is_file():
            said = json.loads(self.run.pruned.read_text(encoding="utf-8"))
            if said.items() >= self.pruned.items():
                return "pruned"
        if self.why:
            return "failed"
        if self.run.is_live():
            return "live"
        return "resumable" if self.run.folder.is_dir() else "waiting"

    def compute(self, stop: Stop, environment: dict[str, str]) -> None:
        """Train it to its end, unless `stop` says otherwise.

        Where the process of an earlier, killed sweep still trains it, that one's end is waited for.
        A process that is killed starts again, since it goes on where it was.
        """
        tries = 0
        while stop.signal is None and (state := self.state) not in ("finished", "pruned"):
            if state == "live":
                time.sleep(0.5)
            elif tries == TRIES:
                self.why = f"it was killed {TRIES} times; see {self.output}"
                return
            elif 0 < (status := self._train(environment)) < 128 and not self.run.is_live():
                self.why = _last_line(self.output) if stop.signal is None else ""
                return
            else:
                tries += 1
                if status and stop.signal is None and self.state != "pruned":
                    log.info(f"{self.run.folder} was killed, and goes on.")

    def _train(self, environment: dict[str, str]) -> int:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("wb") as output:
            # Apart from a terminal's group: Ctrl-C reaches it once, by us.
            self.process = subprocess.Popen(
                self.words,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            return self.process.wait()

    def release(self) -> None:
        """Others may see to it."""
        assert self.claim is not None
        self.claim.release()

    def stop(self, number: int) -> None:
        """Let its process save and end, with the signal that the sweep has got."""
        if self.process is None or self.process.poll() is not None or self.is_told:
            return
        self.is_told = True
        if sys.platform == "win32":  # which cannot pass one on
            number = signal.SIGTERM
        self.process.send_signal(number)


def claimed(job: Job, folder: Path) -> bool:
    """Whether nobody else sees to it: not in this process, nor in another one of this sweep."""
    (folder / "claims").mkdir(parents=True, exist_ok=True)
    claim = FileLock(folder / "claims" / f"{job.number}.lock", blocking=False)
    try:
        claim.acquire()
    except Timeout:
        return False
    job.claim = claim
    return True


def _last_line(output: Path) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"see {output}"
