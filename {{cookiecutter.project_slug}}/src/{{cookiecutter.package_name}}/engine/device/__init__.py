"""What the hardware is, and what the run makes of it: `probe`, `resolve`, `apply`."""

from .apply import apply, batch_size, line, requested
from .hardware import Gpu, Hardware, exact_float32, limit_threads, probe, visible_gpus
from .policy import Requested, Settings, resolve

__all__ = [
    "Gpu",
    "Hardware",
    "Requested",
    "Settings",
    "apply",
    "batch_size",
    "exact_float32",
    "limit_threads",
    "line",
    "probe",
    "requested",
    "resolve",
    "visible_gpus",
]
