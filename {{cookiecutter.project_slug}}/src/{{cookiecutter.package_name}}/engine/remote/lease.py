"""Who trains a run that lies at a URL. A lock cannot be had there, but a sign of life can be left.

Two machines that begin in the same second may not see each other. They compute the same run, so
what they write is the same; only the time is lost.
"""

import contextlib
import json
import logging
import threading
import time
from typing import Any

from ..errors import UserError
from .url import Folder

log = logging.getLogger(__name__)

SIGN = "live.json"  # who, and when they last said so
EVERY = 20  # seconds
MISSED = 3  # signs, and a machine is gone: it was killed, or it lost its power


class Lease:
    """The sign of life of `owner` in a folder at a URL, while it is entered.

    Attributes:
        lost_to: who trains the run now, should this machine have slept or been cut off meanwhile.
    """

    def __init__(self, folder: Folder, owner: str) -> None:
        self.folder, self.owner = folder, owner
        self.lost_to: str | None = None
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> "Lease":
        """Take the lease, also from a machine that has gone silent.

        Raises:
            UserError: the other one is alive.
        """
        before = self._sign()
        if before is not None and before["by"] != self.owner:
            log.info(
                f"{before['by']} has not said that it ended: waiting {MISSED * EVERY} s for a sign"
                " of life."
            )
            for _ in range(MISSED):
                time.sleep(EVERY)
                if (now := self._sign()) is None:
                    break
                if now != before:
                    raise UserError(
                        f"{now['by']} is training {self.folder.url}: wait for it, or add"
                        " resume=never."
                    )
        self._leave_sign()
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()
        if self.lost_to is None:
            with contextlib.suppress(Exception):  # the next machine waits a while, then
                self.folder.remove(SIGN)

    def _renew(self) -> None:
        while not self.over.wait(EVERY):
            with contextlib.suppress(Exception):  # no network for a while
                sign = self._sign()
                if sign is not None and sign["by"] != self.owner:
                    self.lost_to = str(sign["by"])
                    return
                self._leave_sign()

    def _sign(self) -> dict[str, Any] | None:
        content = self.folder.read(SIGN)
        return None if content is None else dict(json.loads(content))

    def _leave_sign(self) -> None:
        self.folder.put(SIGN, json.dumps({"by": self.owner, "at": time.time()}).encode())
