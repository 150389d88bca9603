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

from filelock import FileLock

from ..errors import UserError
from ..files import CHECKSUMS, on_this_machine
from .lease import SIGN, Lease
from .url import Folder, fetch_checkpoint, latest

log = logging.getLogger(__name__)

ONE = ".fetched"  # in `runs`: checkpoints without their runs
STEP = "checkpoints/step_"  # a file or a folder: to go on from
FINISHED = "metrics.json"
OF_A_PLACE = ("lock", "fetch.lock", SIGN)
UNFIT = (".part", ".broken", ".seen")


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

    def fetch(self, *, steps: bool = True, to_the_last_file: bool = False) -> None:
        """Bring here what the run has there, if it has got further there than here.

        Every process of a run does this; the first of a machine does it for all of them.

        Args:
            steps: the checkpoints to go on from, too; results and weights can be had without.
            to_the_last_file: also if it has not.
        """
        if not (there := self._there()):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / "fetch.lock"):
            here = self._here()
            for name in here:
                if name.startswith(STEP) and there.get(name) == here[name][1]:
                    self.copied[name] = here[name]
            further = _newest(there) > _newest(here) or FINISHED in there.keys() - here.keys()
            if further or to_the_last_file:
                for name in sorted(there, key=_turn):
                    if steps or not name.startswith(STEP):
                        self._get(name, there[name])

    def _get(self, name: str, size: int) -> None:
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            return  # "../": nothing of a run
        same = path.is_file() and path.stat().st_size == size
        if not same or not (
            name.startswith(STEP) or int(path.stat().st_mtime) == int(self.there.modified(name))
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
        """Copy all now; a file of this moment, which tells who sees this folder."""
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
        for name in sorted(here, key=_turn):
            of_step = name.startswith(STEP)
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
        """Keep it and the one before. A newer one was broken: the run did not go on from it."""
        there = [name for name in self._there() if name.startswith(STEP)]
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


def bring(where: str, runs_dir: str) -> Path:
    """What `run=URL` names, or `run=latest` among the runs at a URL: its folder or file, here."""
    url = latest(runs_dir) if where == "latest" else where.rstrip("/")
    here = on_this_machine(url)
    if url.endswith(".ckpt"):
        return fetch_checkpoint(url, here / ONE)
    mirror = Mirror(here / url.rpartition("/")[2], url)
    mirror.fetch(steps=False)
    if not (mirror.folder / "checkpoints" / "best.ckpt").is_file():
        mirror.fetch()
    return mirror.folder


def _state(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_mtime_ns, state.st_size


def _belongs(name: str) -> bool:
    parts = name.split("/")
    return not any(part in OF_A_PLACE or part.endswith(UNFIT) for part in parts)


def _turn(name: str) -> tuple[int, str]:
    """When it is copied: what a checkpoint counts on, the checkpoint, its seal; all is done."""
    if name == FINISHED:
        return 3, name
    return (1 + name.endswith(f"/{CHECKSUMS}") if name.startswith(STEP) else 0), name


def _checkpoint(name: str) -> str:
    """`checkpoints/step_000000100.ckpt`, of a file in it, too."""
    return "/".join(name.split("/")[:2])


def _newest(names: Iterable[str]) -> str:
    """The last checkpoint among these which is whole; empty if there is none."""
    steps = (name for name in names if name.startswith(STEP))
    whole = (name for name in steps if name == _checkpoint(name) or name.endswith(f"/{CHECKSUMS}"))
    return max(map(_checkpoint, whole), default="")
