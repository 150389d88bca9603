"""NVIDIA GPUs as the driver and the bus tell of them, without PyTorch."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .command import NOT_INSTALLED, ask


@dataclass(frozen=True)
class Nvidia:
    """A GPU as nvidia-smi names it, which does not ask PyTorch."""

    name: str
    driver: str
    capability: str = ""


def nvidia_smi() -> tuple[str, tuple[Nvidia, ...]]:
    if not shutil.which("nvidia-smi"):
        return NOT_INSTALLED, ()
    query = "--query-gpu=name,driver_version,compute_cap"
    failed, said = ask(["nvidia-smi", query, "--format=csv,noheader"])
    if failed:  # an old driver's does not know compute_cap
        query = "--query-gpu=name,driver_version"
        failed, said = ask(["nvidia-smi", query, "--format=csv,noheader"])
    return f"fails: {failed}" if failed else "", parse_smi(said)


def parse_smi(said: str) -> tuple[Nvidia, ...]:
    rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines()]
    return tuple(Nvidia(*row[:3]) for row in rows if len(row) >= 2)


def nvidia_on_bus(root: Path) -> bool:
    """Whether Linux sees a display or 3D controller of NVIDIA's, with or without a driver."""
    for vendor in (root / "sys/bus/pci/devices").glob("*/vendor"):
        try:
            kind = vendor.with_name("class").read_text()
            if vendor.read_text().strip() == "0x10de" and kind.startswith("0x03"):
                return True
        except OSError:
            continue
    return False
