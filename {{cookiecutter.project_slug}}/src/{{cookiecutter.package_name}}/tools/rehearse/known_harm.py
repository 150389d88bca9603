"""What PyTorch is known to compute wrongly or to refuse: data, each row with its source."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Harm:
    target: str
    operators: tuple[str, ...]  # or functions, by their bare names
    before: str | None  # the first version that is right; None: not known to be mended
    half: bool  # in float16 and bfloat16 only
    channels_last: bool
    what: str
    fix: str
    source: str


KNOWN = (
    Harm(
        "mps",
        ("scaled_dot_product_attention",),
        "2.13.0",
        True,
        False,
        "causal attention in half precision lets a query see up to three tokens of the future",
        "use torch 2.13 or newer, or trainer.precision=32-true",
        "https://github.com/pytorch/pytorch/issues/195910",
    ),
    Harm(
        "mps",
        ("_amp_foreach_non_finite_check_and_unscale_",),
        "2.13.0",
        True,
        False,
        "unscaling half-precision gradients sets them to zero, so that the loss never falls",
        "use trainer.precision=32-true or bf16-mixed",
        "https://github.com/pytorch/pytorch/pull/184286",
    ),
    Harm(
        "mps",
        ("native_batch_norm_backward", "batch_norm_backward"),
        None,
        False,
        True,
        "the backward of batch norm is wrong for channels_last inputs",
        "leave channels_last out on MPS",
        "https://github.com/pytorch/pytorch/issues/175189",
    ),
)


@dataclass(frozen=True)
class Limit:
    """A kernel that is there, and refuses some shapes."""

    target: str
    operator: str
    uneven: bool  # refuses an input whose size the output's does not divide
    what: str
    fix: str
    source: str


LIMITS = (
    Limit(
        "mps",
        "_adaptive_avg_pool2d",
        True,
        "takes only inputs that the output size divides",
        "choose an output size that divides the input's, or interpolate",
        "https://github.com/pytorch/pytorch/issues/96056",
    ),
)

NAMES = frozenset(name for harm in KNOWN for name in harm.operators)


def harm_of(name: str, given: Sequence[Tensor], target: str) -> tuple[str, str] | None:
    """What is known to go wrong with this operator, this version and these tensors, and a fix."""
    if name not in NAMES:
        return None
    for harm in KNOWN:
        if harm.target != target or name not in harm.operators:
            continue
        if harm.before is not None and torch.__version__ >= harm.before:
            continue
        if harm.half and not _in_half(given, target):
            continue
        if harm.channels_last and not any(_channels_last(tensor) for tensor in given):
            continue
        return f"{harm.what} ({harm.source})", harm.fix
    return None


def limit_of(name: str, taken: Tensor, result: Tensor, target: str) -> tuple[str, str] | None:
    """Why the target's kernel refuses this input, and a fix."""
    for limit in LIMITS:
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
