"""What may stand in a config: settings that somebody reads, with values that they can take.

A mistake that can be seen without it does not wait for torch.
"""

import contextlib
import functools
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from . import ROOT
from .errors import UserError, did_you_mean
from .files import is_leftover

CONFIGS = f"{ROOT}.configs"
CHANGES = ("experiment", "debug")  # groups whose files change other groups
OBJECTS = ("callbacks", "show", "logger")  # groups whose every entry is an object
# What Lightning's Trainer takes besides the kind of the default in trainer/default.yaml.
ALSO: dict[str, Any] = {"trainer.fast_dev_run": int, "trainer.val_check_interval": (str, dict)}
# What is read by the engine and the tools, and by nothing that declares its types.
READ: dict[str, Any] = {
    **dict.fromkeys(("runs_dir", "mode", "resume", "run", "matmul_precision"), str),
    "name": str | int | float | None,
    **dict.fromkeys(("monitor", "ckpt_path", "init_from", "tests.skip", "output"), str | None),
    "seed": int | None,
    "data.global_batch_size": int | None,
    "save.every_n_minutes": float,
    "save.every_n_steps": int | None,
    "require_accelerator": typing.Literal["cuda", "mps", "gpu", "cpu"] | None,
    "compile": typing.Literal["auto"] | bool,
    "fast_loop": bool,
    **dict.fromkeys(("save", "rehearse", "tests", "benchmark", "sweep"), dict),
    **dict.fromkeys(("rehearse.skip", "rehearse.accept", "sweep.space"), dict),
    "targets": list,
    "memory": str | None,
    "benchmark.targets": typing.Literal["auto"] | list,
    "benchmark.rounds": int,
    "benchmark.steps": typing.Literal["auto"] | int,
    "benchmark.seconds": float,
    "benchmark.folder": str,
    "sweep.method": str,
    **dict.fromkeys([f"sweep.num_{what}" for what in ("runs", "workers", "seeds", "folds")], int),
    "sweep.seed": int,
}
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "a mapping",
    type(None): "null",
}


def check(cfg: DictConfig, base: DictConfig, asked: Any) -> None:
    """Refuse a setting that nobody reads, and a value that its reader cannot take.

    Args:
        cfg: as it was composed, not resolved.
        base: the same, `without_changes`.
        asked: the `hydra` of the config: what was chosen and typed.

    Raises:
        UserError: which it is, and what is meant.
    """
    typed: Any = OmegaConf.to_container(asked.overrides.task, resolve=False)
    _refuse_other_kinds(typed, base)
    for key in _unread(cfg, base):
        if key in groups() and asked.runtime.choices.get(key):
            file = f"{key}/{asked.runtime.choices[key]}.yaml"
            raise UserError(f"Nothing reads {file}. Make its first line: # @package _global_")
        raise UserError(f"Nothing reads the setting '{key}'{did_you_mean(key, keys(base))}")
    for key, value, hint in (*_read_by_us(cfg), *_changed_arguments(cfg, base)):
        if not _fits(value, hint):
            wanted = list(dict.fromkeys(_words(hint)))
            quoted = f""" Quote it: {key}="'{value}'".""" if WORDS[str] in wanted else ""
            said = "null" if value is None else value
            raise UserError(f"{key}={said} must be {' or '.join(wanted)}.{quoted}")


@functools.cache
def groups() -> frozenset[str]:
    """The config groups: the folders in configs/."""
    configs = Path(__file__).parents[1] / "configs"
    folders = (folder.name for folder in configs.iterdir() if folder.is_dir())
    return frozenset(name for name in folders if not is_leftover(Path(name)))


def defaults(config_name: str, overrides: Iterable[str]) -> DictConfig:
    """The config with the groups of these overrides (`model=...`) and none of their values."""
    lines = [line for line in overrides if line.partition("=")[0] in groups()]
    if GlobalHydra.instance().is_initialized():
        return hydra.compose(config_name, lines)
    with hydra.initialize_config_module(CONFIGS, version_base="1.3"):
        return hydra.compose(config_name, lines)


def without_changes(config_name: str, choices: Mapping[str, Any]) -> DictConfig:
    """The config of these choices of groups, without what an experiment changes in them."""
    lines = [f"~{group}" for group in CHANGES if group in choices]
    chosen = [
        f"{group}={choice}"
        for group, choice in choices.items()
        if isinstance(choice, str) and group not in CHANGES and not group.startswith("hydra")
    ]
    with contextlib.suppress(HydraException):  # an experiment may bring a group of its own
        return hydra.compose(config_name, lines + chosen)
    return hydra.compose(config_name, lines)


def _refuse_other_kinds(overrides: Sequence[str], base: DictConfig) -> None:
    """Refuse a value of another kind than the one it replaces: `data.batch_size=many`."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if key in groups() or override.is_add() or override.is_delete():
            continue
        old, new = OmegaConf.select(base, key), override.value()
        if not _same_kind(old, new) and not isinstance(new, ALSO.get(key, ())):
            like = "settings of its own" if OmegaConf.is_dict(old) else f"a value like {old!r}"
            raise UserError(f"{key} takes {like}, not {new!r}.")


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
        return isinstance(new, str | int | float)  # what takes it may be strict, see _fits
    return isinstance(new, list if OmegaConf.is_list(old) else dict)


def keys(cfg: Any, prefix: str = "") -> Iterator[str]:
    """Every setting as it is typed: `data.batch_size`."""
    for key in cfg:
        yield f"{prefix}{key}"
        if _is_section(child := cfg._get_node(key)):
            yield from keys(child, f"{prefix}{key}.")


def _unread(cfg: Any, base: Any, prefix: str = "") -> Iterator[str]:
    """Yield what an experiment or a `+` has added where only the engine reads.

    What is passed to a `_target_` is read by it, and what `${...}` refers to is read there.
    """
    referred = " ".join(re.findall(r"\$\{[^}]*", str(cfg._get_root())))
    for key in cfg:
        node = cfg._get_node(key)
        # `in base` would be false for what is missing (???).
        if key not in [*base, *(() if prefix else ("callbacks", "show"))]:
            if not re.search(rf"\b{re.escape(str(key))}\b", referred):
                yield f"{prefix}{key}"
        elif not _is_section(node) or "_target_" in node:
            continue
        elif key in OBJECTS:
            for name in node:
                one = node._get_node(name)
                if _is_section(one) and "_target_" not in one:
                    yield f"{key}.{name}"
        elif key not in groups() and OmegaConf.is_dict(old := base.get(key)) and old:
            yield from _unread(node, old, f"{prefix}{key}.")


def _read_by_us(cfg: DictConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, value and type of what is in READ."""
    for key in keys(cfg):
        if key in READ and not OmegaConf.is_missing(cfg, key):
            value = OmegaConf.select(cfg, key)
            yield (
                key,
                OmegaConf.to_object(value) if OmegaConf.is_config(value) else value,
                READ[key],
            )


def _changed_arguments(
    cfg: Any, base: DictConfig, prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, value and type hint of what is passed to a `_target_` and has another kind.

    Other kinds than in the YAML of the `_target_` are, besides, null in place of a value, a value
    in place of null, and what is added.
    """
    for key in cfg:
        name, node = f"{prefix}{key}", cfg._get_node(key)
        if _is_section(node):
            yield from _changed_arguments(node, base, f"{name}.")
        if key == "_target_":
            if not isinstance(node._value(), str):
                yield name, node._value(), str
            continue
        if node._is_interpolation() or node._is_missing() or "_target_" not in cfg:
            continue
        new = OmegaConf.to_container(node) if OmegaConf.is_config(node) else node._value()
        parent = OmegaConf.select(base, prefix.rstrip("."))
        before = parent._get_node(key) if OmegaConf.is_dict(parent) and key in parent else None
        if before is not None and before._value() == new:
            continue
        old = OmegaConf.select(base, name)
        same = old is not None and new is not None and _same_kind(old, new)
        # What has a default of auto is judged by device/policy.py.
        if old != "auto" and (not same or isinstance(old, str) != isinstance(new, str)):
            yield name, new, bool if key == "_partial_" else _hint(cfg._target_, key, name)


def _hint(target: str, argument: str, name: str) -> Any:
    """Return the type of an argument, as its function declares it; Any if it does not.

    Raises:
        UserError: the function has no such argument.
    """
    try:
        found: Any = get_object(target)
        function = found.__init__ if isinstance(found, type) else found  # type: ignore[misc]
        parameters = inspect.signature(function).parameters
        hints = typing.get_type_hints(function)
    except Exception:  # nothing of that name, or hints that Python cannot evaluate
        return Any
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    if argument not in parameters:
        if takes_all or argument in ("_args_", "_convert_", "_recursive_"):
            return Any
        raise UserError(
            f"{name}: {target.rpartition('.')[2]} has no argument"
            f" '{argument}'{did_you_mean(argument, parameters)}"
        )
    hint = hints.get(argument, Any)
    return hint | None if parameters[argument].default is None else hint


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value of a YAML can be passed for a type hint; True if nobody can tell."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, dict) and "_target_" in value:
        return True
    if origin in (typing.Union, types.UnionType):
        # Of `float | Tensor`, a YAML has the float.
        plain = [one for one in arguments if one in WORDS or typing.get_origin(one)]
        return any(
            _fits(value, one) for one in ([] if plain == [type(None)] else plain) or arguments
        )
    if origin is typing.Literal:
        return value in arguments
    if hint is Any or isinstance(hint, typing.TypeVar):
        return True
    if value is None or hint is type(None):
        return value is None and hint is type(None)
    kind = origin or hint
    if kind in (bool, int, float):
        allowed = (int, float) if kind is float else kind
        return isinstance(value, allowed) and isinstance(value, bool) == (kind is bool)
    if kind is str:
        return isinstance(value, str)
    if isinstance(kind, type) and kind.__module__ in ("builtins", "collections.abc"):
        if issubclass(kind, Mapping):
            return isinstance(value, dict)
        if issubclass(kind, Iterable):
            return isinstance(value, list)
    return True  # a class may be made from it, such as a Path


def _words(hint: Any) -> Iterator[str]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for one in arguments:
            yield from _words(one)
    elif origin is typing.Literal:
        yield from map(str, arguments)
    else:
        kind = origin or hint
        yield WORDS.get(kind) or str(getattr(kind, "__name__", kind))


def _is_section(node: Any) -> bool:
    return OmegaConf.is_dict(node) and not (
        node._is_none() or node._is_missing() or node._is_interpolation()
    )
