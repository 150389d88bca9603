"""What worker processes cannot be given, and DataLoader options that a target does not take."""

import inspect
import io
import pickle
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from .findings import Finding
from .places import defined_at


def worker_findings(loaders: list[DataLoader[Any]], target: str) -> list[Finding]:
    """Return what cannot be pickled, as spawned workers get datasets and functions."""
    findings = []
    for loader in loaders:
        for name in ("dataset", "collate_fn", "worker_init_fn"):
            if not (broken := _unpicklable(getattr(loader, name), name)):
                continue
            path, thing, error = broken
            file, line = defined_at(thing) or defined_at(getattr(loader, name)) or (None, None)
            spawns = loader.num_workers > 0 and target == "mps"
            findings.append(
                Finding(
                    "workers",
                    "fails" if spawns else "warning",
                    f"{path} cannot be given to a worker process where those are spawned"
                    f" (macOS, Windows, Python 3.14): {error}",
                    "make it a function or class at the top of a module, and open files in the"
                    " worker; or use num_workers=0",
                    file,
                    line,
                )
            )
    return findings


class _Spawning(pickle.Pickler):
    """Pickle as for a spawned process, without the contents of tensors and arrays."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) or (isinstance(obj, np.ndarray) and not obj.dtype.hasobject):
            return int, ()
        return NotImplemented


def _unpicklable(thing: Any, path: str, depth: int = 0) -> tuple[str, Any, str] | None:
    """Return the innermost part of `thing` that cannot be pickled: its path, itself, and why."""
    try:
        _Spawning(io.BytesIO(), protocol=5).dump(thing)
    except Exception as error:
        parts = (
            thing
            if isinstance(thing, dict)
            else dict(enumerate(thing))
            if isinstance(thing, list | tuple)
            else getattr(thing, "__dict__", {})
        )
        if depth < 5 and not inspect.isfunction(thing):
            for name, part in parts.items():
                if inner := _unpicklable(part, f"{path}.{name}", depth + 1):
                    return inner
        return path, thing, " ".join(str(error).split())
    return None


def loader_findings(loaders: list[DataLoader[Any]], target: str) -> list[Finding]:
    """Return the options that raise on the target, or have no effect there."""
    findings = []

    def add(severity: str, message: str, fix: str) -> None:
        findings.append(Finding("loader", severity, message, fix))

    for loader in loaders:
        start = loader.multiprocessing_context
        method = start.get_start_method() if start is not None else None
        if target == "mps" and method == "fork" and loader.num_workers > 0:
            add(
                "fails",
                "multiprocessing_context=fork crashes or hangs after Metal has been used",
                "leave it out: macOS spawns",
            )
        if loader.pin_memory and target != "cuda":
            said = f"pin_memory=True has no effect on {target} but a warning"
            add("warning", said, "leave it out, or use data.pin_memory=auto")
        device = getattr(loader, "pin_memory_device", "")
        if device and not device.startswith(target):
            add("fails", f"pin_memory_device={device} is not there on {target}", "leave it out")
        generator = loader.generator
        if generator is not None and generator.device.type != "cpu":
            add(
                "fails",
                f"its generator is on {generator.device}, where no order can be drawn",
                "make it on the CPU",
            )
    return findings
