"""Tensors that stand in for those of a device which is not here.

A stand-in is a tensor of PyTorch's meta device: a shape, a dtype and aliases, but no memory. It
says that it lives on the target, and it knows its values where they cost nothing: those of a batch
of labels or lengths, and in a pass of their own those of everything.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch

META = torch.device("meta")


class StandIn(Tensor):
    """A tensor of `home`: mps, cuda, or cpu if it is too large to be there for real."""

    home: torch.device
    value: Tensor | None
    in_kernel = False  # PyTorch's own meta kernels ask for the device, too
    on_show: ClassVar[Callable[[Tensor], None]] = staticmethod(lambda tensor: None)  # printed

    @staticmethod
    def __new__(cls, meta: Tensor, home: torch.device, value: Tensor | None = None) -> Self:
        # torch._subclasses.FakeTensor is made in the same way.
        made = torch.Tensor._make_subclass(cls, meta)
        made.home, made.value = home, value
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(f"{func} was called outside of the rehearsal.")

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return META if StandIn.in_kernel else self.home

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.home.type == "cuda"

    @property
    def is_mps(self) -> bool:  # type: ignore[override]
        return self.home.type == "mps"

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]
        return self.home.type == "cpu"

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return StandIn.in_kernel

    def get_device(self) -> int:
        return -1 if self.is_cpu else 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) in memo:
            return memo[id(self)]
        with torch.no_grad():
            copied = self.clone()
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, requires_grad=self.requires_grad)
        else:
            copied.requires_grad_(self.requires_grad)
        copied.__dict__.update(
            {k: v for k, v in self.__dict__.items() if k not in ("home", "value")}
        )
        memo[id(self)] = copied
        return copied

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        StandIn.on_show(self)
        return f"<{tuple(self.shape)} {self.dtype} on {self.home}>"


@contextmanager
def in_kernel() -> Iterator[None]:
    """Let stand-ins be the meta tensors that they are made of, for PyTorch's own kernels."""
    before, StandIn.in_kernel = StandIn.in_kernel, True
    try:
        with no_dispatch(), torch._C.DisableTorchFunction():
            yield
    finally:
        StandIn.in_kernel = before


def home(tensor: Tensor) -> torch.device:
    """Return where a tensor lives, as the user sees it."""
    return tensor.home if isinstance(tensor, StandIn) else torch.device("cpu")


def value(tensor: Tensor) -> Tensor | None:
    """Return a tensor's values, if they are known."""
    if isinstance(tensor, StandIn):
        return tensor.value
    return None if tensor.device == META else tensor


def meta(tensor: Tensor) -> Tensor:
    """Return a tensor as PyTorch's meta kernels take it."""
    if isinstance(tensor, StandIn) or tensor.device == META:
        return tensor
    with no_dispatch():
        if tensor.layout != torch.strided:
            return tensor.to(META)
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=META)


def invented(tensor: Tensor) -> Tensor:
    """Return values for a tensor that has none: enough to learn the shape of a result."""
    known = value(tensor)
    if known is not None:
        return known
    with no_dispatch():
        return torch.ones(tensor.shape, dtype=tensor.dtype)
