"""What this machine has: the only file that asks the hardware, with limits.py."""

import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..limits import limits, usable_cores
from ..parallel.torchrun import torchrun_layout

VOLTA = (7, 0)  # from which on there is Triton, which torch.compile needs


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Hardware:
    """What this machine has. A GPU counts only if a tiny operation on it works."""

    system: str  # as platform.system(): Darwin, Linux, Windows
    cpu: str
    cores: int  # that this process may use
    mps: str = ""  # the chip's name
    cuda: tuple[Gpu, ...] = ()
    missed: str = ""  # why a GPU that seems to be here does not count
    compiles: tuple[str, ...] = ("cpu", "cuda", "mps")  # devices that torch.compile can compile for
    processes: int = 0  # that torchrun has started here, one a device; 0: it has not
    hosts: int = 1  # on which it has


def probe() -> Hardware:
    """Look at this machine. Only this needs PyTorch, which takes seconds to import."""
    import torch
    from lightning.pytorch.accelerators import MPSAccelerator

    def works(device: str) -> bool:
        # Each rank tests its own GPU only: a test allocates memory there.
        if device.startswith("cuda") and os.environ.get("LOCAL_RANK", device[5:]) != device[5:]:
            return True
        # Hosted Mac runners report MPS and cannot run it; a driver or a wheel can be too old.
        try:
            return torch.ones(2, device=device).sum().item() == 2
        except (RuntimeError, AssertionError):
            return False

    cuda = [
        Gpu(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))
        for index in range(torch.cuda.device_count())
        if works(f"cuda:{index}")
    ]
    mps = MPSAccelerator.is_available() and works("mps")  # False under DISABLE_MPS=1
    missed = ""
    if not cuda and shutil.which("nvidia-smi"):
        missed = "nvidia-smi is here, but this PyTorch has no CUDA: install a build that has"
        if torch.version.cuda is not None:
            missed = f"nvidia-smi is here, but CUDA {torch.version.cuda} fails: check the driver"
    elif not mps and torch.backends.mps.is_available():
        missed = "PyTorch reports MPS, but it is disabled or does not work"
    processes, hosts = torchrun_layout() or (0, 1)
    return Hardware(
        system=platform.system(),
        cpu=_cpu_name(),
        cores=usable_cores(),
        mps=torch.backends.mps.get_name() if mps else "",
        cuda=tuple(cuda),
        missed=missed,
        compiles=("mps",) + ("cpu",) * _has_cxx() + ("cuda",) * _has_triton(cuda),
        processes=processes,
        hosts=hosts,
    )


def limit_threads() -> None:
    """Keep PyTorch from starting a thread for each core where a CPU quota allows fewer."""
    import torch

    if limits()[1] is not None and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


def _has_cxx() -> bool:
    names = {"Darwin": "clang++", "Windows": "cl"}
    return shutil.which(os.environ.get("CXX") or names.get(platform.system(), "g++")) is not None


def _has_triton(gpus: list[Gpu]) -> bool:
    old = any(gpu.capability < VOLTA for gpu in gpus)
    # It compiles C, with Python's headers; its wheel for Windows brings a compiler.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    builds = platform.system() == "Windows" or (compiler is not None and headers)
    return importlib.util.find_spec("triton") is not None and builds and not old


def visible_gpus() -> list[str]:
    """The CUDA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name]
    # Another process imports PyTorch, which takes seconds, and may take memory on each GPU.
    count = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run([sys.executable, "-c", count], capture_output=True, check=True)
    return [str(index) for index in range(int(asked.stdout))]


def _cpu_name() -> str:
    with contextlib.suppress(OSError):  # Linux tells more here than by platform.processor()
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Switch TF32 off, which CUDA uses in training: then other devices give the same results."""
    import torch

    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn
