"""A checkpoint that is a folder, read on one device, and without running code that may be in it."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

EXTRA_STATE = "rest.pt"  # all but weights and optimizer
METADATA = "torch.distributed.checkpoint.metadata"  # a module of plain classes
ALLOWED = (
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),  # from a name to a constant
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
)


class PlainPlanner(DefaultLoadPlanner):
    """First load what lies beside the tensors with weights_only=True: PyTorch unpickles it."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name) if module in ("torch", METADATA) else None
        plain = isinstance(found, torch.dtype) or (module == METADATA and isinstance(found, type))
        # With a dot in it, a name is looked up within what the module imports.
        if "." not in name and (plain or (module, name) in ALLOWED):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it wants to run {module}.{name}")


def refuse_code(folder: Path) -> None:
    """PyTorch unpickles `.metadata`, so it is looked at before.

    Raises:
        pickle.UnpicklingError: there is more in it than what describes tensors.
    """
    with (folder / ".metadata").open("rb") as file:
        _Unpickler(file).load()


def read_parts(folder: Path) -> dict[str, Any]:
    """Everything but the optimizer's state, its tensors whole and on the CPU."""
    refuse_code(folder)
    described = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    weights = {
        name.removeprefix("state_dict."): torch.empty(tensor.size, dtype=tensor.properties.dtype)
        for name, tensor in described.items()
        if name.startswith("state_dict.") and isinstance(tensor, TensorStorageMetadata)
    }
    dcp.load({"state_dict": weights}, checkpoint_id=folder, planner=PlainPlanner(), no_dist=True)
    rest: dict[str, Any] = torch.load(folder / EXTRA_STATE, map_location="cpu", weights_only=True)
    return {**rest, "state_dict": weights, "optimizer_states": "in the folder"}
