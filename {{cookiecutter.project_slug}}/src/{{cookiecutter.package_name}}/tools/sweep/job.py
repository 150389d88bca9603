"""One run of a sweep, trained by a fresh process of `train`.

The run's folder says what is done, so nothing is lost with the process of the sweep.
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

from filelock import Timeout
from omegaconf import DictConfig

from ...engine.files import Lock
from ...engine.run import RunFolder, Signals, training_limits
from .command import Overrides
from .results import Row

log = logging.getLogger(__name__)

MAX_STARTS = 4  # of a run that is killed again and again


@dataclass
class Job:
    """A run, and the process that trains it.

    Args:
        number: of the run in its sweep, from 1.
        overrides: what sets it apart from the others.
        run: its folder.
        cfg: its config.
        argv: the command that trains it.
        output: a file for what the command prints.
        pruned: what pruned.json of the run says if this sweep has pruned it.
    """

    number: int
    overrides: Overrides
    run: RunFolder
    cfg: DictConfig
    argv: list[str]
    output: Path
    pruned: dict[str, Any] | None = None
    claim: Lock | None = field(default=None, init=False)
    why: str = field(default="", init=False)  # it has failed
    metrics: dict[str, float] = field(default_factory=dict, init=False)
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)
    stopped: bool = field(default=False, init=False)

    @property
    def state(self) -> str:
        """One of finished, pruned, failed, live, resumable, waiting."""
        if (metrics := self.run.results(training_limits(self.cfg))) is not None:
            self.metrics = metrics
            return "finished"
        if self.pruned is not None and self.run.pruned.is_file():
            written = json.loads(self.run.pruned.read_text(encoding="utf-8"))
            if written.items() >= self.pruned.items():
                return "pruned"
        if self.why:
            return "failed"
        if self.run.is_live():
            return "live"
        return "resumable" if self.run.path.is_dir() else "waiting"

    def row(self) -> Row:
        state = self.state
        return Row(self.number, self.overrides, state, str(self.run.path), self.metrics, self.why)

    def compute(self, signals: Signals, environment: dict[str, str]) -> None:
        """Train the run to its end, unless a signal comes.

        If the process of an earlier, killed sweep still trains it, wait for that one. A process
        that is killed is started again, and resumes.
        """
        starts = 0
        while signals.received is None and (state := self.state) not in ("finished", "pruned"):
            if state == "live":
                time.sleep(0.5)
            elif starts == MAX_STARTS:
                self.why = f"it was killed {MAX_STARTS} times; see {self.output}"
                return
            elif 0 < (status := self._train(environment)) < 128 and not self.run.is_live():
                self.why = _last_line(self.output) if signals.received is None else ""
                return
            elif status == 0 and self.state not in ("finished", "pruned"):
                self.why = f"it left its results in another folder; see {self.output}"
                return
            else:
                starts += 1
                if status and signals.received is None and self.state != "pruned":
                    log.info(f"{self.run.path} was killed. Resuming it.")

    def _train(self, environment: dict[str, str]) -> int:
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with self.output.open("wb") as output:
            # In a session of its own: Ctrl-C in a terminal reaches it only once, through us.
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            return self.process.wait()

    def take(self, folder: Path) -> bool:
        """Claim the run for this worker. Return False if another worker of the sweep has it."""
        (folder / "claims").mkdir(parents=True, exist_ok=True)
        claim = Lock(folder / "claims" / f"{self.number}.lock", timeout=0)
        try:
            claim.acquire()
        except Timeout:
            return False
        self.claim = claim
        return True

    def release(self) -> None:
        """Give the claim back."""
        assert self.claim is not None
        self.claim.release()

    def stop(self, number: int) -> None:
        """Let its process save and end, with the signal that the sweep has got."""
        if self.process is None or self.process.poll() is not None or self.stopped:
            return
        self.stopped = True
        if sys.platform == "win32":  # has no signals to pass on
            number = signal.SIGTERM
        self.process.send_signal(number)


def _last_line(output: Path) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else f"see {output}"
