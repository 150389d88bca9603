"""The cores and the memory that this process may use: a container's are fewer than the machine's.

Standard library only, also of an old Python: `doctor` runs where nothing is installed.
"""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Return the cores that this process may keep busy; a CPU quota counts in whole ones."""
    _, quota = limits()
    return visible_cores() if quota is None else max(1, min(visible_cores(), int(quota)))


def visible_cores() -> int:
    """Return the cores that this process may run on, which PyTorch counts, too."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limits(root: Path = Path("/")) -> tuple[int | None, float | None]:
    """Return the memory in bytes and the cores that control groups allow; None: all there is."""
    groups = root / "sys/fs/cgroup"  # of version 2; version 1 is gone from current systems
    own = groups / (_read(root / "proc/self/cgroup") or "").rpartition("::")[2].strip().lstrip("/")
    memory: list[int] = []
    cpu: list[float] = []
    # A limit may stand on any folder from one's own up; in a container one's own is the top.
    for folder in (own, *own.parents):
        if folder == groups or groups in folder.parents:
            memory += _numbers(_read(folder / "memory.max"))[:1]
            cpu += _share(_numbers(_read(folder / "cpu.max")))
    return min(memory, default=None), min(cpu, default=None)


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return None


def _numbers(text: str | None) -> list[int]:
    return [int(word) for word in (text or "").split() if word.isdigit()]


def _share(quota_and_period: list[int]) -> list[float]:
    return [quota_and_period[0] / quota_and_period[1]] if len(quota_and_period) == 2 else []
