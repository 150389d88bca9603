"""What a program sees of the hardware, as it would be on the target."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .known_harm import NAMES
from .stage import CPU, Stage
from .standin import META, StandIn, home, invented, value

GPUS = ("mps", "cuda")


class Calls(TorchFunctionMode):
    """Turns each mention of the target in a call into the device that stand-ins are made on.

    Args:
        target: what is rehearsed for.
        event: called with the kind of finding and what was called: a value taken from the device,
            a device that the target does not have.
        called: called with the name of a function that is known to do harm.
        guessed: called where a value was asked for that is not known.
    """

    def __init__(
        self,
        target: torch.device,
        *,
        event: Callable[[str, str], None],
        called: Callable[[str, list[Tensor]], None],
        guessed: Callable[[Any], None],
    ) -> None:
        super().__init__()
        self.target, self.event, self.called, self.guessed = target, event, called, guessed
        self.special: dict[Any, Callable[..., Any]] = {
            Tensor.cuda: self._cuda,
            Tensor.to: self._to,
            Tensor.numpy: self._numpy,
            Tensor.__array__: self._array,
            Tensor.tolist: self._tolist,
            Tensor.pin_memory: lambda tensor, *args, **kwargs: tensor,
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
        if getattr(func, "__name__", "") in NAMES:
            self.called(func.__name__, [arg for arg in args if isinstance(arg, Tensor)])
        special = self.special.get(func)
        return special(*args, **kwargs) if special else func(*args, **kwargs)

    def _device(self, asked: Any) -> Any:
        """The device that stand-ins for those of `asked` are made on."""
        if isinstance(asked, int):
            asked = f"{self.target.type}:{asked}" if self.target != CPU else "cuda"
        asked = torch.device(asked)
        if asked.type not in GPUS:
            return asked
        if asked.type != self.target.type:
            self.event("vendor", asked.type)
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
        """The legacy constructor, which knows no meta device; SparseAdam calls it."""
        if not isinstance(like, StandIn):
            return like.new(*args)
        if like.layout == torch.sparse_coo:
            return torch.sparse_coo_tensor(*args, dtype=like.dtype)
        return torch.empty(*args, dtype=like.dtype, device=META)

    def _numpy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(tensor, StandIn):
            return tensor.numpy(*args, **kwargs)
        if home(tensor) != CPU:
            self.event("device", "numpy")
        return self._values(tensor).numpy()

    def _array(self, tensor: Tensor, dtype: Any = None) -> Any:
        array = self._numpy(tensor)
        return array if dtype is None else np.asarray(array, dtype)

    def _tolist(self, tensor: Tensor) -> Any:
        if not isinstance(tensor, StandIn):
            return tensor.tolist()
        self.event("sync", "tolist")
        return self._values(tensor).tolist()

    def _values(self, tensor: Tensor) -> Tensor:
        if value(tensor) is None:
            self.guessed("values")
        return invented(tensor)


class Generator(torch.Generator):
    """A generator for any device: on the CPU, where the numbers are drawn."""

    def __new__(cls, device: Any = None) -> "Generator":
        return super().__new__(cls, device="cpu")  # type: ignore[call-arg]


@contextlib.contextmanager
def disguised(stage: Stage, event: Callable[[str, str], None]) -> Iterator[None]:
    """PyTorch's questions about the hardware answered as on the target of `stage`."""
    target = stage.target.type
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    def synchronize(*args: Any) -> None:
        event("sync", "synchronize")

    # Autocast looks at the real device of a tensor, which here is none: it is only noted.
    def enter_autocast(autocast: Any) -> Any:
        stage.autocast += autocast._enabled
        return autocast if autocast.device == "cpu" else enter(autocast)

    def leave_autocast(autocast: Any, *error: Any) -> Any:
        stage.autocast -= autocast._enabled
        return None if autocast.device == "cpu" else leave(autocast, *error)

    answers: list[tuple[str, Any]] = [
        ("torch.cuda.is_available", lambda: target == "cuda"),
        ("torch.cuda.device_count", lambda: int(target == "cuda")),
        ("torch.cuda.is_bf16_supported", lambda *args, **kwargs: True),
        ("torch.cuda.synchronize", synchronize),
        ("torch.cuda._lazy_init", lambda: None),
        ("torch.cuda.amp.common.amp_definitely_not_available", lambda: target != "cuda"),
        ("torch.backends.mps.is_available", lambda: target == "mps"),
        ("torch.mps.synchronize", synchronize),
        ("torch.mps.empty_cache", lambda: None),
        ("torch.autocast.__enter__", enter_autocast),
        ("torch.autocast.__exit__", leave_autocast),
        ("torch.Generator", Generator),
        ("torch.optim.optimizer._foreach_supported_types", [Tensor, nn.Parameter, StandIn]),
        ("torch.optim.optimizer._group_tensors_by_device_and_dtype", _grouped),
    ]
    with contextlib.ExitStack() as stack:
        for name, answer in answers:
            stack.enter_context(mock.patch(name, answer))
        # A compiled model runs as it is written: the same operators, and no compiler is needed.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def _grouped(lists: list[list[Any]], with_indices: bool = False) -> dict[Any, Any]:
    """What an optimizer takes at once. PyTorch's own looks at the real device, which here is none.

    Args:
        lists: the weights, and what belongs to each: gradients and states, or an empty list.
    """
    indices: dict[Any, list[int]] = {}
    for index, weight in enumerate(lists[0]):
        indices.setdefault((home(weight), weight.dtype), []).append(index)
    return {
        key: ([[of[i] for i in chosen] if of else [] for of in lists], chosen)
        for key, chosen in indices.items()
    }
