"""Wait for a device, and read its clock, its memory and its peak speed."""

import re
import sys
import time
from typing import Any

import torch

# Dense bfloat16 matrix products in TFLOP/s, from NVIDIA's data sheets (half of their figures with
# sparsity). Lightning's own list mixes both kinds. A GPU that is not listed has no MFU.
PEAKS = {
    r"GB200": 2500,
    r"B200": 2250,
    r"H200 NVL|H100 NVL": 835,
    r"H100 PCIe": 756,
    r"GH200|H200|H100": 989,
    r"A100|A800": 312,
    r"A40": 149.7,
    r"A30": 165,
    r"A10": 125,
    r"L40S": 362,
    r"L40": 181,
    r"L4": 121,
    r"RTX 5090": 209.5,
    r"RTX 6000 Ada": 364,
    r"RTX 4090": 165.2,
    r"RTX A6000": 154.8,
    r"RTX 3090": 71,
}
PART_OF_ONE = ("MIG", "Laptop", "Max-Q")  # slower than what the rest of the name says
DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}
MATRIX_SIZE = {"cuda": 8192, "mps": 4096}  # rows and columns of `matmul_rate`; 1024 on a CPU


def peak(name: str) -> float | None:
    """Return the FLOP/s of a GPU by its name, or None."""
    if any(part in name for part in PART_OF_ONE):
        return None
    for pattern, teraflops in PEAKS.items():
        if re.search(rf"\b({pattern})\b", name):
            return teraflops * 1e12
    return None


def wait(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    torch.get_device_module(device).synchronize()


def mark(device: torch.device) -> Any:
    """Return a moment of the device; on MPS, of the CPU that gives it work."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(earlier: Any, later: Any) -> float:
    """Return the seconds between two marks, when the device has passed both."""
    if isinstance(earlier, float):
        return float(later - earlier)
    return float(earlier.elapsed_time(later)) / 1000


def reset_memory(device: torch.device) -> None:
    """Start to measure the peak anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def peak_memory(device: torch.device) -> int | None:
    """Return bytes: allocated at most on CUDA, by the driver on MPS, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if sys.platform == "win32":
        return None
    import resource

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def dtype_of(precision: str) -> torch.dtype:
    """Return in what one of Lightning's precisions multiplies matrices."""
    return DTYPES[str(precision).partition("-")[0]]


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the product of two square matrices: nothing is faster."""
    size = MATRIX_SIZE.get(device.type, 1024)
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn_like(left)
    seconds = []
    for _ in range(3 + 10):  # the first ones choose an algorithm
        wait(device)
        started = time.perf_counter()
        left @ right
        wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[3:])
