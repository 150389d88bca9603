"""Whether an operator, with this PyTorch and these tensors, is among what is known to do harm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import known_harm

HALF = (torch.float16, torch.bfloat16)
NAMES = frozenset(name for harm in known_harm.HARMS for name in harm.operators)


def harm_of(name: str, given: Sequence[Tensor], target: str) -> tuple[str, str] | None:
    """Return what is known to go wrong, and a fix."""
    if name not in NAMES or target != "mps":
        return None
    for harm in known_harm.HARMS:
        if name not in harm.operators or not known_harm.affects(harm, str(torch.__version__)):
            continue
        if harm.half and not _in_half(given, target):
            continue
        if harm.channels_last and not any(_channels_last(tensor) for tensor in given):
            continue
        return f"{harm.what} ({harm.source})", harm.fix
    return None


def limit_of(name: str, taken: Tensor, result: Tensor, target: str) -> tuple[str, str] | None:
    """Return why the target's kernel refuses this input, and a fix."""
    for limit in known_harm.LIMITS:
        if limit.target == target and limit.operator == name and limit.uneven:
            pairs = zip(taken.shape[-2:], result.shape[-2:], strict=True)
            if any(size % out for size, out in pairs):
                return f"{name} on {target} {limit.what} ({limit.source})", limit.fix
    return None


def _in_half(given: Sequence[Tensor], target: str) -> bool:
    return torch.is_autocast_enabled(target) or any(tensor.dtype in HALF for tensor in given)


def _channels_last(tensor: Tensor) -> bool:
    return (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
