"""A run is a function of (code, config, seed, data); its folder is named after them.

The same command with the same code finds its folder again, in every process and on every machine,
because there is no clock in the name. Nothing here imports torch, so that a run that is not there
is said at once.
"""

import contextlib
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from .errors import UserError
from .processes import CHOSEN, agreed, launched, remembered
from .storage import SEAL, is_url, on_this_machine, remove, write_whole

if TYPE_CHECKING:  # what it needs takes long to load
    from .mirror import Mirror

log = logging.getLogger(__name__)

# Of the config, what decides the weights, or which of them are kept. The task has its model,
# optimizer and scheduler in it.
DECIDES = ("seed", "data", "task", "trainer", "callbacks", "matmul_precision", "compile")
# Of that again, what does not: the device and its loader, how long to train, what is shown.
HOW_LONG = ("max_epochs", "max_steps", "max_time")
DOES_NOT = {
    "data": ("num_workers", "pin_memory", "persistent_workers", "on_device", "cache"),
    "trainer": (
        *("accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "profiler"),
        *HOW_LONG,
    ),
    "callbacks": (
        "progress",
        "model_summary",
        "learning_rate",
        "device_stats",
        "curves",
        "confusion",
        "baseline",
        "sample",
        "pruning",
    ),
}


# Of the package, what no result depends on.
BESIDE = ("benchmark", "doctor", "rehearse", "runs.py", "sweep")
STARTS_FROM = ("ckpt_path", "init_from")
PATIENCE = 10  # seconds until a folder counts as taken


def identity(cfg: DictConfig) -> str:
    """The first 8 hex digits of a hash over the deciding config and the package's sources."""
    deciding = {key: value for key, value in plain_config(cfg).items() if key in DECIDES}
    for group, keys in DOES_NOT.items():
        kept = {k: v for k, v in (deciding.get(group) or {}).items() if k not in keys}
        deciding[group] = kept
    if deciding["data"].pop("global_batch_size", None) is not None:
        # That of a device follows from it, on one or on eight.
        deciding["data"]["batch_size"] = {"global": cfg.data.global_batch_size}
    if "total_steps" in cfg.scheduler.scheduler:  # a schedule over all steps
        deciding["trainer"]["max_steps"] = cfg.trainer.max_steps
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
    for key in STARTS_FROM:
        if (start := start_of(cfg, key)) is not None:
            with (start / SEAL if start.is_dir() else start).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    package = Path(__file__).parent
    for source in sorted(package.rglob("[!.]*.py")):  # not the lock files of editors
        name = source.relative_to(package)
        if name.parts[0] in BESIDE:
            continue
        digest.update(name.as_posix().encode())
        digest.update(source.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:8]


def start_of(cfg: DictConfig, key: str) -> Path | None:
    """The checkpoint that `ckpt_path` or `init_from` names; its bytes decide the result, too."""
    where = cfg[key]
    if where is None:
        return None
    if where == "latest":
        raise UserError(
            f"{key}=latest would be this run itself the next time: name a folder or file."
        )
    if is_url(where):
        folder = not where.endswith(".ckpt")
    else:
        folder = Path(where).is_dir() and not (Path(where) / SEAL).is_file()
    if key == "ckpt_path" and folder:  # whose newest is another one later
        raise UserError(f"ckpt_path={where} is a folder: name one of the step_*.ckpt files in it.")
    return Run.find(str(where), cfg.runs_dir)[1]


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain Python data, which is all that a checkpoint may hold."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


class Run:
    """One folder, `<runs_dir>/<name>-<identity>`, and what stands in it.

    Where `runs_dir` is a URL, the folder is in `runs`, and its `mirror` is there.
    """

    def __init__(self, folder: Path, mirror: "Mirror | None" = None) -> None:
        self.folder = folder
        self.mirror = mirror
        self.config = folder / "config.yaml"
        self.metrics = folder / "metrics.json"  # written last: a run that has it is finished
        self.pruned = folder / "pruned.json"  # that a sweep has stopped it, and why
        self.lock = folder / "lock"
        self.best = folder / "checkpoints" / "best.ckpt"  # of the weights; for use

    def checkpoint(self, step: int) -> Path:
        """That of everything after this many optimizer steps; to go on from."""
        return self.folder / "checkpoints" / f"step_{step:09d}.ckpt"

    def checkpoints(self) -> list[Path]:
        """Those to go on from, the newest first."""
        return sorted(self.folder.glob("checkpoints/step_*.ckpt"), reverse=True)

    def newest(self, is_whole: Callable[[Path], bool]) -> Path | None:
        """The newest checkpoint that `is_whole`. One that is not is put aside."""
        for path in self.checkpoints():
            if is_whole(path):
                return path
            log.warning(f"{path} is broken, and now called {path.name}.broken.")
            with contextlib.suppress(OSError):  # of several processes one is the first
                path.replace(path.with_name(f"{path.name}.broken"))
        return None

    def prune(self) -> None:
        """Keep the two newest checkpoints: should the newest turn out broken, there is one more."""
        sending = self.mirror and self.mirror.sending
        for old in self.checkpoints()[2:]:
            if sending == old.relative_to(self.folder).as_posix():
                continue  # the next time, then
            with contextlib.suppress(OSError):  # somebody has it open: the next time, then
                remove(old)

    @classmethod
    def of(cls, cfg: DictConfig) -> "Run":
        """The run that this config describes; with `resume=never` a new one beside it."""
        name = str(cfg.name or cfg.model._target_.rpartition(".")[2].lower())
        if Path(name).name != name:
            raise UserError(f"name={name} is not the name of one folder.")
        folder = on_this_machine(cfg.runs_dir) / f"{name}-{identity(cfg)}"
        chosen = agreed("folder", lambda: _new(folder, cfg) if cfg.resume == "never" else folder)
        if chosen is None or not chosen.name.startswith(folder.name):
            raise UserError(
                f"This process would train {folder}, and the first one {chosen}: give every host"
                " the same code and the same command."
            )
        if not is_url(cfg.runs_dir):
            return cls(chosen)
        from .mirror import Mirror

        return cls(chosen, Mirror(chosen, f"{cfg.runs_dir.rstrip('/')}/{chosen.name}"))

    @classmethod
    def find(cls, where: str, runs_dir: str) -> tuple["Run", Path]:
        """The run and the checkpoint that `run=` names.

        Args:
            where: a run's folder (its best checkpoint), a checkpoint, their URL, or `latest`.

        Raises:
            UserError: nothing is there.
        """
        path = Path(where)
        if is_url(where) or (where == "latest" and is_url(runs_dir)):
            from .mirror import bring

            path = bring(where, runs_dir)
        elif where == "latest":
            used = Path(runs_dir).glob("*/checkpoints/*.ckpt")
            path = max(used, key=lambda file: file.stat().st_mtime, default=path).parent.parent
            if not path.name:
                raise UserError(
                    f"No run in {runs_dir} has a checkpoint: train, or say runs_dir=FOLDER."
                )
        if path.is_file() or (path / SEAL).is_file():
            in_run = path.parent.name == "checkpoints"
            return cls(path.parent.parent if in_run else path.parent), path
        run = cls(path)
        for checkpoint in (run.best, *run.checkpoints()):
            if checkpoint.exists():
                return run, checkpoint
        raise UserError(
            f"There is no checkpoint in {where}: say run=FOLDER, run=FILE.ckpt or run=latest."
        )

    def fetch(self, *, steps: bool = True) -> None:
        """Go on where another machine has left the run, if `runs_dir` is a URL."""
        if self.mirror is not None:
            self.mirror.fetch(steps=steps)

    def share(self, what: str, *, in_parts: bool = False) -> None:
        """Let hosts that do not see the first one's disk have what it has, by way of the copy.

        Args:
            what: known to all processes; each once.
            in_parts: a checkpoint is written by all processes.
        """
        if self.mirror is None or (launched() or (1, 1))[1] == 1:
            return
        if in_parts:  # in every process, or the others would wait for this one
            raise UserError(
                "Each host writes a part of a checkpoint with trainer=fsdp: on several hosts take a"
                " runs_dir that is a folder which all of them see, or trainer=ddp."
            )
        seen = agreed(f"shared {what}", self.mirror.share)
        if seen is None or seen.exists():
            return
        self.mirror.fetch(to_the_last_file=True)

    def push(self) -> None:
        """Have it copied there."""
        if self.mirror is not None:
            self.mirror.push()

    def results(self, cfg: DictConfig) -> dict[str, float] | None:
        """The metrics of the finished run, or None where there is still something to train.

        Raises:
            UserError: the run has been trained for longer than this config asks.
        """
        if not self.metrics.is_file():
            return None
        saved = json.loads(self.metrics.read_text(encoding="utf-8"))
        done, asked = saved.pop("how_long"), how_long(cfg)
        if done == asked:
            return dict(saved)
        for limit, trained in (("max_epochs", saved["epochs"]), ("max_steps", saved["steps"])):
            if 0 <= (asked[limit] if asked[limit] is not None else -1) < trained:
                raise UserError(
                    f"{self.folder} has been trained for more than {limit}={asked[limit]}:"
                    " add resume=never to train a shorter one in a new folder."
                )
        return None

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder, which is made if need be, against every other process.

        Raises:
            UserError: another one trains in it, or it cannot be written.
        """
        # A while, since the workers of a process that was killed hold it until they notice.
        lock = FileLock(self.lock, timeout=PATIENCE)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"Another process is training {self.folder}: wait for it, or add resume=never."
            ) from error
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error.strerror}.") from error
        try:
            for part in list(self.folder.rglob("*.part")):  # of a write that was killed
                remove(part)
            if self.mirror is None:
                yield
            else:
                with self.mirror.live():
                    yield
                self.prune()  # what could not be while it was copied
        finally:
            lock.release()
            with contextlib.suppress(OSError):  # of what was refused before it began, nothing stays
                if [*self.folder.iterdir()] == [self.lock]:
                    self.lock.unlink()
                    self.folder.rmdir()

    def is_live(self) -> bool:
        """Whether a process trains in the folder now, on this machine or one that shares it."""
        if not self.lock.is_file():
            return False
        try:
            with FileLock(self.lock, blocking=False):
                return False
        except Timeout:
            return True
        except OSError:  # somebody else's, where nothing may be locked
            return False

    def start(self, cfg: DictConfig) -> None:
        """Write down the config with what auto chose, and log to log.txt."""
        try:
            self.config.write_text(OmegaConf.to_yaml(cfg, resolve=True), encoding="utf-8")
            log_file = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written: {error.strerror}.") from error
        log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log_file.name = "log.txt of the run"
        root = logging.getLogger()
        for other in [handler for handler in root.handlers if handler.name == log_file.name]:
            root.removeHandler(other)  # of the run before, where one process has several
            other.close()
        root.addHandler(log_file)
        logging.getLogger(__package__).setLevel(logging.DEBUG)  # of which a console shows INFO

    def finish(self, cfg: DictConfig, metrics: dict[str, float]) -> None:
        try:
            write_json(self.metrics, {**metrics, "how_long": how_long(cfg)})
        except OSError as error:
            raise UserError(f"{self.metrics} cannot be written: {error.strerror}.") from error


def _new(folder: Path, cfg: DictConfig) -> Path:
    """The first of `folder`, `folder`-2, -3, ... that is not there."""
    if CHOSEN in os.environ:  # by the process that has started torchrun
        return Path(os.environ[CHOSEN])
    taken: set[str] = set()
    if is_url(cfg.runs_dir):
        from .remote import Folder

        taken = Folder(cfg.runs_dir).folders()
    copies = (folder.with_name(f"{folder.name}-{n}") for n in itertools.count(2))
    both = itertools.chain([folder], copies)
    free = (copy for copy in both if not copy.exists() and copy.name not in taken)
    return remembered("new folder", lambda: next(free))


def how_long(cfg: DictConfig) -> dict[str, Any]:
    return {key: cfg.trainer.get(key) for key in HOW_LONG}


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write all of the file or none of it."""
    text = json.dumps(values, indent=2) + "\n"
    write_whole(path, lambda file: file.write(text.encode()))
