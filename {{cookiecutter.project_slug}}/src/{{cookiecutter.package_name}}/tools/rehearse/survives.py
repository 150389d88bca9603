"""What does not survive the way to a worker process, or into a checkpoint and back."""

import contextlib
import inspect
import io
import pickle
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from .findings import Finding
from .places import Place, is_users
from .sources import line_of_call


def worker_findings(loaders: list[DataLoader[Any]], target: str) -> list[Finding]:
    """Spawned workers get the dataset and functions of a loader by pickle."""
    findings = []
    for loader in loaders:
        for name in ("dataset", "collate_fn", "worker_init_fn"):
            if not (broken := _unpicklable(getattr(loader, name), name)):
                continue
            path, thing, error = broken
            file, line = _defined_at(thing) or _defined_at(getattr(loader, name)) or (None, None)
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
    """Pickles as for a spawned process, but for the contents of tensors and arrays."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) or (isinstance(obj, np.ndarray) and not obj.dtype.hasobject):
            return int, ()
        return NotImplemented


def _unpicklable(thing: Any, path: str, depth: int = 0) -> tuple[str, Any, str] | None:
    """The innermost part of `thing` that cannot be pickled: its path, itself, and why."""
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


def _defined_at(thing: Any) -> Place | None:
    """Where a function, or the class of an object, stands in the user's code."""
    for candidate in (thing, type(thing)):
        with contextlib.suppress(TypeError, OSError):
            file = inspect.getsourcefile(candidate)
            if file is not None and is_users(file):
                return file, inspect.getsourcelines(candidate)[1]
    return None


def loader_findings(loaders: list[DataLoader[Any]], target: str) -> list[Finding]:
    """Options of a loader that raise on the target, or are of no use there."""
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
            add("warning", said, "leave it out, or to device.py: data.pin_memory=auto")
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


def checkpoint_findings(
    task: LightningModule, datamodule: LightningDataModule, saved: dict[str, Any]
) -> list[Finding]:
    """What a checkpoint holds, but for the weights, saved, and loaded as on another machine.

    Args:
        saved: what it has beside weights and hyper-parameters, by name, without tensors.
    """
    findings = []
    compiled = [key for key in task.state_dict(keep_vars=True) if "_orig_mod." in key]
    if compiled:
        where = _defined_at(task)
        line = line_of_call(where[0], "compile", type(task).__name__) if where else None
        file, line = (where[0], line or where[1]) if where else (None, None)
        said = f"{compiled[0]} has the prefix of a compiled module: it does not load without one"
        fix = "compile in place: self.model.compile()"
        findings.append(Finding("checkpoint", "fails", said, fix, file, line))
    for owner, name in ((task, "hyper_parameters"), (datamodule, "datamodule_hyper_parameters")):
        for key, value in dict(owner.hparams).items():
            if error := _lost({name: {key: value}}):
                findings.append(_not_plain(f"{name}: {key}", error, _where_saved(owner)))
    for what, state in saved.items():
        if error := _lost({what: state}):
            findings.append(_not_plain(what, error, _defined_at(task)))
    return findings


def _lost(checkpoint: dict[str, Any]) -> str:
    """Why it does not come back where its device is not there, and nothing may be unpickled."""
    file = io.BytesIO()
    try:
        with _tagged_as("mps"):
            torch.save(checkpoint, file)
        file.seek(0)
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        said = " ".join(str(error).split())
        _, found, unsupported = said.partition("Unsupported global: GLOBAL ")
        return unsupported.split()[0] if found else said[:200]
    return ""


@contextlib.contextmanager
def _tagged_as(device: str) -> Iterator[None]:
    with mock.patch("torch.serialization.location_tag", return_value=device):
        yield


def _not_plain(what: str, error: str, place: Place | None) -> Finding:
    file, line = place or (None, None)
    return Finding(
        "checkpoint",
        "fails",
        f"{what} does not load with weights_only=True: {error}",
        "save plain data only: save_hyperparameters(ignore=[...]), str(path), float(value)",
        file,
        line,
    )


def _where_saved(owner: LightningModule | LightningDataModule) -> Place | None:
    """The line that calls save_hyperparameters, or that of the class."""
    if (place := _defined_at(owner)) is None:
        return None
    line = line_of_call(place[0], "save_hyperparameters", type(owner).__name__)
    return place[0], line or place[1]
