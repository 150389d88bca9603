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
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from . import ROOT
from .errors import UserError, did_you_mean
from .files import is_leftover
from .parallel.torchrun import forget_other_launchers

log = logging.getLogger(__name__)

CONFIGS = f"{ROOT}.configs"

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
            check_types(HydraConfig.get().overrides.task, config_name)
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
    """Let a run go on whose output nobody reads: `train | head -1`, `train >&-`, a dead terminal."""
    logging.raiseExceptions = False  # a log message that cannot be printed is no error of the run
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would become standard output
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed when Python started
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
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
        case HydraException() if "Could not override 'sweep'" in str(error):
            return f"sweep= is for many runs. Use python -m {ROOT} sweep."
        case HydraException() | OmegaConfBaseException():
            refused = re.search(r"ould not override '([^'@]+)'", str(error))
            with contextlib.suppress(HydraException):  # the fault may be in a file, not in the line
                if refused:
                    key = refused[1]
                    known = [*groups(), *_keys(defaults(config_name, sys.argv[1:]))]
                    hint = did_you_mean(key, known)
                    return f"There is no setting '{key}'{hint} +{key}=... adds it."
            return _one_line(error)
        case ValueError() if "Config group override" in str(error):  # model=null, model=3
            return _one_line(error)
        case ZeroDivisionError() if _of_optimizer(error):
            return "scheduler: its warm-up is one step or less. Raise pct_start, or train longer."
        case ValueError() if _of_optimizer(error) and "total_steps, but got -1" in str(error):
            return "scheduler: nobody knows how many steps these data give. Set trainer.max_steps."
        case TypeError() | ValueError() if _of_optimizer(error):
            return f"optimizer or scheduler: {_one_line(error)}"
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


@functools.cache
def groups() -> frozenset[str]:
    """The config groups: the folders in configs/."""
    configs = Path(__file__).parents[1] / "configs"
    folders = (folder.name for folder in configs.iterdir() if folder.is_dir())
    return frozenset(name for name in folders if not is_leftover(Path(name)))


def check_types(overrides: Sequence[str], config_name: str) -> None:
    """Refuse a value of another kind than the one it replaces: `data.batch_size=many`."""
    values = [
        override
        for override in OverridesParser.create().parse_overrides(list(overrides))
        if override.key_or_group not in groups() and not (override.is_add() or override.is_delete())
    ]
    if not values:
        return
    replaced = defaults(config_name, overrides)
    for override in values:
        old, new = OmegaConf.select(replaced, override.key_or_group), override.value()
        if not _same_kind(old, new):
            raise UserError(f"{override.key_or_group} takes a value like {old!r}, not {new!r}.")


def defaults(config_name: str, overrides: Iterable[str]) -> DictConfig:
    """The config with the groups of these overrides (`model=...`) and none of their values."""
    lines = [line for line in overrides if line.partition("=")[0] in groups()]
    if GlobalHydra.instance().is_initialized():
        return hydra.compose(config_name, lines)
    with hydra.initialize_config_module(CONFIGS, version_base="1.3"):
        return hydra.compose(config_name, lines)


def _raised_in_our_code(error: BaseException) -> bool:
    """Return whether the error arose in this package's code: a bug, which keeps its traceback.

    A wrong argument, or a library that refuses a value, is the user's mistake.
    """
    frames = traceback.extract_tb(error.__traceback__)
    ours = [Path(frame.filename).is_relative_to(Path(__file__).parents[1]) for frame in frames]
    return any(ours[-1:] if isinstance(error, ValueError) else ours)


def _of_optimizer(error: BaseException) -> bool:
    """Whether PyTorch has refused what a task's `configure_optimizers` gave it, such as lr=-1."""
    frames = traceback.extract_tb(error.__traceback__)
    from_task = any(frame.name == "configure_optimizers" for frame in frames)
    last = Path(frames[-1].filename).as_posix()  # Hydra calls what is a `_partial_`
    return from_task and ("/torch/optim/" in last or "/hydra/_internal/" in last)


def _same_kind(old: Any, new: Any) -> bool:
    if old is None or new is None or old == "auto" or "${" in str(new):
        return True
    if isinstance(old, bool) or isinstance(new, bool):
        return isinstance(old, bool) and isinstance(new, bool)
    if isinstance(old, int):
        return isinstance(new, int)
    if isinstance(old, float):
        return isinstance(new, int | float)
    if isinstance(old, str):
        return isinstance(new, str | int | float)
    return OmegaConf.is_list(old) == isinstance(new, list)


def _keys(cfg: Any, prefix: str = "") -> Iterable[str]:
    """Every setting as it is typed: `data.batch_size`."""
    for key in cfg:
        yield f"{prefix}{key}"
        child = cfg._get_node(key)
        if OmegaConf.is_dict(child) and not child._is_none() and not child._is_missing():
            yield from _keys(child, f"{prefix}{key}.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
