"""One run's folder, `<runs_dir>/<name>-<id>`, and what is in it.

Nothing here imports torch, so that a missing run is reported at once.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout
from omegaconf import DictConfig, OmegaConf

from .. import ROOT
from ..errors import UserError
from ..files import CHECKSUMS, Lock, is_url, remove, write_whole
from ..parallel.torchrun import from_rank_zero, torchrun_layout

if TYPE_CHECKING:  # what it needs takes long to load
    from ..remote.mirror import Mirror

log = logging.getLogger(__name__)

LOCK_SECONDS = 10  # until a folder counts as taken
ONLY_STARTED = {"config.yaml", "log.txt", "lock"}  # what a folder has before anything is trained
LOG_HANDLER = "log.txt of the run"  # the name of its handler


class RunFolder:
    """The files of one run.

    Args:
        path: the folder, on this machine.
        mirror: its copy at a URL, where `runs_dir` is one.
    """

    def __init__(self, path: Path, mirror: "Mirror | None" = None) -> None:
        self.path = path
        self.mirror = mirror
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.json"  # written last: a run that has it is finished
        self.pruned = path / "pruned.json"  # that a sweep has stopped it, and why
        self.lock = path / "lock"
        self.log = path / "log.txt"
        self.best = path / "checkpoints" / "best.ckpt"  # weights, by the monitored metric
        self.last = path / "checkpoints" / "last.ckpt"  # weights, after the last step

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint to resume from after this many optimizer steps."""
        return self.path / "checkpoints" / f"step_{step:09d}.ckpt"

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints to resume from, newest first."""
        return sorted(self.path.glob("checkpoints/step_*.ckpt"), reverse=True)

    def weights(self) -> Path | None:
        """Return the checkpoint to use: the one that was tested, else the best, last or newest."""
        saved = self._saved()
        tested = [self.path / saved["checkpoint"]] if saved and saved.get("checkpoint") else []
        there = (*tested, self.best, self.last, *self.checkpoints())
        return next((path for path in there if path.exists()), None)

    def newest(self, is_loadable: Callable[[Path], bool]) -> Path | None:
        """Return the newest checkpoint that `is_loadable`, and rename those that are not."""
        for path in self.checkpoints():
            if is_loadable(path):
                return path
            log.warning(f"{path} is broken. Renaming it to {path.name}.broken.")
            with contextlib.suppress(OSError):  # another rank has renamed it already
                path.replace(path.with_name(f"{path.name}.broken"))
        return None

    def prune(self) -> None:
        """Keep the two newest checkpoints: if the newest turns out broken, there is one more."""
        sending = self.mirror and self.mirror.sending
        for old in self.checkpoints()[2:]:
            if sending == old.relative_to(self.path).as_posix():
                continue  # it is being copied; removed the next time
            with contextlib.suppress(OSError):  # somebody has it open; removed the next time
                remove(old)

    # The copy at a URL.

    def fetch(self, *, with_checkpoints: bool = True) -> None:
        """Download what another machine has left of the run, if `runs_dir` is a URL."""
        if self.mirror is not None:
            self.mirror.fetch(with_checkpoints=with_checkpoints)

    def push(self) -> None:
        """Copy what is new to the URL, in the background."""
        if self.mirror is not None:
            self.mirror.push()

    def share(self, what: str, *, in_parts: bool = False) -> None:
        """Send rank 0's files to hosts without a shared disk, by way of the URL.

        Args:
            what: key of this exchange, the same on every rank and used once.
            in_parts: every rank writes a part of each checkpoint.
        """
        if self.mirror is None or (torchrun_layout() or (1, 1))[1] == 1:
            return
        if in_parts:  # refused in every rank, or the others would wait for this one
            raise UserError(
                "With trainer=fsdp each host writes a part of a checkpoint. On several hosts use a"
                " runs_dir that is a folder which all of them see, or trainer=ddp."
            )
        seen = from_rank_zero(f"shared {what}", self.mirror.share)
        if seen is not None and not seen.exists():
            self.mirror.fetch(even_if_behind=True)

    # How a run begins and ends.

    def results(self, limits: dict[str, Any]) -> dict[str, float] | None:
        """Return the metrics of a finished run, or None if there is still something to train.

        Args:
            limits: how long the run is to be trained, see `training_limits`.

        Raises:
            UserError: the run has been trained for longer than that.
        """
        saved = self._saved()
        if saved is None:
            return None
        saved.pop("checkpoint", None)
        if saved.pop("limits") == limits:
            return saved
        for limit, trained in (("max_epochs", saved["epochs"]), ("max_steps", saved["steps"])):
            if 0 <= (limits[limit] if limits[limit] is not None else -1) < trained:
                raise UserError(
                    f"{self.path} has been trained for more than {limit}={limits[limit]}. Add"
                    " resume=never to train a shorter one in a new folder."
                )
        return None

    def _saved(self) -> dict[str, Any] | None:
        if not self.metrics.is_file():
            return None
        return dict(json.loads(self.metrics.read_text(encoding="utf-8")))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Create the folder if need be, and lock it against every other process.

        Raises:
            UserError: another process trains in it, or it cannot be written.
        """
        # Loader workers of a killed process keep the lock for some seconds.
        lock = Lock(self.lock, timeout=LOCK_SECONDS)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"Another process is training {self.path}. Wait for it, or add resume=never."
            ) from error
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from error
        try:
            for part in list(self.path.rglob("*.part")):  # of a write that was killed
                remove(part)
            if self.mirror is None:
                yield
            else:
                with self.mirror.live():
                    yield
                self.prune()  # what could not be removed while it was copied
        except Exception:
            if {path.name for path in self.path.iterdir()} <= ONLY_STARTED:  # nothing was trained
                self.close_log()
                self.config.unlink(missing_ok=True)
                self.log.unlink(missing_ok=True)
            raise
        finally:
            lock.release()
            with contextlib.suppress(OSError):  # a command that was refused leaves no folder
                if [*self.path.iterdir()] == [self.lock]:
                    self.lock.unlink()
                    self.path.rmdir()

    def is_live(self) -> bool:
        """Return whether a process trains in the folder now, here or where the disk is shared."""
        if not self.lock.is_file():
            return False
        try:
            with Lock(self.lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # somebody else's file, where nothing may be locked
            return False

    def start(self, cfg: DictConfig) -> None:
        """Write the config with what `auto` became, and send log messages to log.txt, too."""
        try:
            text = OmegaConf.to_yaml(cfg, resolve=True)
            write_whole(self.config, lambda file: file.write(text.encode()))
            log_file = logging.FileHandler(self.log, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}.") from error
        log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log_file.name = LOG_HANDLER
        self.close_log()  # of the run before, where one process has several
        logging.getLogger().addHandler(log_file)
        logging.getLogger(ROOT).setLevel(logging.DEBUG)  # of which a console shows INFO

    def close_log(self) -> None:
        root = logging.getLogger()
        for handler in [one for one in root.handlers if one.name == LOG_HANDLER]:
            root.removeHandler(handler)
            handler.close()

    def finish(
        self, metrics: dict[str, float], *, limits: dict[str, Any], checkpoint: Path | None
    ) -> None:
        """Write metrics.json, which makes the run a finished one.

        Args:
            metrics: the results.
            limits: how long it was trained.
            checkpoint: whose weights were tested.
        """
        tested = str(checkpoint) if checkpoint is not None else None
        if checkpoint is not None and checkpoint.resolve().is_relative_to(self.path.resolve()):
            # The folder may be moved.
            tested = checkpoint.resolve().relative_to(self.path.resolve()).as_posix()
        try:
            write_json(self.metrics, {**metrics, "limits": limits, "checkpoint": tested})
        except OSError as error:
            raise UserError(f"{self.metrics} cannot be written: {error.strerror}.") from error


def find(where: str, runs_dir: str) -> tuple[RunFolder, Path]:
    """Return the run and the checkpoint that `run=` names.

    Args:
        where: a run's folder, a checkpoint, the URL of either, or `latest`.
        runs_dir: where `latest` looks.

    Raises:
        UserError: nothing is there.
    """
    path = Path(where)
    if is_url(where) or (where == "latest" and is_url(runs_dir)):
        from ..remote.mirror import download_for_use

        path = download_for_use(where, runs_dir)
    elif where == "latest":
        used = Path(runs_dir).glob("*/checkpoints/*.ckpt")
        path = max(used, key=lambda file: file.stat().st_mtime, default=path).parent.parent
        if not path.name:
            raise UserError(
                f"No run in {runs_dir} has a checkpoint. Train one, or pass runs_dir=FOLDER."
            )
    if path.is_file() or (path / CHECKSUMS).is_file():
        in_run = path.parent.name == "checkpoints"
        return RunFolder(path.parent.parent if in_run else path.parent), path
    run = RunFolder(path)
    if (weights := run.weights()) is None:
        raise UserError(f"No checkpoint in {where}. Pass run=FOLDER, run=FILE.ckpt or run=latest.")
    return run, weights


def initial_checkpoint(cfg: DictConfig, key: str) -> Path | None:
    """Return the checkpoint that `ckpt_path` or `init_from` names."""
    where = cfg[key]
    if where is None:
        return None
    if where == "latest":
        raise UserError(
            f"{key}=latest would be this run itself the next time. Name a folder or a file."
        )
    if is_url(where):
        folder = not where.endswith(".ckpt")
    else:
        folder = Path(where).is_dir() and not (Path(where) / CHECKSUMS).is_file()
    if key == "ckpt_path" and folder:  # whose newest is another one later
        raise UserError(f"ckpt_path={where} is a folder. Name one of the step_*.ckpt files in it.")
    return find(str(where), cfg.runs_dir)[1]


def weights_file(checkpoint: Path) -> Path:
    """Return the file whose bytes tell one checkpoint from another."""
    return checkpoint / CHECKSUMS if checkpoint.is_dir() else checkpoint


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write all of the file or none of it."""
    text = json.dumps(values, indent=2) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
