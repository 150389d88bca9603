"""Look at PyTorch: python -m PACKAGE.tools.doctor.torch_probe NOTES [MALWARE...]

`facts.py` starts this as a process of its own. Each stage writes one line of JSON to the file NOTES
before the next begins, so that a crash or a hang says how far it came.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


def torch_itself() -> dict[str, Any]:
    import torch

    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
    }


def load(name: str) -> dict[str, Any]:
    importlib.import_module(name)
    return {}


def numpy() -> dict[str, Any]:
    import torch

    load("numpy")
    torch.zeros(1).numpy()  # a PyTorch built for another NumPy imports, and fails here
    return {}


def devices() -> dict[str, Any]:
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    if caught and not available:  # of a driver that is too old PyTorch only warns
        raise RuntimeError(caught[-1].message)
    return {
        "arch_list": torch.cuda.get_arch_list() if available else [],
        "gpus": [
            {
                "name": torch.cuda.get_device_name(index),
                "capability": list(torch.cuda.get_device_capability(index)),
            }
            for index in range(torch.cuda.device_count() if available else 0)
        ],
    }


def other_devices() -> dict[str, Any]:
    import torch

    return {
        "mps_built": torch.backends.mps.is_built(),
        "mps_available": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }


def names() -> list[str]:
    import torch

    mps = torch.backends.mps.is_available() and os.environ.get("DISABLE_MPS") != "1"
    return ["cpu", *["mps"] * mps, *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def works(device: str) -> None:
    """A tiny training step: kernels, memory and the way back."""
    import torch

    weight = torch.ones(4, 4, device=device, requires_grad=True)
    (weight @ weight).sum().backward()
    if weight.grad is None or weight.grad.sum().item() != 128:
        raise RuntimeError("it computes a wrong gradient")


def bf16(device: str) -> None:
    import torch

    ones = torch.ones(4, 4, device=device, dtype=torch.bfloat16)
    if (ones @ ones).sum().item() != 64:
        raise RuntimeError("it computes a wrong product")


def openmp() -> dict[str, Any]:
    """The OpenMP runtimes that are loaded with all that a training imports."""
    load("sklearn.cluster")
    from threadpoolctl import threadpool_info  # scikit-learn needs it

    libraries = [pool for pool in threadpool_info() if pool["user_api"] == "openmp"]
    return {"openmp": sorted(pool["prefix"] for pool in libraries)}


def policy() -> dict[str, Any]:
    """The project's own answer, from the file that trains with it."""
    from ...engine import device

    choice = device.resolve(device.Requested(), device.probe())
    answers = {name: [str(getattr(choice, name)), why] for name, why in choice.reasons.items()}
    return {"policy": answers}


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


class Notes:
    """The file, and how a stage comes into it."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.tried: dict[str, dict[str, str]] = {"works": {}, "bf16": {}}

    def write(self, **facts: Any) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def look(self, name: str, stage: Callable[[], dict[str, Any]]) -> bool:
        self.write(stage=name)
        try:
            self.write(**stage(), finished=[name])
        except (Exception, SystemExit) as error:
            self.write(errors={name: described(error)})
            return False
        return True

    def try_on(self, device: str, test: Callable[[str], None]) -> None:
        """A device of its own is a stage of its own, since each can hang."""
        name = test.__name__
        self.write(stage=f"{name} on {device}")
        try:
            test(device)
            self.tried[name][device] = ""
        except Exception as error:
            self.tried[name][device] = described(error)
        self.write(**{name: self.tried[name]})


def main(file: str, *malware: str) -> None:
    notes = Notes(file)

    def loads(name: str) -> bool:
        return name not in malware and notes.look(name, lambda: load(name))

    torch_loads = notes.look("torch", torch_itself)
    if torch_loads:
        for stage in (devices, other_devices):
            notes.look(stage.__name__, stage)
        for device in names():
            for test in (works, bf16):
                notes.try_on(device, test)
    notes.look("numpy", numpy if torch_loads else lambda: load("numpy"))
    rest = [loads(name) for name in ("hydra", "omegaconf")]
    if torch_loads:
        rest += [loads(name) for name in ("torchmetrics", "lightning")]
        notes.look("openmp", openmp)
        if all(rest):
            notes.look("policy", policy)


if __name__ == "__main__":
    main(*sys.argv[1:])
