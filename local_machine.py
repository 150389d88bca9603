"""Judge whether the Python that runs cookiecutter can train on this Mac.

`judge` refuses only on proof: an Intel Python on an Arm chip. Everything else is at most a note.
"""

import functools
import platform
import re
import subprocess
from dataclasses import dataclass

INTEL_PYTHON = (
    "This is an Intel Python on an Apple Silicon Mac, which cannot use the GPU or install PyTorch 2.3"
    " and newer: run cookiecutter with an arm64 Python, such as uv's (uvx --python"
    " cpython-3.12-macos-aarch64 cookiecutter ...), python.org's universal2 installer (in a Terminal"
    " without Rosetta) or Miniforge's for arm64 (CONDA_SUBDIR=osx-arm64 conda create ...), or add"
    " _allow_intel_python=yes to generate the project anyway."
)
INTEL_MAC = (
    "Note: this looks like an Intel Mac, for which PyTorch has no build after 2.2.2. You can generate"
    " and edit the project here, and train on another machine."
)
WRONG_PROCESSOR = (
    "Note: Lightning will not find the GPU, because platform.processor() says {processor!a} and not"
    " 'arm'. Use a Python from uv (uv python install 3.12) or from python.org."
)
OLD_MACOS = "Note: this is macOS {macos}, and PyTorch 2.12 or newer needs macOS 14. Update macOS to train here."
ARM_PYTHON = "Arm Python on Apple Silicon: PyTorch can use the GPU."


@dataclass(frozen=True)
class Machine:
    """What this Python and this Mac report; empty where they report nothing."""

    system: str
    machine: str = ""
    processor: str = ""
    proc_translated: str = ""
    arm64: str = ""
    macos: str = ""


@dataclass(frozen=True)
class Verdict:
    """A status of ok, warning or refused, and its explanation, which may be empty."""

    status: str
    text: str = ""


def sysctl(name: str) -> str:
    """Return the value that sysctl prints, or nothing if it fails, which must stop no generation."""
    command = ["sysctl", "-n", name]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=1
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("ascii", "replace").strip() if done.returncode == 0 else ""


@functools.cache
def probe() -> Machine:
    if platform.system() != "Darwin":
        return Machine(platform.system())
    return Machine(
        system="Darwin",
        machine=platform.machine(),
        processor=platform.processor(),
        proc_translated=sysctl("sysctl.proc_translated"),
        arm64=sysctl("hw.optional.arm64"),
        macos=platform.mac_ver()[0],
    )


def judge(found: Machine) -> Verdict:
    if found.system != "Darwin" or found.machine not in ("x86_64", "arm64"):
        return Verdict("ok")
    if found.machine == "x86_64":
        # Rosetta hides the chip from Python, but not from sysctl.
        if "1" in (found.proc_translated, found.arm64):
            return Verdict("refused", INTEL_PYTHON)
        return Verdict("warning", INTEL_MAC)
    notes = []
    # Lightning asks platform.processor(), not platform.machine(): lightning/fabric/accelerators/mps.py
    if found.processor not in ("arm", "arm64"):
        notes.append(WRONG_PROCESSOR.format(processor=found.processor))
    # A Python built long ago reads every newer macOS as 10.16, so 10 proves nothing.
    major = re.match(r"[0-9]+", found.macos)
    if major and 11 <= int(major.group()) < 14:
        notes.append(OLD_MACOS.format(macos=found.macos))
    return Verdict("warning", "\n".join(notes)) if notes else Verdict("ok", ARM_PYTHON)
