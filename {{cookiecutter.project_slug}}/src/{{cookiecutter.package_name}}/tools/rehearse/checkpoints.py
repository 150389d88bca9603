"""What a checkpoint would lose: saved, and loaded as on another machine."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from lightning import LightningDataModule, LightningModule

from .findings import Finding
from .places import Place, defined_at
from .sources import line_of_call


def checkpoint_findings(
    task: LightningModule, datamodule: LightningDataModule, saved: dict[str, Any]
) -> list[Finding]:
    """Return what does not load with weights_only=True, or has the keys of a compiled module.

    Args:
        saved: what it has beside weights and hyper-parameters, by name, without tensors.
    """
    findings = []
    compiled = [key for key in task.state_dict(keep_vars=True) if "_orig_mod." in key]
    if compiled:
        where = defined_at(task)
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
            findings.append(_not_plain(what, error, defined_at(task)))
    return findings


def _lost(checkpoint: dict[str, Any]) -> str:
    """Return why it does not load where its device is missing and nothing may be unpickled."""
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
    """Return the line that calls save_hyperparameters, or that of the class."""
    if (place := defined_at(owner)) is None:
        return None
    line = line_of_call(place[0], "save_hyperparameters", type(owner).__name__)
    return place[0], line or place[1]
