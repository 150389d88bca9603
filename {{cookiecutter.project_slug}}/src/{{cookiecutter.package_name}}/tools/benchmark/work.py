"""What a step does: how many samples or tokens, and how many floating-point operations."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .bare import BareLoop

COUNTED = "counted by torch.utils.flop_counter, forward and backward"


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one sample or token, forward and backward."""

    each: float
    formula: str


class Units:
    """The sum over batches: integers (batch, time) are tokens; otherwise the first axis counts."""

    def __init__(self) -> None:
        self.name, self.total = "samples", 0

    def add(self, batch: Any) -> None:
        tensors = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim)
        first = next(tensors, torch.empty(1))
        if first.ndim == 2 and first.dtype in (torch.int64, torch.int32):
            self.name = "tokens"
            self.total += first.numel()
        else:
            self.total += len(first)


def declared_flops(loop: BareLoop, unit: str) -> Flops | None:
    """Return what `flops_per_token` or `flops_per_sample` of the task or its model says.

    The last paragraph of its docstring begins with the formula.
    """
    method = f"flops_per_{unit.removesuffix('s')}"
    for owner in (loop.task, getattr(loop.task, "model", None)):
        if (declared := getattr(owner, method, None)) is not None:
            explained = " ".join((inspect.getdoc(declared) or "").rpartition("\n\n")[2].split())
            formula = re.split(r"[.:;]\s", explained)[0]
            return Flops(float(declared()), f"{type(owner).__name__}.{method}: {formula}")
    return None


def measured_flops(loop: BareLoop, batch: Any) -> Flops | None:
    """Return what PyTorch counts in a step, run without torch.compile."""
    units = Units()
    units.add(batch)
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        loop.backward_of(batch)
    total = counter.get_total_flops()
    return Flops(total / units.total, COUNTED) if total else None
