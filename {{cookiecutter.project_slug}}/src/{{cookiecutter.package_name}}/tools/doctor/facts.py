"""What this machine is, as plain facts: no judgement, and nothing that may fail the whole.

PyTorch's part is `torch_probe.py`, in a process of its own with a time limit: a broken driver or
library can hang or crash the interpreter that loads it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...engine.limits import limits, visible_cores
from ..known_harm import HARMFUL_VARIABLES, LAUNCHERS, versions_with_harm

NOT_INSTALLED = "is not installed"
PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy")
TIME_LIMIT = 120.0  # seconds; PyTorch and Lightning take 10 of them on a slow disk
CONTAINER_MARKS = (".dockerenv", "run/.containerenv")  # Docker's, Podman's
WATCHED = ("PYTORCH_ENABLE_MPS_FALLBACK", "DISABLE_MPS", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Nvidia:
    """A GPU as nvidia-smi names it, which does not ask PyTorch."""

    name: str
    driver: str
    capability: str = ""


@dataclass(frozen=True)
class Torch:
    """What `torch_probe.py` has found, as far as it came."""

    errors: dict[str, str] = field(default_factory=dict)  # stage or package: what it raised
    finished: tuple[str, ...] = ()  # stages
    died: str = ""  # in which stage, and how its process ended before its time
    version: str = ""
    cuda: str | None = None  # the CUDA that this PyTorch was built with
    hip: str | None = None
    arch_list: tuple[str, ...] = ()  # as sm_90 and compute_90
    gpus: tuple[dict[str, Any], ...] = ()  # name, capability
    mps_built: bool = False
    mps_available: bool = False
    xpu: bool = False
    works: dict[str, str] = field(default_factory=dict)  # device: empty, or the error
    bf16: dict[str, str] = field(default_factory=dict)
    openmp: tuple[str, ...] | None = None  # the runtimes loaded; None: nobody can tell
    policy: dict[str, list[str]] = field(default_factory=dict)  # field: value, reason


@dataclass(frozen=True)
class Facts:
    system: str = ""
    machine: str = ""
    processor: str = ""
    proc_translated: str = ""  # sysctl's; 1 under Rosetta
    arm64: str = ""  # sysctl's; 1 on Apple Silicon
    macos: str = ""
    python: str = ""
    executable: str = ""
    conda: bool = False
    pip: bool = True
    versions: dict[str, str] = field(default_factory=dict)  # of the packages installed
    environment: dict[str, str] = field(default_factory=dict)  # the variables that matter
    torch: Torch = field(default_factory=Torch)
    nvidia_smi: str = ""  # what is wrong with the command
    nvidia: tuple[Nvidia, ...] = ()
    container: bool = False
    cores: int = 0
    cpu_limit: float | None = None  # of the container or service, in cores
    memory: int | None = None  # bytes; None: nobody can tell
    memory_limit: int | None = None
    shared_memory: int | None = None
    open_files: tuple[int, int] | None = None  # the soft and the hard limit


def probe(root: Path = Path("/")) -> Facts:
    versions = installed()
    mac = platform.system() == "Darwin"
    smi, gpus = nvidia_smi()
    watched = {*WATCHED, *HARMFUL_VARIABLES, *LAUNCHERS}
    limit, cpu_limit = limits(root)
    return Facts(
        system=platform.system(),
        machine=platform.machine(),
        processor=platform.processor(),
        proc_translated=ask(["sysctl", "-n", "sysctl.proc_translated"])[1] if mac else "",
        arm64=ask(["sysctl", "-n", "hw.optional.arm64"])[1] if mac else "",
        macos=platform.mac_ver()[0],
        python=platform.python_version(),
        executable=sys.executable.replace(f"{Path.cwd()}{os.sep}", ""),  # short, in a .venv here
        conda=Path(sys.prefix, "conda-meta").is_dir(),
        pip=importlib.util.find_spec("pip") is not None,
        versions=versions,
        environment={name: os.environ[name] for name in sorted(watched) if name in os.environ},
        torch=torch_facts(versions),
        nvidia_smi=smi,
        nvidia=gpus,
        container=any((root / mark).exists() for mark in CONTAINER_MARKS)
        or "KUBERNETES_SERVICE_HOST" in os.environ,
        cores=visible_cores(),
        cpu_limit=cpu_limit,
        memory=physical_memory(),
        memory_limit=limit,
        shared_memory=shared_memory(root),
        open_files=open_files(),
    )


def installed() -> dict[str, str]:
    """The versions by the packages' metadata, which does not import them."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name) or ""
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def torch_facts(versions: dict[str, str], time_limit: float = TIME_LIMIT) -> Torch:
    """What `torch_probe.py` writes down until it ends, crashes or has had its time."""
    module = f"{__package__}.torch_probe"
    malware = [harm.package for harm in versions_with_harm(versions) if harm.never_import]
    folder = Path(tempfile.mkdtemp())
    notes, said = folder / "notes", folder / "said"
    notes.touch()
    try:
        with said.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(notes), *malware],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            status = process.wait(time_limit)
            ended = f"its process ended with status {status}" if status else ""
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)  # and no longer: a process in a hanging driver does not end
            ended = f"it took more than {time_limit:.0f} seconds"
        lines = [json.loads(line) for line in notes.read_text("utf-8").splitlines()]
        last_words = said.read_text("utf-8", "replace").strip().splitlines()[-1:]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return read_notes(lines, " ".join([ended, *last_words]) if ended else "")


def read_notes(lines: list[dict[str, Any]], ended: str) -> Torch:
    facts: dict[str, Any] = {"errors": {}, "finished": []}
    stage = "start"
    for line in lines:
        stage = line.pop("stage", stage)
        facts["errors"].update(line.pop("errors", {}))
        facts["finished"] += line.pop("finished", [])
        facts.update(line)
    for name in ("finished", "arch_list", "gpus", "openmp"):
        if facts.get(name) is not None:
            facts[name] = tuple(facts[name])
    return Torch(died=f"{stage}: {one_line(ended)}" if ended else "", **facts)


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


def ask(command: list[str]) -> tuple[str, str]:
    """Why there is no answer, and the answer: one of the two is empty."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=20
        )
    except FileNotFoundError:
        return NOT_INSTALLED, ""
    except (OSError, subprocess.SubprocessError) as error:
        return one_line(str(error)), ""
    said = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).decode(
        "utf-8", "replace"
    )
    return ("", said.strip()) if done.returncode == 0 else (one_line(said) or "failed", "")


def one_line(text: str) -> str:
    return " ".join(text.split())[:300]
