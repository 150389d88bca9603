"""How much memory, how many cores and files this process may use."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def limits(root: Path) -> tuple[int | None, float | None]:
    """Memory in bytes and CPU in cores that the control groups allow; None: all there is."""
    memory: list[int] = []
    cpu: list[float] = []
    groups = root / "sys/fs/cgroup"
    paths = [line.split(":", 2) for line in (_read(root / "proc/self/cgroup") or "").splitlines()]
    own = {kinds: path.strip().lstrip("/") for _, kinds, path in paths}
    for folder in _upwards(groups, own.get("", "")):  # version 2
        memory += _numbers(_read(folder / "memory.max"))[:1]
        cpu += _share(_numbers(_read(folder / "cpu.max")))
    for folder in _upwards(groups / "memory", own.get("memory", "")):  # version 1
        memory += _numbers(_read(folder / "memory.limit_in_bytes"))
    for folder in _upwards(groups / "cpu", own.get("cpu", own.get("cpu,cpuacct", ""))):
        quota = _numbers(_read(folder / "cpu.cfs_quota_us"))
        cpu += _share(quota + _numbers(_read(folder / "cpu.cfs_period_us")))
    memory = [limit for limit in memory if limit < 1 << 60]  # version 1 says nearly 2**63 for none
    return min(memory, default=None), min(cpu, default=None)


def _upwards(groups: Path, path: str) -> list[Path]:
    """A limit may stand on any folder from one's own up; in a container one's own is the top."""
    own = groups / path
    return [
        folder for folder in (own, *own.parents) if folder == groups or groups in folder.parents
    ]


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _numbers(text: str | None) -> list[int]:
    return [int(word) for word in (text or "").split() if word.isdigit()]


def _share(quota_and_period: list[int]) -> list[float]:
    return [quota_and_period[0] / quota_and_period[1]] if len(quota_and_period) == 2 else []


def physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def shared_memory(root: Path) -> int | None:
    try:
        return shutil.disk_usage(root / "dev/shm").total
    except OSError:
        return None


def open_files() -> tuple[int, int] | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrlimit(resource.RLIMIT_NOFILE)
