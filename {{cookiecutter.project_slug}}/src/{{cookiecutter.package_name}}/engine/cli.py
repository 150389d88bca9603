"""How every command starts and ends: a composed config in, an exit status out.

Hydra composes `configs/<config_name>.yaml` with the command line. A mistake on that line becomes
one sentence on stderr, with the closest names, and exit status 1. Nothing here imports torch, so
that `--help` and such mistakes answer at once.
"""

import contextlib
import errno
import functools
import io
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from . import ROOT
from .config import CHANGES, CONFIGS, check, defaults, groups, keys, without_changes
from .errors import UserError, did_you_mean
from .parallel.torchrun import forget_other_launchers

log = logging.getLogger(__name__)

# Warnings that tell a user nothing to do.
QUIET = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # how Lightning 2.6 uses PyTorch 2.13
    r"Checkpoint directory .* exists and is not empty",  # a run goes on in its own folder
    r"The '\w+_dataloader' does not have many workers",  # data in memory need none
    r"You requested to overfit but enabled train dataloader shuffling",  # debug=overfit means to
    r"Be aware that when using `ckpt_path`",  # the callbacks of a run are its own
    r"The number of training batches .* is smaller than the logging interval",  # short runs
    r"GPU available but not used",  # trainer.accelerator=cpu was requested
    r"find_unused_parameters=True was specified",  # for another reason, see device/apply.py
    r"Using `DistributedSampler` with the dataloaders",  # the README says it
    r"FSDP2-wrapped module .* returned a view tensor",  # nothing changes it in place
    r"torch.distributed is disabled, unavailable or uninitialized",  # one process reads the parts
    r"Total length of `(Resumable|Combined)Loader` .* is zero",  # trainer.py says it, with numbers
    r"Precision \S+ is not supported by the model summary",  # only the size in MB is off
    r"The `srun` command is available on your system",  # torchrun makes the processes, not srun
)
# What Hydra says of an experiment without its first line.
NOT_GLOBAL = r"In '([^']+)': Could not override '[^']+@"


def run(program: Callable[[DictConfig], Any], config_name: str, text: str = "") -> None:
    """Call `program` with the config that this command line describes.

    Args:
        program: gets it.
        config_name: of the file in configs/ that is composed.
        text: a setting whose value need not be quoted on the command line, such as `input`.
    """

    @functools.wraps(program)
    def job(cfg: DictConfig) -> Any:
        # Caught in here, because on its way out through Hydra an error gets a second line.
        try:
            asked: Any = HydraConfig.get()
            choices = asked.runtime.choices
            changed = asked.overrides.task or any(choices.get(group) for group in CHANGES)
            # Composing again takes a tenth of a second.
            base = without_changes(asked.job.config_name, choices) if changed else cfg
            check(cfg, base, asked)
            forget_other_launchers()
            return program(cfg)
        except Exception as error:
            if said := sentence(error, config_name):
                sys.exit(said)
            raise

    _ignore_dead_streams()
    sys.argv[1:] = [as_typed(word, text) for word in sys.argv[1:]]
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors over instead of printing them
    start = hydra.main(version_base="1.3", config_path=f"pkg://{CONFIGS}", config_name=config_name)
    try:
        start(job)()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if said := sentence(error, config_name):
            sys.exit(said)
        raise


def _ignore_dead_streams() -> None:
    """Let a run go on whose output nobody reads: `train | head -1`, `>&-`, a dead terminal."""
    logging.raiseExceptions = False  # a log message that cannot be printed is no error of the run
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would become standard output
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed when Python started
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
        elif stream is getattr(sys, f"__{name}__"):  # not a notebook's or a test's
            raw = _NeverFails(getattr(stream.buffer, "raw", stream.buffer))
            # What the terminal has no letter for is escaped.
            kept = {"encoding": stream.encoding, "errors": "backslashreplace"}
            new = io.TextIOWrapper(io.BufferedWriter(raw), **kept, line_buffering=True)
            setattr(sys, name, new)


class _NeverFails(io.RawIOBase):
    """A stream to which every write succeeds, also when its pipe or terminal is gone."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return int(self.raw.fileno())

    def isatty(self) -> bool:
        return bool(self.raw.isatty())

    def write(self, data: Any) -> int | None:
        try:
            written: int | None = self.raw.write(data)
        except OSError:
            return len(data)
        return written


def as_typed(override: str, text: str) -> str:
    """Quote the value of the setting `text` if Hydra cannot parse it or would sweep over it.

    `callbacks=null` becomes an empty list. Other overrides are unchanged.
    """
    key, _, value = override.partition("=")
    if key in ("callbacks", "logger", "show") and value == "null":
        return f"{key}=[]"  # Hydra would take null for a mistake
    if key != text:
        return override
    with contextlib.suppress(HydraException):
        if not OverridesParser.create().parse_override(override).is_sweep_override():
            return override
    value = re.sub(r"(\\*)(\$\{)", r"\1\1\\\2", value)  # no interpolation
    value = re.sub(r"(\\*)(')", r"\1\1\\\2", value)
    value = re.sub(r"(\\+)$", r"\1\1", value)
    return f"{key}='{value}'"


def sentence(error: Exception, config_name: str) -> str | None:
    """Return a user's mistake as one sentence; None for a bug, which keeps its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    match error:
        case UserError():
            return _one_line(error)
        case MissingConfigException(missing_cfg_file=str(file), options=[*options]):
            group, _, name = file.rpartition("/")
            hint = did_you_mean(name, options)
            return f"There is no {group} '{name}'{hint} There are: {', '.join(options)}."
        case InstantiationException(__cause__=UserError() as cause):
            return _one_line(cause)
        case InstantiationException(__cause__=TypeError() | ValueError() | ImportError() as cause):
            if _raised_in_our_code(cause):
                return None
            where = re.search(r"full_key: (\S+)", str(error))
            key = where[1] if where else "config"
            extra = key.removeprefix("logger.")
            missing = isinstance(cause, ImportError) and extra != key
            if missing:
                return f"{key} needs a package that is not here: pip install -e '.[{extra}]'"
            return f"{key}: {_one_line(cause)}"
        case OverrideParseException() if "=" not in str(error.override):
            key = "run" if config_name in ("evaluate", "predict") else "KEY"
            return f"{error.override} is not KEY=VALUE. Write {key}={error.override}."
        case OverrideParseException():
            why = str(error.message).splitlines()[0]
            return f"{error.override} cannot be read ({why}). Quote it, as in key=\"'value'\"."
        case MissingMandatoryValue():
            return f"{error.full_key} is missing. Add {error.full_key}=... to the command."
        case HydraException() if "To sweep over it" in str(error):
            several = str(error).partition("'")[2].partition("'")[0]
            return f"{several} has several values. python -m {ROOT} sweep trains each."
        case HydraException() if not_global := re.search(NOT_GLOBAL, str(error)):
            file = f"{not_global[1]}.yaml"
            return f"{file} changes other groups. Make its first line: # @package _global_"
        case yaml.YAMLError():
            mark = getattr(error, "problem_mark", None)
            place = f"{mark.name}, line {mark.line + 1}" if mark else "A YAML file"
            return f"{place} cannot be read: {getattr(error, 'problem', None) or _one_line(error)}."
        case UnicodeDecodeError() if unreadable := _not_utf_8(error):
            return f"{unreadable} is not UTF-8. Save the file as UTF-8."
        case TypeError() if frames[-1].name == "_create_defaults_tree_impl":  # model=[1]
            return "A group takes names of files in configs. --help lists them."
        case HydraException() if "Could not override 'sweep'" in str(error):
            return f"sweep= is for many runs. Use python -m {ROOT} sweep."
        case HydraException() | OmegaConfBaseException():
            refused = re.search(r"ould not override '([^'@]+)'", str(error))
            with contextlib.suppress(HydraException):  # the fault may be in a file, not in the line
                if refused:
                    key = refused[1]
                    known = [*groups(), *keys(defaults(config_name, sys.argv[1:]))]
                    hint = did_you_mean(key, known)
                    # What nothing reads is not added.
                    added = f" +{key}=... adds it." if key.partition(".")[0] in groups() else ""
                    return f"There is no setting '{key}'{hint}{added}"
            return _one_line(error)
        case ValueError() if "Config group override" in str(error):  # model=null, model=3
            return _one_line(error)
        case ZeroDivisionError() if _of_optimizer(frames):
            return "scheduler: its warm-up is one step or less. Raise pct_start, or train longer."
        case ZeroDivisionError() if "/torch/optim/" in Path(frames[-1].filename).as_posix():
            return "scheduler: it divides by zero. Raise T_max, or what else is 0 in it."
        case ValueError() if _of_optimizer(frames) and "total_steps, but got -1" in str(error):
            return "scheduler: nobody knows how many steps these data give. Set trainer.max_steps."
        case TypeError() | ValueError() if _of_optimizer(frames):
            return f"optimizer or scheduler: {_one_line(error)}"
        case TypeError() | ValueError() if _of_trainer(frames):
            return f"trainer: {_one_line(error)}"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"The disk is full ({error}). Free some space, and give the same command again."
    # Lightning's refusals, and W&B's without a key; importing either to name them here is slow.
    if type(error).__name__ in ("MisconfigurationException", "UsageError"):
        return _one_line(error)
    if "out of memory" in str(error):
        return (
            "The device ran out of memory. Lower data.batch_size, and raise"
            " trainer.accumulate_grad_batches to keep the effective batch size."
        )
    return None


def show(metrics: Mapping[str, Any]) -> None:
    """Print the results at the end of a command."""
    width = max(map(len, metrics), default=0)
    for name, value in metrics.items():
        log.info(f"  {name:<{width}}  {f'{value:.4f}' if isinstance(value, float) else value}")


def _raised_in_our_code(error: BaseException) -> bool:
    """Return whether the error arose in this package's code: a bug, which keeps its traceback.

    A wrong argument, or a value that a library or a `raise ValueError` refuses, is the user's
    mistake.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [Path(frame.filename).is_relative_to(Path(__file__).parents[1]) for frame in frames]
    if isinstance(error, ValueError) and (frames[-1].line or "").startswith("raise ValueError"):
        return False
    return any(ours[-1:] if isinstance(error, ValueError) else ours)


def _of_optimizer(frames: Sequence[traceback.FrameSummary]) -> bool:
    """Whether PyTorch has refused what a task's `configure_optimizers` gave it, such as lr=-1."""
    from_task = any(frame.name == "configure_optimizers" for frame in frames)
    last = Path(frames[-1].filename).as_posix()  # Hydra calls what is a `_partial_`
    return from_task and ("/torch/optim/" in last or "/hydra/_internal/" in last)


def _of_trainer(frames: Sequence[traceback.FrameSummary]) -> bool:
    """Whether Lightning has refused a setting of its Trainer: no other code was called since."""
    engine = Path(__file__).parent
    own = [Path(frame.filename).is_relative_to(engine) for frame in frames]
    since = frames[len(own) - own[::-1].index(True) :] if any(own) else []
    return bool(since) and all("/lightning/" in Path(one.filename).as_posix() for one in since)


def _not_utf_8(error: BaseException) -> str | None:
    """Return the file that Hydra was reading, and the line that cannot be decoded."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = getattr(frame.f_locals.get("f"), "name", None)
        if frame.f_code.co_name in ("load_config", "_read_config") and file is not None:
            content = Path(file).read_bytes()
            try:
                content.decode()
            except UnicodeDecodeError as found:
                return f"{file}, line {content[: found.start].count(10) + 1}"
    return None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
