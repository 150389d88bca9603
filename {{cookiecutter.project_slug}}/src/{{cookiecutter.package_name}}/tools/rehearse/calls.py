"""Calls from Python that name the target, made on the device on which stand-ins are made."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .harm import CALLS, NAMES
from .meta_mode import CPU
from .recorder import Recorder
from .standin import META, StandIn, home, invented, value

GPUS = ("mps", "cuda")


class DeviceCalls(TorchFunctionMode):
    """Turn each device that a call names into the one that stand-ins are made on.

    Args:
        target: what is rehearsed for.
        recorder: told of values taken from the device, of devices that the target does not have and
            of functions that are known to do harm.
    """

    def __init__(self, target: torch.device, recorder: Recorder) -> None:
        super().__init__()
        self.target, self.recorder = target, recorder
        self.special: dict[Any, Callable[..., Any]] = {
            Tensor.cuda: self._cuda,
            Tensor.to: self._to,
            Tensor.numpy: self._numpy,
            Tensor.__array__: self._array,
            Tensor.tolist: self._tolist,
            Tensor.pin_memory: lambda tensor, *args, **kwargs: tensor,
            Tensor.record_stream: lambda tensor, stream: None,
            torch.tensor: self._from_data(torch.tensor),
            torch.as_tensor: self._from_data(torch.as_tensor),
            torch.asarray: self._from_data(torch.asarray),
            Tensor.new_tensor: self._new_tensor,
            Tensor.new: self._new,
            Tensor.data.__get__: lambda tensor: tensor.detach(),  # type: ignore[attr-defined]
            Tensor.data.__set__: self._set_data,  # type: ignore[attr-defined]
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": self._device(kwargs["device"])}
        if getattr(func, "__name__", "") in NAMES | CALLS:
            given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.recorder.called(func.__name__, given)
        special = self.special.get(func)
        return special(*args, **kwargs) if special else func(*args, **kwargs)

    def _device(self, asked: Any) -> Any:
        """Return the device that stand-ins for tensors of `asked` are made on."""
        if isinstance(asked, int):
            asked = f"{self.target.type}:{asked}" if self.target != CPU else "cuda"
        asked = torch.device(asked)
        if asked.type not in GPUS:
            return asked
        if asked.type != self.target.type:
            self.recorder.event("vendor", asked.type)
        return CPU if self.target == CPU else META

    def _cuda(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor.to(self._device("cuda"))

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        args = tuple(
            self._device(arg) if isinstance(arg, str | torch.device) else arg for arg in args
        )
        return tensor.to(*args, **kwargs)

    def _from_data(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if isinstance(data, StandIn):
                kept = data.clone() if make is torch.tensor else data
                kept = kept.to(kwargs["dtype"]) if kwargs.get("dtype") else kept
                return kept if device is None else kept.to(device)
            if isinstance(data, list | tuple) and _has_stand_in(data):
                copied = _stacked(data)  # each value goes to the CPU, and from there to the device
                copied = copied.to(kwargs["dtype"]) if kwargs.get("dtype") else copied
                return copied if device is None else copied.to(device)
            here = make(data, *args, **kwargs)
            return here if device is None else here.to(device)

        return made

    def _new_tensor(self, like: Tensor, data: Any, **kwargs: Any) -> Tensor:
        chosen = {"dtype": like.dtype, "device": META if isinstance(like, StandIn) else CPU}
        return self._from_data(torch.tensor)(data, **{**chosen, **kwargs})

    def _set_data(self, tensor: Tensor, data: Tensor) -> None:
        if isinstance(tensor, StandIn) and isinstance(data, StandIn):
            tensor.home, tensor.value = data.home, data.value
        Tensor.data.__set__(tensor, data)  # type: ignore[attr-defined]

    def _new(self, like: Tensor, *args: Any) -> Tensor:
        """Call the legacy constructor, which knows no meta device; SparseAdam uses it."""
        if not isinstance(like, StandIn):
            return like.new(*args)
        if like.layout == torch.sparse_coo:
            return torch.sparse_coo_tensor(*args, dtype=like.dtype)
        return torch.empty(*args, dtype=like.dtype, device=META)

    def _numpy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(tensor, StandIn):
            return tensor.numpy(*args, **kwargs)
        if home(tensor) != CPU:
            self.recorder.event("device", "numpy")
        return self._values(tensor).numpy()

    def _array(self, tensor: Tensor, dtype: Any = None) -> Any:
        array = self._numpy(tensor)
        return array if dtype is None else np.asarray(array, dtype)

    def _tolist(self, tensor: Tensor) -> Any:
        if not isinstance(tensor, StandIn):
            return tensor.tolist()
        self.recorder.event("sync", "tolist")
        return self._values(tensor).tolist()

    def _values(self, tensor: Tensor) -> Tensor:
        if value(tensor) is None:
            self.recorder.guessed("values")
        return invented(tensor)


def _has_stand_in(data: Any) -> bool:
    if isinstance(data, list | tuple):
        return any(_has_stand_in(item) for item in data)
    return isinstance(data, StandIn)


def _stacked(data: Any) -> Tensor:
    """Return nested lists of numbers and tensors as one tensor on the CPU."""
    if isinstance(data, list | tuple):
        return torch.stack([_stacked(item) for item in data])
    return data.cpu() if isinstance(data, Tensor) else torch.tensor(data)
