"""A copy of a run's folder at a URL.

Training reads and writes a folder in `runs`, as always. What is at the URL and not here is fetched
first, and what is new here is copied while the training goes on. The order makes every kill
harmless: a checkpoint comes after all that it counts on (the best weights, its rows of
metrics.csv), the one before goes after it has come, and metrics.json, which says that the run is
finished, is last.
"""

import contextlib
import logging
import socket
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ..errors import UserError
from ..files import CHECKSUMS, Lock, on_this_machine
from .lease import SIGN, Lease
from .url import Folder, fetch_checkpoint, latest

log = logging.getLogger(__name__)

FETCHED_FOLDER = ".fetched"  # in `runs`: checkpoints without their runs
STEP_PREFIX = "checkpoints/step_"  # a file or a folder: to go on from
FINISHED = "metrics.json"
LOCAL_FILES = ("lock", "fetch.lock", SIGN)
SKIPPED_ENDINGS = (".part", ".broken", ".seen")


class Mirror:
    """The folder of a run, and its copy at a URL.

    Args:
        folder: here.
        url: of the copy: `s3://bucket/prefix/<name>-<id>`.

    Raises:
        UserError: here and in every method, if the URL cannot be used.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.there = folder, Folder(url)
        self.lease = Lease(self.there, f"{socket.gethostname()}:{folder.resolve()}")
        self.copied: dict[str, tuple[int, int]] = {}  # files, as they were then
        self.sending: str | None = None  # a checkpoint that must stay here until it is there
        self.pool = ThreadPoolExecutor(1)
        self.copying: Future[None] | None = None
        self.warned = False

    def fetch(self, *, with_checkpoints: bool = True, even_if_behind: bool = False) -> None:
        """Download the run's files if the copy is ahead.

        Every process of a run does this; the first of a machine does it for all of them.

        Args:
            with_checkpoints: also the checkpoints to resume from; without, results and weights.
            even_if_behind: download all, also if the copy is not ahead.
        """
        if not (there := self._there()):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with Lock(self.folder / "fetch.lock"):
            here = self._here()
            for name in here:
                if name.startswith(STEP_PREFIX) and there.get(name) == here[name][1]:
                    self.copied[name] = here[name]
            further = _newest(there) > _newest(here) or FINISHED in there.keys() - here.keys()
            if further or even_if_behind:
                for name in sorted(there, key=_upload_order):
                    if with_checkpoints or not name.startswith(STEP_PREFIX):
                        self._get(name, there[name])

    def _get(self, name: str, size: int) -> None:
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            return  # "../": nothing of a run
        same = path.is_file() and path.stat().st_size == size
        if not same or not (
            name.startswith(STEP_PREFIX)
            or int(path.stat().st_mtime) == int(self.there.modified(name))
        ):
            log.info(f"Fetching {self.there.url}/{name}")
            self.there.get(name, path)
        self.copied[name] = _state(path)

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Copy what is pushed while the body trains, and all at its end, however it ends."""
        with self.lease:
            self.fetch()  # what another machine may have copied last
            for seen in self.folder.glob("*.seen"):
                seen.unlink()
            log.info(f"{self.folder} is copied to {self.there.url}")
            try:
                yield
            except BaseException:
                self.pool.shutdown(cancel_futures=True)
                self._try()
                raise
            self.pool.shutdown(cancel_futures=True)
            self.finish()

    def push(self) -> None:
        """Have what is new copied, beside the training: it does not wait for it."""
        if self.lease.lost_to is not None:
            raise UserError(f"{self.lease.lost_to} trains {self.there.url} now: it goes on there.")
        waiting = self.copying and not (self.copying.running() or self.copying.done())
        if not waiting:
            self.copying = self.pool.submit(self._try)

    def share(self) -> Path:
        """Upload everything, and return a marker file: a host that sees it shares this disk."""
        self.pool.submit(self._copy).result()
        seen = self.folder / f"{uuid.uuid4().hex}.seen"
        seen.touch()
        return seen

    def finish(self) -> None:
        """Copy what a finished run has and its copy has not."""
        metrics = self.folder / FINISHED
        if metrics.is_file() and self.there.read(FINISHED) == metrics.read_bytes():
            return  # it is the last
        try:
            self._copy()
        except UserError as error:
            raise UserError(f"{error} What is not copied yet, the same command copies.") from error

    def _try(self) -> None:
        try:
            self._copy()
            self.warned = False
        except Exception as error:
            if not self.warned:
                log.warning(f"The newest files are in {self.folder} only, for now: {error}")
            self.warned = True

    def _copy(self) -> None:
        here = self._here()
        newest = self.sending = _newest(here)
        sent = False
        for name in sorted(here, key=_upload_order):
            of_step = name.startswith(STEP_PREFIX)
            if self.copied.get(name) == here[name] or (of_step and _checkpoint(name) != newest):
                continue
            if self.lease.lost_to is not None or not (self.folder / name).is_file():
                continue
            self.there.put(name, self.folder / name)
            self.copied[name] = here[name]
            sent = sent or of_step
        self.sending = None
        if sent:
            self._prune(newest)

    def _prune(self, newest: str) -> None:
        """Keep `newest` and the one before; anything newer is broken."""
        there = [name for name in self._there() if name.startswith(STEP_PREFIX)]
        before = _newest(name for name in there if _checkpoint(name) < newest)
        for name in {_checkpoint(name) for name in there} - {newest, before}:
            self.there.remove(name)

    def _here(self) -> dict[str, tuple[int, int]]:
        """The time and the size of each file of the run."""
        states = {}
        for path in self.folder.rglob("*"):
            name = path.relative_to(self.folder).as_posix()
            with contextlib.suppress(FileNotFoundError):  # a temporary one
                if _belongs(name) and path.is_file():
                    states[name] = _state(path)
        return states

    def _there(self) -> dict[str, int]:
        return {name: size for name, size in self.there.names().items() if _belongs(name)}


def download_for_use(where: str, runs_dir: str) -> Path:
    """Download what `run=URL` or `run=latest` names; return its local folder or file."""
    url = latest(runs_dir) if where == "latest" else where.rstrip("/")
    here = on_this_machine(url)
    if url.endswith(".ckpt"):
        return fetch_checkpoint(url, here / FETCHED_FOLDER)
    mirror = Mirror(here / url.rpartition("/")[2], url)
    mirror.fetch(with_checkpoints=False)
    if not (mirror.folder / "checkpoints" / "best.ckpt").is_file():
        mirror.fetch()
    return mirror.folder


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


def _belongs(name: str) -> bool:
    parts = name.split("/")
    return not any(part in LOCAL_FILES or part.endswith(SKIPPED_ENDINGS) for part in parts)


def _upload_order(name: str) -> tuple[int, str]:
    """Return a sort key for uploads: other files, the checkpoint, its checksums, metrics.json."""
    if name == FINISHED:
        return 3, name
    return (1 + name.endswith(f"/{CHECKSUMS}") if name.startswith(STEP_PREFIX) else 0), name


def _checkpoint(name: str) -> str:
    """`checkpoints/step_000000100.ckpt`, of a file in it, too."""
    return "/".join(name.split("/")[:2])


def _newest(names: Iterable[str]) -> str:
    """The last checkpoint among these which is whole; empty if there is none."""
    steps = (name for name in names if name.startswith(STEP_PREFIX))
    whole = (name for name in steps if name == _checkpoint(name) or name.endswith(f"/{CHECKSUMS}"))
    return max(map(_checkpoint, whole), default="")
