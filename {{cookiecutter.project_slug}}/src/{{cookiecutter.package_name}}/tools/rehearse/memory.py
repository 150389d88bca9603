"""How much memory a step needs: every allocation on the target, counted while it lives."""

import re
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ...engine.errors import UserError
from .standin import StandIn, in_kernel

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass
class Meter:
    """Bytes on the target."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    now: int = 0
    peak: int = 0
    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    seen: set[int] = field(default_factory=set)  # storages that are alive

    def made(self, result: Any) -> None:
        """Count what is new in the result of an operator, until it is gone."""
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                continue
            if isinstance(tensor, StandIn) and tensor.home == self.device:
                with in_kernel():
                    self._count(tensor.untyped_storage())
            elif self.device.type == "cpu":
                self._count(tensor.untyped_storage())

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen or not size:
            return
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, key, size).atexit = False

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size

    def count(self, optimizers: list[Any], task: LightningModule) -> None:
        """Count what stays from step to step."""
        parameters = list(task.parameters())
        self.parameters = _bytes([*parameters, *task.buffers()])
        self.gradients = _bytes([p for p in parameters if p.requires_grad])
        self.optimizer = _bytes(tree_leaves([dict(opt.state) for opt in optimizers]))

    @property
    def kept(self) -> int:
        return self.parameters + self.gradients + self.optimizer

    def __str__(self) -> str:
        rest = max(self.peak - self.kept, 0)
        parts = {
            "parameters": self.parameters,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": rest,
        }
        listed = ", ".join(f"{name} {shown(size)}" for name, size in parts.items())
        return f"{shown(self.peak)}: {listed}"


def _bytes(tensors: list[Any]) -> int:
    sizes = {}
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.dim() > 0:
            sizes[id(tensor)] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())


def parse(memory: str | int) -> int:
    """Return the bytes of `16GB`, `16 GiB` or a number."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)i?B?\s*", str(memory), re.IGNORECASE)
    if not found:
        raise UserError(f"memory={memory} is not a size. Write it as in memory=16GB.")
    return int(float(found[1]) * UNITS[found[2].upper()])


def shown(size: float) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GB"
