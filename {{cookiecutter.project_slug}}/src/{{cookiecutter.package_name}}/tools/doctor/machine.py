"""The rows about the computer, its limits, this Python and what is installed for it."""

from __future__ import annotations

import re

from ..known_harm import HARMFUL_VARIABLES, LAUNCHERS, Harm, number, versions_with_harm
from .facts import PACKAGES, Facts
from .row import Row, gigabytes, in_container, install, run, set_variable, unset

OTHER_PYTHON = "make clean && make PYTHON=python3.12 setup"
NATIVE_PYTHON = (
    "uv python install cpython-3.12-macos-aarch64 && make clean && make PYTHON=$(uv python find"
    " cpython-3.12-macos-aarch64) setup"
)
FEW_FILES = 1024
LITTLE_MEMORY = 4 * 2**30
LITTLE_SHARED_MEMORY = 2**30
LOADED_AS = {"hydra-core": "hydra"}  # where the name to import is another


def python(facts: Facts) -> Row:
    found = f"{facts.python} for {facts.machine}, in {facts.executable}"
    if not (3, 11) <= number(facts.python)[:2] < (3, 14):
        why = "This project is made for Python 3.11 to 3.13: Hydra 1.3 does not start on 3.14."
        return Row("Python", found, "wrong", why, OTHER_PYTHON)
    return Row("Python", found)


def architecture(facts: Facts) -> list[Row]:
    """Whether this Python, Lightning's test for it and the Mac's chip agree."""
    if facts.system != "Darwin":
        return []
    name = "Apple Silicon"
    if facts.machine == "x86_64":
        if "1" in (facts.proc_translated, facts.arm64):  # Rosetta hides the chip from Python only
            why = "This is an Intel Python on Apple Silicon (Rosetta): it cannot use the GPU."
            return [Row(name, "an Intel Python", "wrong", why, NATIVE_PYTHON)]
        why = "PyTorch ended its builds for Intel Macs with 2.2.2: use a container, on the CPU."
        fix = in_container("--platform linux/amd64")
        return [Row(name, "an Intel Mac", "wrong", why, fix)]
    if facts.processor not in ("arm", "arm64"):
        found = f"an arm64 Python whose processor is {facts.processor!a}"
        why = "Lightning looks for 'arm' there and so will not find the GPU."
        return [Row(name, found, "wrong", why, NATIVE_PYTHON)]
    return [Row(name, "an arm64 Python")]


def macos(facts: Facts) -> list[Row]:
    version = number(facts.macos)
    if facts.system != "Darwin":
        return []
    if not version or version[0] < 11:  # Pythons built long ago read every newer macOS as 10.16
        why = "This Python is too old to know the version of macOS."
        return [Row("macOS", facts.macos, "unknown", why, "sw_vers -productVersion")]
    if version < (14,):
        why = "MPS and PyTorch 2.12 and newer need macOS 14."
        return [Row("macOS", facts.macos, "wrong", why, "softwareupdate --install --all --restart")]
    if version >= (27,):
        why = (
            "Products with broadcast inputs were wrong again on the first macOS 27"
            " (https://github.com/pytorch/pytorch/issues/180201): compare with the CPU."
        )
        fix = run("debug=limit", "trainer.accelerator=cpu")
        return [Row("macOS", facts.macos, "warning", why, fix)]
    return [Row("macOS", facts.macos)]


def memory(facts: Facts) -> Row:
    if facts.memory is None:
        return Row("memory", "", "unknown", f"{facts.system} does not tell Python how much.")
    usable = min(facts.memory, facts.memory_limit or facts.memory)
    found = gigabytes(facts.memory)
    if usable < facts.memory:
        found = f"{gigabytes(usable)}, by a limit, of {found}"
    if usable < LITTLE_MEMORY:
        why = "PyTorch and Lightning alone take about 1 GB, and each worker of a loader as much."
        fix = run("data.num_workers=0", "data.batch_size=16")
        return Row("memory", found, "warning", why, fix)
    return Row("memory", found)


def cores(facts: Facts) -> Row:
    if facts.cpu_limit is None or facts.cpu_limit >= facts.cores:
        return Row("cores", str(facts.cores))
    return Row("cores", f"{facts.cpu_limit:g}, by a limit, of {facts.cores}")  # train keeps to it


def shared_memory(facts: Facts) -> list[Row]:
    if facts.system != "Linux":
        return []
    size = facts.shared_memory
    if size is None:
        why, found = "There is no /dev/shm, through which a loader's workers hand over batches.", ""
    elif size < LITTLE_SHARED_MEMORY:
        why = "Workers hand over batches through it, and die with a bus error where it is full."
        found = gigabytes(size)
    else:
        return [Row("/dev/shm", gigabytes(size))]
    fix = "sudo mount -o remount,size=8g /dev/shm"
    if facts.container:
        fix = in_container("--shm-size=8g")
    return [Row("/dev/shm", found, "warning", why, fix)]


def open_files(facts: Facts) -> list[Row]:
    if facts.open_files is None:  # Windows has no such limit
        return []
    soft, hard = facts.open_files
    if 0 <= soft < FEW_FILES:
        why = "A loader's workers share batches as open files: 'Too many open files'."
        fix = "sudo prlimit --pid $$ --nofile=4096"
        if hard < 0 or hard > soft:  # which a shell may raise by itself
            fix = f"ulimit -n {min(hard, 4096) if hard > 0 else 4096}"
        elif facts.container:
            fix = in_container("--ulimit nofile=4096")
        elif facts.system == "Darwin":
            fix = "sudo launchctl limit maxfiles 4096 unlimited"
        return [Row("open files", f"at most {soft}", "warning", why, fix)]
    unlimited = soft < 0 or soft > 1 << 40  # Linux says -1, macOS the largest number there is
    return [Row("open files", "no limit" if unlimited else f"at most {soft}")]


def openmp(facts: Facts) -> Row:
    runtimes = facts.torch.openmp
    one_source = install(facts, "torch", "numpy", "scikit-learn", again=True)
    if "OMP: Error #15" in facts.torch.died:
        why = "Two packages bring an OpenMP runtime each: all must come from one installer."
        return Row("OpenMP", facts.torch.died, "wrong", why, OTHER_PYTHON)
    if runtimes is None:
        why = facts.torch.errors.get("openmp") or facts.torch.died or "PyTorch does not load."
        return Row("OpenMP", "", "unknown", why)
    found = ", ".join(runtimes) or "none"
    if {"libomp", "libiomp5"} <= set(runtimes):
        why = "LLVM's and Intel's OpenMP in one process can crash or hang."
        return Row("OpenMP", found, "warning", why, OTHER_PYTHON if facts.conda else one_source)
    return Row("OpenMP", found)


def variables(facts: Facts) -> list[Row]:
    rows = []
    for name, (harmful, why) in HARMFUL_VARIABLES.items():
        value = facts.environment.get(name)
        if value is not None and re.fullmatch(harmful, value, re.IGNORECASE):
            rows.append(Row(name, value, "warning", why, unset(facts, name)))
    launchers = [name for name in LAUNCHERS if name in facts.environment]
    if launchers:
        found = ", ".join(f"{name}={facts.environment[name]}" for name in launchers)
        why = (
            f"Lightning takes this for one process of several, started by {LAUNCHERS[launchers[0]]}"
            " and may wait for the others; if nothing started it so:"
        )
        rows.append(Row("launcher", found, "warning", why, unset(facts, *launchers)))
    if facts.system != "Darwin":
        return rows
    fallback = facts.environment.get("PYTORCH_ENABLE_MPS_FALLBACK", "")
    if fallback == "1":
        rows.append(Row("MPS fallback", "on: what MPS lacks runs on the CPU, with a warning"))
    else:
        why, fix = "An operator that MPS lacks ends the run.", "PYTORCH_ENABLE_MPS_FALLBACK"
        rows.append(Row("MPS fallback", "off", "warning", why, set_variable(facts, fix, "1")))
    if facts.environment.get("DISABLE_MPS") == "1":
        why = "Lightning does not use the GPU."
        rows.append(Row("DISABLE_MPS", "1", "warning", why, unset(facts, "DISABLE_MPS")))
    return rows


def packages(facts: Facts) -> list[Row]:
    return [package(facts, name) for name in PACKAGES]


def package(facts: Facts, name: str) -> Row:
    seen, stage = facts.torch, LOADED_AS.get(name, name)
    version = facts.versions.get(name, seen.version if name == "torch" else "")
    error = seen.errors.get(stage, "")
    died_here = seen.died.startswith(f"{stage}: ")
    tried = stage in seen.finished or died_here or error
    if not version and (not tried or error.startswith("ModuleNotFoundError")):
        why = "It is not installed here; this installs all that the project needs:"
        return Row(name, "missing", "wrong", why, install(facts, editable=True))
    if error:
        fix = install(facts, name, again=True)
        return Row(name, version, "wrong", f"It does not load: {error}", fix)
    if stage in seen.finished:
        return Row(name, version)
    if died_here:
        fix = install(facts, name, again=True)
        return Row(name, version, "wrong", f"Loading it ends Python: {seen.died}", fix)
    for harm in versions_with_harm(facts.versions):
        if harm.never_import and harm.package == name:
            return Row(
                name, version, "unknown", "It was not loaded, since it does harm: see below."
            )
    why = seen.died or "It needs PyTorch, which does not load."
    return Row(name, version, "unknown", f"Whether it loads could not be seen: {why}")


def harms(facts: Facts) -> list[Row]:
    met: dict[str, list[Harm]] = {}
    for harm in versions_with_harm(facts.versions, facts.system, facts.python):
        met.setdefault(harm.package, []).append(harm)
    return [harmful(facts, name, known) for name, known in met.items()] or [
        Row("known harm", "none in these versions")
    ]


def harmful(facts: Facts, name: str, known: list[Harm]) -> Row:
    state = "wrong" if any(harm.state == "wrong" for harm in known) else "warning"
    why = " ".join(f"{harm.what} ({harm.source})" for harm in known)
    requirement = max((harm.install for harm in known), key=number_of)  # free of all of them
    fix = install(facts, requirement) if requirement else OTHER_PYTHON
    return Row(f"harm in {name}", facts.versions[name], state, why, fix)


def number_of(requirement: str) -> tuple[int, ...]:
    return number(requirement.partition(">=")[2])
