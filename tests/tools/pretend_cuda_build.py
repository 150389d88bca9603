"""PyTorch's default build on a machine without a GPU, pretended with any build.

That build has CUDA, and each call of the CUDA runtime raises. Tests import it, and a program that a test
starts gets it by `python -c "import pretend_cuda_build; ..."`.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

MESSAGE = "CUDA error: CUDA driver version is insufficient for CUDA runtime version"
ASK_NOBODY = ("_cuda_isInBadFork", "_cuda_getCompiledVersion", "_cuda_CUDAAllocator")


def raises(*args: Any, **kwargs: Any) -> Any:
    raise torch.AcceleratorError(MESSAGE)


def names() -> Iterator[str]:
    """What PyTorch's own modules call of the CUDA runtime, and of the accelerator that was built in."""
    folder = Path(torch.__file__).parent
    sources = [*folder.glob("cuda/*.py"), *folder.glob("accelerator/*.py")]
    text = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    for name in set(re.findall(r"\b(?:_cuda|_accelerator)_[a-z]\w+", text)):
        if name not in ASK_NOBODY:
            yield name


def pretend(patch: Callable[..., None]) -> None:
    """Patch PyTorch.

    Args:
        patch: pytest's `monkeypatch.setattr`.
    """
    for name in names():
        patch(torch._C, name, raises, raising=False)
        for module in (torch.cuda, torch.cuda.graphs, torch.cuda.memory, torch.cuda.random):
            if hasattr(module, name):
                patch(module, name, raises)
    patch(torch._C, "_cuda_getDeviceCount", lambda: 0, raising=False)
    patch(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    patch(torch._C, "_has_cuda", True)
    patch(torch._C, "_has_cudnn", True)
    patch(torch.backends.cudnn, "is_available", lambda: True)
    patch(torch.backends.cudnn, "version", lambda: 92400)
    patch(torch.cuda, "_exchange_device", raises)
    patch(torch.cuda, "_maybe_exchange_device", raises)
    patch(torch.cuda, "_lazy_init", raises)
    patch(torch.version, "cuda", "13.0")
