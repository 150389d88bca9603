"""Signals: a run that is told to stop saves a checkpoint, and exits with a status that says why."""

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

from ..parallel.torchrun import torchrun_layout

# What a person (SIGINT), a container, a cluster or a cloud (the others) sends before it kills.
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # as far as known here

NOT_USERS = ("signal", "_signal", "lightning", __name__)  # where a handler comes from


class Signals:
    """While it is entered, a signal stops the run: at once, or where `deferred` at the next batch.

    The exit status is 128 and the signal's number: 143 for SIGTERM, 130 for Ctrl-C. A second
    signal (but SIGHUP) ends the process on the spot; files are written so that this harms none.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False
        # Seconds in which torchrun's copy of the same signal is ignored.
        self.ignore_repeats = 2 if torchrun_layout() else 0
        self._since = 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}
        self._users: dict[int, list[Any]] = {}

    def __enter__(self) -> "Signals":
        self.take_over()
        return self

    def take_over(self) -> None:
        """Install the handlers; called again after Lightning has installed its own."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets only the main thread handle signals
        for name in SIGNALS:
            number = getattr(signal, name, None)
            # Ignored: a script has started this in the background and means to keep Ctrl-C off it.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before = signal.signal(number, self._handle)
                self._before.setdefault(number, before)
                self._keep_users(number, before)

    def _keep_users(self, number: int, before: Any) -> None:
        """Keep the handlers that a task or a callback has installed, to call them as well."""
        kept = self._users.setdefault(number, [])
        # Lightning puts its own and those that it finds into one handler.
        for handler in getattr(before, "signal_handlers", [before]):
            module = getattr(handler, "__module__", None) or "signal"
            if callable(handler) and not module.startswith(NOT_USERS) and handler not in kept:
                kept.append(handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader's worker: Ctrl-C goes to all, and the batches are needed still
        if self.received is not None:
            # A terminal that closes sends several SIGHUP: by its shell and by the system.
            again = number == getattr(signal, "SIGHUP", None)
            if again or time.monotonic() - self._since < self.ignore_repeats:
                return
            os._exit(128 + number)
        self.received, self._since = number, time.monotonic()
        for handler in self._users.get(number, ()):
            handler(number, frame)
        if hasattr(signal, "SIGCHLD"):  # PyTorch raises in here if a worker dies of the same signal
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if not self.deferred:
            self.exit()

    def exit(self) -> None:
        """End with the status of the signal, which another process of the run may have got."""
        sys.exit(128 + (self.received or signal.SIGTERM))
