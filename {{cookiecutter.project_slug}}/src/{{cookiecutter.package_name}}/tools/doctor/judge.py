"""All rows, from facts alone: what `probe.py` finds here, or what a test makes up."""

from __future__ import annotations

from . import gpu, machine
from .packages import harms, packages
from .probe import Facts
from .row import Row


def judge(facts: Facts) -> list[Row]:
    return [
        machine.python(facts),
        *machine.architecture(facts),
        *machine.macos(facts),
        *packages(facts),
        *harms(facts),
        gpu.build(facts),
        *gpu.driver(facts),
        *gpu.kernels(facts),
        *gpu.intel(facts),
        *gpu.devices(facts),
        gpu.bf16(facts),
        machine.memory(facts),
        machine.cores(facts),
        *machine.shared_memory(facts),
        *machine.open_files(facts),
        machine.openmp(facts),
        *machine.variables(facts),
        *gpu.policy(facts),
    ]
