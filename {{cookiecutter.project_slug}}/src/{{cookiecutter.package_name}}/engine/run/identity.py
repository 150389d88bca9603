"""What a run is a function of: code, config, seed and data. Their hash names its folder."""

import ast
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ..files import is_leftover
from .folder import initial_checkpoint, weights_file

# The parts of the config that decide the weights, or which of them are kept. The task contains its
# model, optimizer and scheduler.
HASHED = ("seed", "data", "task", "trainer", "callbacks", "matmul_precision", "compile")
# Within these, what decides nothing: the device and its loaders, how long to train, what is shown.
LIMITS = ("max_epochs", "max_steps", "max_time")
NOT_HASHED = {
    "data": ("num_workers", "pin_memory", "persistent_workers", "cache"),
    "trainer": (
        *("accelerator", "devices", "num_nodes", "strategy", "log_every_n_steps", "profiler"),
        *LIMITS,
    ),
}
# Of the package, what no training depends on.
NOT_HASHED_CODE = ("tools", "evaluate.py", "predict.py", "__main__.py")


def identity(cfg: DictConfig) -> str:
    """Return the first 8 hex digits of a hash over the deciding config and the code."""
    deciding = {key: value for key, value in plain_config(cfg).items() if key in HASHED}
    for group, keys in NOT_HASHED.items():
        deciding[group] = {k: v for k, v in (deciding.get(group) or {}).items() if k not in keys}
    if deciding["data"].pop("global_batch_size", None) is not None:
        # The batch size of a device follows from it, on one device or on eight.
        deciding["data"]["batch_size"] = {"global": cfg.data.global_batch_size}
    if (cfg.get("scheduler") or {}).get("interval") == "step":  # a schedule over all steps
        length = {key: cfg.trainer.get(key) for key in ("max_epochs", "max_steps")}
        deciding["trainer"].update(length)
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode())
    for key in ("ckpt_path", "init_from"):
        if (start := initial_checkpoint(cfg, key)) is not None:
            with weights_file(start).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    for name, code in source_code(Path(__file__).parents[2]):
        digest.update(f"\0{name}\0{code}".encode())
    return digest.hexdigest()[:8]


def source_code(package: Path) -> Iterator[tuple[str, str]]:
    """Yield name and code of each module, without what no result depends on.

    Comments, docstrings and formatting are left out, so that editing them starts no new run. Copies
    that editors, notebooks and file managers leave ("x 2.py", "x (1).py") are no modules.
    """
    for source in sorted(package.rglob("*.py")):
        name = source.relative_to(package)
        copy = is_leftover(name) or " " in name.name
        if not copy and name.parts[0] not in NOT_HASHED_CODE:
            yield name.as_posix(), essence(source.read_text(encoding="utf-8-sig"))


@functools.cache  # a sweep asks for the identity of each of its runs
def essence(source: str) -> str:
    """Return the syntax tree of `source` as text, the same on every Python from 3.11 on.

    `ast.dump` would not do: from Python 3.13 on it leaves out what is empty.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # being edited: whoever imports it is told
        return source
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return _text(tree)


def _text(node: Any) -> str:
    if isinstance(node, ast.JoinedStr):  # to which Python 3.12 adds empty texts
        node.values = [value for value in node.values if getattr(value, "value", None) != ""]
    if isinstance(node, ast.AST):
        # `kind` is the u of u"text", which formatters remove.
        fields = (
            (key, value) for key, value in ast.iter_fields(node) if key not in ("ctx", "kind")
        )
        inner = [f"{name}={_text(value)}" for name, value in fields if value not in (None, [])]
        return f"{type(node).__name__}({','.join(inner)})"
    if isinstance(node, list):
        return f"[{','.join(map(_text, node))}]"
    return ascii(node)  # what repr escapes differs with the version of Unicode


def plain_config(cfg: DictConfig) -> dict[str, Any]:
    """Return the resolved config as plain Python data, which is all that a checkpoint may hold."""
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def training_limits(cfg: DictConfig) -> dict[str, Any]:
    """Return how long `cfg` trains: of two runs with one identity, one may have trained longer."""
    trainer: Any = OmegaConf.to_container(cfg.trainer, resolve=True)  # max_time may be a dict
    return {key: trainer.get(key) for key in LIMITS}
