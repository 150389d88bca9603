"""The rows about PyTorch's build, the GPU beside it, and what the project makes of both."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..known_harm import number
from .facts import NOT_INSTALLED, Facts
from .row import Row, in_container, install, run, unset

# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
DRIVER_FOR_CUDA = {11: 450, 12: 525, 13: 580}
NATIVE_BF16 = (8, 0)  # the compute capability from which on CUDA computes in bf16 itself


@dataclass(frozen=True)
class Build:
    """A PyTorch to install: its CUDA, and the oldest GPU that has kernels in it."""

    index: str
    cuda: int
    capability: tuple[int, ...]


# https://github.com/pytorch/pytorch/blob/v2.13.0/torch/cuda/__init__.py (PYTORCH_RELEASES_CODE_CC)
BUILDS = (Build("cu130", 13, (7, 5)), Build("cu126", 12, (5, 0)))


def build(facts: Facts) -> Row:
    """A PyTorch without CUDA beside a GPU trains on the CPU, and nobody notices."""
    seen, name = facts.torch, "PyTorch's build"
    if not seen.version:
        return Row(name, "", "unknown", "PyTorch does not load.")
    if facts.system == "Darwin":
        return mac_build(facts, name)
    kind = f"CUDA {seen.cuda}" if seen.cuda else f"ROCm {seen.hip}" if seen.hip else "no CUDA"
    found = f"{seen.version}, {kind}"
    if not facts.nvidia or seen.gpus or (seen.cuda and driver_is_too_old(facts)):
        return Row(name, found)
    gpu = facts.nvidia[0].name
    if not seen.cuda:
        why = f"{gpu} is here, and this PyTorch cannot use it."
        return Row(name, found, "wrong", why, other_build(facts))
    hidden = facts.environment.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None:
        why = f"{gpu} is here, and CUDA_VISIBLE_DEVICES={hidden!a} hides it."
        return Row(name, found, "warning", why, unset(facts, "CUDA_VISIBLE_DEVICES"))
    error = seen.errors.get("devices") or seen.died
    why = f"{gpu} is here, and PyTorch does not see it{f': {error}' if error else '.'}"
    return Row(name, found, "wrong", why, other_build(facts))


def mac_build(facts: Facts, name: str) -> Row:
    seen = facts.torch
    found = f"{seen.version}, {'with' if seen.mps_built else 'without'} MPS"
    if facts.machine == "arm64" and not seen.mps_built:
        fix = install(facts, "torch>=2.13", again=True)
        return Row(name, found, "wrong", "It cannot use the GPU of this Mac.", fix)
    if facts.machine == "arm64" and not seen.mps_available:
        why = "MPS is built in, and macOS shows this process no GPU: is this a virtual machine?"
        return Row(name, found, "warning", why, "system_profiler SPDisplaysDataType")
    return Row(name, found)


def driver(facts: Facts) -> list[Row]:
    name = "NVIDIA driver"
    if not facts.nvidia:
        why = f"nvidia-smi {facts.nvidia_smi or 'lists no GPU'}."
        if facts.nvidia_smi == NOT_INSTALLED:
            return []
        return [Row(name, "none that works", "warning", why, new_driver(facts))]
    found = facts.nvidia[0].driver
    if driver_is_too_old(facts):
        needed = DRIVER_FOR_CUDA[number(facts.torch.cuda or "")[0]]
        why = f"This PyTorch's CUDA {facts.torch.cuda} needs {needed} or newer."
        return [Row(name, found, "wrong", why, other_build(facts))]
    return [Row(name, found)]


def driver_is_too_old(facts: Facts) -> bool:
    needed = DRIVER_FOR_CUDA.get(next(iter(number(facts.torch.cuda or "")), 0), 0)
    return any(number(gpu.driver)[:1] < (needed,) for gpu in facts.nvidia)


def kernels(facts: Facts) -> list[Row]:
    rows = []
    for index, gpu in enumerate(facts.torch.gpus):
        capability, name = tuple(gpu["capability"]), f"kernels for cuda:{index}"
        found = f"{gpu['name']}, capability {'.'.join(map(str, capability))}"
        if facts.torch.hip or not facts.torch.arch_list:
            continue
        if has_kernels(capability, facts.torch.arch_list):
            rows.append(Row(name, found))
        else:
            why = f"This PyTorch has them for {' '.join(facts.torch.arch_list)}."
            rows.append(Row(name, found, "wrong", why, other_build(facts)))
    return rows


def has_kernels(capability: tuple[int, ...], arch_list: tuple[str, ...]) -> bool:
    """A binary (sm) runs on the later GPUs of its generation, code (compute) on every later one."""
    for arch in arch_list:
        kind, _, digits = arch.partition("_")
        compiled = divmod(int(re.sub(r"\D", "", digits) or 0), 10)  # sm_90a is 9.0
        if compiled <= capability and (kind == "compute" or compiled[0] == capability[0]):
            return True
    return False


def other_build(facts: Facts) -> str:
    """The newest PyTorch that runs with the driver and the GPUs here, or else a newer driver."""
    capabilities = [number(gpu.capability) for gpu in facts.nvidia if gpu.capability]
    for build in BUILDS:
        old_driver = any(
            number(gpu.driver)[:1] < (DRIVER_FOR_CUDA[build.cuda],) for gpu in facts.nvidia
        )
        if not old_driver and all(found >= build.capability for found in capabilities):
            index = f"https://download.pytorch.org/whl/{build.index}"
            return install(facts, "torch", index=index, again=True)
    return new_driver(facts)


def new_driver(facts: Facts) -> str:
    if facts.container:
        return in_container("--gpus all")
    windows = "start https://www.nvidia.com/drivers"
    return windows if facts.system == "Windows" else "sudo ubuntu-drivers install && sudo reboot"


def intel(facts: Facts) -> list[Row]:
    if not facts.torch.xpu:
        return []
    why = "Lightning has no accelerator for it, so the CPU trains."
    return [Row("Intel GPU", "seen by PyTorch", "warning", why, run("trainer.accelerator=cpu"))]


def devices(facts: Facts) -> list[Row]:
    seen, tried = facts.torch, dict(facts.torch.works)
    stage, _, ended = seen.died.partition(": ")
    if stage.startswith("works on "):
        tried[stage[len("works on ") :]] = ended
    if not tried:
        why = seen.died or "PyTorch does not load."
        return [Row("devices", "", "unknown", f"No operation could be tried: {why}")]
    rows = []
    for name, error in tried.items():
        if not error:
            rows.append(Row(f"device {name}", "trains a step"))
            continue
        fix = "nvidia-smi"  # a GPU can be full, or another's
        if name == "mps":  # hosted Mac runners report MPS and cannot run it
            fix = run("trainer.accelerator=cpu")
        if name == "cpu":
            fix = install(facts, "torch", again=True)
        rows.append(Row(f"device {name}", "does not work", "wrong", error, fix))
    return rows


def bf16(facts: Facts) -> Row:
    seen = facts.torch
    if not seen.bf16:
        why = seen.died or "PyTorch does not load."
        return Row("bf16", "", "unknown", f"No operation could be tried: {why}")
    capabilities = {f"cuda:{i}": tuple(gpu["capability"]) for i, gpu in enumerate(seen.gpus)}
    how, failed = [], []
    for name, error in seen.bf16.items():
        if seen.works.get(name):
            continue  # nothing works there
        kind = "works"
        if error:
            kind = "fails"
            failed.append(f"{name}: {error}")
        elif name in capabilities and not seen.hip:
            native = capabilities[name] >= NATIVE_BF16
            kind = "native" if native else "emulated and slow, so auto takes 16-mixed"
        how.append(f"{name} {kind}")
    if failed:
        fix = run("trainer.precision=32-true")
        return Row("bf16", ", ".join(how), "warning", "; ".join(failed), fix)
    return Row("bf16", ", ".join(how))


def policy(facts: Facts) -> list[Row]:
    """What `auto` in the config becomes here; device.py has the rules."""
    seen = facts.torch
    if not seen.policy:
        why = seen.errors.get("policy") or seen.died or "PyTorch or Lightning does not load."
        return [Row("auto", "", "unknown", f"What it becomes here could not be seen: {why}")]
    return [Row(f"auto {name}", value, why=why) for name, (value, why) in seen.policy.items()]
