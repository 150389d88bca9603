"""Whether an operator, with this PyTorch and these tensors, is among what is known to do harm."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import known_harm

HALF = (torch.float16, torch.bfloat16)
NAMES = frozenset(name for harm in known_harm.HARMS for name in harm.operators)
CALLS = frozenset(limit.operator for limit in known_harm.LIMITS if limit.called)


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


def limits_of(
    name: str, given: Sequence[Tensor], result: Tensor | None, target: str
) -> Iterator[known_harm.Limit]:
    """Yield why the target refuses these shapes.

    Args:
        name: of the operator or function.
        given: the tensors that it takes.
        result: what it has made; None for a call that is yet to be made.
        target: the device.
    """
    shapes = [tuple(tensor.shape) for tensor in given]
    made = () if result is None else tuple(result.shape)
    size = 0 if result is None else result.numel() * result.element_size()
    for limit in known_harm.LIMITS:
        applies = limit.target == target and limit.called == (result is None)
        if applies and limit.operator in ("", name) and limit.refuses(shapes, made, size):
            yield limit


def _in_half(given: Sequence[Tensor], target: str) -> bool:
    return torch.is_autocast_enabled(target) or any(tensor.dtype in HALF for tensor in given)


def _channels_last(tensor: Tensor) -> bool:
    return (
        tensor.dim() == 4
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=torch.channels_last)
    )
