"""What PyTorch says of the hardware during a rehearsal: the target's answers, never a driver's.

A build for CUDA asks the driver where a build for the CPU does not: an optimizer asks whether the
current stream is being captured as soon as there seems to be a GPU. The answers here are the same
for every build and every machine. A question that has none here is answered by PyTorch itself, and
its error makes the verdict `unknown`: see `asked_the_driver`.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from .standin import StandIn, home

Event = Callable[[str, str], None]  # what Recorder.event takes

MEMORY = 80 * 2**30
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    total_memory=MEMORY,
    multi_processor_count=132,
    warp_size=32,
    is_integrated=False,
    is_multi_gpu_board=False,
    gcnArchName="",
)
NO_MEMORY = ("allocated", "reserved", "cached")  # torch.cuda.max_memory_allocated() and the like

# Parts of an error's text by which PyTorch says that it has asked for hardware that is not here.
NO_DRIVER = (
    "CUDA error",
    "not compiled with CUDA",
    "compiled without CUDA",
    "NVIDIA driver",
    "not linked with support",
    "MPS backend",
    "Cannot access accelerator device",
    "dummy base class",
    "'torch._C' has no attribute",
)


def asked_the_driver(error: BaseException) -> bool:
    """Return whether PyTorch raised this because it asked real hardware."""
    return isinstance(error, torch.AcceleratorError) or any(
        part in str(error) for part in NO_DRIVER
    )


class Generator(torch.Generator):
    """A generator for any device: on the CPU, where the numbers are drawn."""

    def __new__(cls, device: Any = None) -> "Generator":
        return super().__new__(cls, device="cpu")  # type: ignore[call-arg]


@contextlib.contextmanager
def fake_hardware(target: str, event: Event, on_autocast: Callable[[int], None]) -> Iterator[None]:
    """Let PyTorch answer questions about the hardware as on `target`.

    Args:
        target: mps, cuda or cpu.
        event: called where the program waits for the device, or asks for one that is not there.
        on_autocast: called with 1 or -1 where a context of autocast begins or ends.
    """
    answers = {
        **_for_every_target(target, on_autocast),
        **_accelerator(target, event),
        **_cuda(target, event),
        **_mps(target, event),
    }
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, answer))
        # A compiled model runs as it is written: the same operators, and no compiler is needed.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def _for_every_target(target: str, on_autocast: Callable[[int], None]) -> dict[str, Any]:
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__

    # Autocast looks at a tensor's device in C++, where a stand-in is a meta tensor, so it is only
    # noted.
    def enter_autocast(autocast: Any) -> Any:
        on_autocast(int(autocast._enabled))
        return autocast if autocast.device == "cpu" else enter(autocast)

    def leave_autocast(autocast: Any, *error: Any) -> Any:
        on_autocast(-int(autocast._enabled))
        return None if autocast.device == "cpu" else leave(autocast, *error)

    return {
        "torch.Generator": Generator,
        "torch.autocast.__enter__": enter_autocast,
        "torch.autocast.__exit__": leave_autocast,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: target != "cuda",
        "torch.optim.optimizer._foreach_supported_types": [Tensor, nn.Parameter, StandIn],
        "torch.optim.optimizer._group_tensors_by_device_and_dtype": _grouped,
        # cuDNN has its own layout for the weights of an LSTM, which is copied to in C++.
        "torch.backends.cudnn.is_acceptable": lambda tensor: False,
    }


def _accelerator(target: str, event: Event) -> dict[str, Any]:
    is_gpu = target != "cpu"
    device = torch.device(target) if is_gpu else None
    answers: dict[str, Any] = {
        "current_accelerator": lambda check_available=False: device,
        "is_available": lambda: is_gpu,
        "device_count": lambda: int(is_gpu),
    }
    if is_gpu:
        answers |= {
            "current_device_index": _returns(0),
            "set_device_index": _returns(None),
            "current_stream": _returns(_stream(event)()),
            "set_stream": _returns(None),
            "synchronize": _waits(event),
            "empty_cache": _returns(None),
            "memory_stats": _returns({}),
            "reset_peak_memory_stats": _returns(None),
            "reset_accumulated_memory_stats": _returns(None),
            **_memory("torch.accelerator"),
        }
    return _in_module("torch.accelerator", answers)


def _cuda(target: str, event: Event) -> dict[str, Any]:
    if target != "cuda":

        def not_here() -> None:
            event("vendor", "cuda")
            raise AssertionError("Torch not compiled with CUDA enabled")

        answers: dict[str, Any] = {
            "is_available": lambda: False,
            "device_count": lambda: 0,
            "_lazy_init": not_here,
        }
        return _in_module("torch.cuda", answers)
    stream = _stream(event)
    answers = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *args, **kwargs: True,
        "is_current_stream_capturing": lambda: False,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _returns(None),
        "_exchange_device": _returns(0),
        "_maybe_exchange_device": _returns(0),
        "get_device_name": _returns(H100.name),
        "get_device_capability": _returns((H100.major, H100.minor)),
        "get_device_properties": _returns(H100),
        "get_arch_list": lambda: ["sm_90"],
        "get_rng_state": _returns(torch.zeros(16, dtype=torch.uint8)),
        "get_rng_state_all": lambda: [torch.zeros(16, dtype=torch.uint8)],
        "set_rng_state": _returns(None),
        "set_rng_state_all": _returns(None),
        "manual_seed": _returns(None),
        "manual_seed_all": _returns(None),
        "seed": lambda: None,
        "seed_all": lambda: None,
        "initial_seed": lambda: 0,
        "synchronize": _waits(event),
        "Stream": stream,
        "Event": stream,
        "current_stream": _returns(stream()),
        "default_stream": _returns(stream()),
        "stream": lambda stream: contextlib.nullcontext(),
        "set_stream": _returns(None),
        "set_sync_debug_mode": _returns(None),
        "get_sync_debug_mode": lambda: 0,
        "empty_cache": lambda: None,
        "ipc_collect": lambda: None,
        "mem_get_info": _returns((MEMORY, MEMORY)),
        "memory_stats": _returns({}),
        "memory_summary": _returns(""),
        "set_per_process_memory_fraction": _returns(None),
        "reset_peak_memory_stats": _returns(None),
        "reset_accumulated_memory_stats": _returns(None),
        "reset_max_memory_allocated": _returns(None),
        **_memory("torch.cuda"),
    }
    nvtx = {"range_push": _returns(0), "range_pop": _returns(0), "mark": _returns(None)}
    capturing = {"torch.cuda.graphs.is_current_stream_capturing": lambda: False}
    return _in_module("torch.cuda", answers) | _in_module("torch.cuda.nvtx", nvtx) | capturing


def _mps(target: str, event: Event) -> dict[str, Any]:
    available = {"torch.backends.mps.is_available": lambda: target == "mps"}
    if target != "mps":
        return available
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "synchronize": _waits(event),
        "empty_cache": lambda: None,
        "manual_seed": _returns(None),
        "seed": lambda: None,
        "get_rng_state": _returns(torch.zeros(16, dtype=torch.uint8)),
        "set_rng_state": _returns(None),
        "set_per_process_memory_fraction": _returns(None),
        "current_allocated_memory": lambda: 0,
        "driver_allocated_memory": lambda: 0,
        "recommended_max_memory": lambda: MEMORY,
    }
    built = {
        "torch.backends.mps.is_built": lambda: True,
        "torch.backends.mps.is_macos_or_newer": lambda *version: True,
    }
    return available | built | _in_module("torch.mps", answers)


class Stream:
    """A CUDA stream or event on which nothing happens."""

    stream_id = device_index = cuda_stream = 0
    event: Event

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def synchronize(self) -> None:
        self.event("sync", "synchronize")

    def is_capturing(self) -> bool:
        return False

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Any) -> float:
        return 1.0

    def record_event(self, event: Any = None) -> Any:
        return self if event is None else event

    def _nothing(self, *args: Any) -> None:
        """There is nothing to record or to wait for."""

    record = wait = wait_event = wait_stream = _nothing

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _stream(event: Event) -> type[Stream]:
    return type("Stream", (Stream,), {"event": staticmethod(event)})


def _in_module(module: str, answers: dict[str, Any]) -> dict[str, Any]:
    """Return the answers by their full names, of those functions that this PyTorch has."""
    there = {name for name in answers if hasattr(_module(module), name)}
    return {f"{module}.{name}": answer for name, answer in answers.items() if name in there}


def _module(name: str) -> Any:
    found: Any = torch
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def _memory(module: str) -> dict[str, Any]:
    """Return an answer for each function of `module` that counts bytes: nothing is allocated."""
    names = [name for name in dir(_module(module)) if name.endswith(NO_MEMORY)]
    return {name: _returns(0) for name in names if name.startswith(("memory_", "max_memory_"))}


def _returns(answer: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: answer


def _waits(event: Event) -> Callable[..., None]:
    return lambda *args, **kwargs: event("sync", "synchronize")


def _grouped(lists: list[list[Any]], with_indices: bool = False) -> dict[Any, Any]:
    """Return what an optimizer updates at once. PyTorch's own groups by the real device.

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
