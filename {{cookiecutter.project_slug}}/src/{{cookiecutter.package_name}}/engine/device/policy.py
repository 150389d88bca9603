"""The policy: what every `auto` in the config becomes on this hardware, with reasons.

An explicit value wins; an impossible one is refused in one sentence. `resolve` is a pure function
of what is requested and what is there, so every row of the policy can be tested on any machine.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from ..errors import UserError
from .hardware import Hardware

ACCELERATORS = ("auto", "cpu", "cuda", "mps", "gpu")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
MATMUL_PRECISIONS = ("auto", "highest", "high", "medium")
SHORT_PRECISIONS = {32: "32-true", 16: "16-mixed", "bf16": "bf16-mixed", 64: "64-true"}
AMPERE = (8, 0)  # the compute capability from which on CUDA has bf16 and TF32 units
CUDA_COMPILER = "Triton, a C compiler, Python's headers and a GPU of 2017 or later"
LARGE = 10_000_000  # parameters of a model whose steps are soon worth half a minute of compiling


@dataclass(frozen=True)
class Requested:
    """What the config requests, in Lightning's words; `auto` leaves it to the policy."""

    accelerator: Any = "auto"
    devices: Any = "auto"
    strategy: Any = "auto"
    precision: Any = "auto"
    matmul_precision: Any = "auto"
    num_workers: Any = "auto"
    pin_memory: Any = "auto"
    persistent_workers: Any = "auto"
    compile: Any = "auto"
    require_accelerator: str | None = None

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise UserError(
                f"trainer.accelerator={self.accelerator} must be one of: {', '.join(ACCELERATORS)}."
            )
        if self.matmul_precision not in MATMUL_PRECISIONS:
            raise UserError(
                f"matmul_precision={self.matmul_precision} must be one of:"
                f" {', '.join(MATMUL_PRECISIONS)}."
            )
        if self.compile not in ("auto", True, False):
            raise UserError(f"compile={self.compile} must be one of: auto, true, false.")
        if self.precision not in (*PRECISIONS, *SHORT_PRECISIONS):
            raise UserError(
                f"trainer.precision={self.precision} must be one of: {', '.join(PRECISIONS)}."
            )


@dataclass(frozen=True)
class Settings:
    """What the run uses, and why: `reasons` has an entry for each field of the policy."""

    accelerator: str
    name: str
    devices: Any  # a count, or a list of indices
    strategy: str
    precision: str
    matmul_precision: str
    num_workers: int
    pin_memory: bool
    persistent_workers: bool
    compile: Any  # True, False, or `large`: a model of LARGE parameters or more
    reasons: dict[str, str]
    num_nodes: int = 1  # hosts

    @property
    def num_devices(self) -> int:
        """The devices of this host."""
        return len(self.devices) if isinstance(self.devices, list) else self.devices

    def compiles(self, num_parameters: int) -> bool:
        return self.compile is True or (self.compile == "large" and num_parameters >= LARGE)

    @property
    def world_size(self) -> int:
        return self.num_devices * self.num_nodes


def resolve(want: Requested, has: Hardware) -> Settings:
    """Return what this hardware makes of a request.

    Raises:
        UserError: this machine cannot do what is requested.
    """
    accelerator, why = _accelerator(want, has)
    required = want.require_accelerator
    if required not in (None, accelerator) and not (required == "gpu" and accelerator != "cpu"):
        raise UserError(
            f"require_accelerator={want.require_accelerator}, but this is {accelerator}: {why}."
        )
    devices, why_devices = _devices(want, has, accelerator)
    count = len(devices) if isinstance(devices, list) else devices
    gpus = has.cuda if accelerator == "cuda" else ()
    gpus = tuple(gpus[i] for i in devices) if isinstance(devices, list) else gpus[:devices]
    num_workers, why_workers = _num_workers(want, has, count)
    ampere = bool(gpus) and all(gpu.capability >= AMPERE for gpu in gpus)
    policy: dict[str, tuple[Any, str]] = {
        "accelerator": (accelerator, why),
        "devices": (devices, why_devices),
        "strategy": _strategy(want, has, accelerator, count * has.hosts),
        "precision": _precision(want, accelerator, ampere),
        # Not "high" elsewhere: it would change what CPUs with AMX compute, too.
        "matmul_precision": ("high", "TF32 units") if ampere else ("highest", "no TF32 units"),
        "num_workers": (num_workers, why_workers),
        "pin_memory": (accelerator == "cuda", "it speeds up copies to CUDA, and only those"),
        "persistent_workers": (num_workers > 0, "workers, where there are any, outlast an epoch"),
        "compile": _compile(want, has, accelerator),
    }
    for field in ("matmul_precision", "pin_memory", "persistent_workers"):
        if getattr(want, field) != "auto":
            policy[field] = getattr(want, field), "requested"
    if num_workers == 0:  # DataLoader refuses it
        policy["persistent_workers"] = False, "there are no workers"
    names = {"cpu": has.cpu, "mps": has.mps, "cuda": gpus[0].name if gpus else ""}
    return Settings(
        name=names[accelerator],
        num_nodes=has.hosts,
        reasons={field: reason for field, (_, reason) in policy.items()},
        **{field: value for field, (value, _) in policy.items()},
    )


def _accelerator(want: Requested, has: Hardware) -> tuple[str, str]:
    works = {"mps": bool(has.mps), "cuda": bool(has.cuda), "cpu": True}  # in order of preference
    missed = f" ({has.missed})" if has.missed else ""
    if want.accelerator == "auto":
        best = next(name for name in works if works[name])
        return (
            best,
            f"no GPU works here{missed}" if best == "cpu" else f"auto, since {best} works here",
        )
    possible = ("mps", "cuda") if want.accelerator == "gpu" else (want.accelerator,)
    for name in possible:
        if works[name]:
            return name, "requested"
    raise UserError(
        f"trainer.accelerator={want.accelerator}, but no {want.accelerator} works here{missed}:"
        " leave it out to use the best there is."
    )


def _devices(want: Requested, has: Hardware, accelerator: str) -> tuple[Any, str]:
    asked = OmegaConf.to_object(want.devices) if OmegaConf.is_list(want.devices) else want.devices
    num_gpus = len(has.cuda)
    if has.processes and asked in ("auto", -1):
        asked = has.processes
    elif asked in ("auto", -1):
        if accelerator != "cuda":
            return 1, f"one {accelerator}"
        if has.system == "Windows":
            return 1, "several need NCCL, which Windows lacks"
        return num_gpus, "every one that works"
    there = {"cuda": num_gpus, "mps": 1}.get(accelerator)  # on the CPU, any number of processes
    if isinstance(asked, list) and accelerator == "cuda":
        possible = bool(asked) and all(index in range(num_gpus) for index in asked)
    else:
        possible = type(asked) is int and 1 <= asked <= (there or asked)
    if not possible and has.processes and asked == has.processes:
        raise UserError(
            f"torchrun has started {asked} processes here, for {there} {accelerator}: let it start"
            f" --nproc-per-node {there}."
        )
    if not possible:
        raise UserError(
            f"trainer.devices={asked} is impossible, this machine has {there or 1} {accelerator}:"
            " leave it out to use what is there."
        )
    if has.processes:
        if has.processes != (len(asked) if isinstance(asked, list) else asked):
            raise UserError(
                f"torchrun has started {has.processes} processes here, and trainer.devices={asked}:"
                " leave trainer.devices out."
            )
        return asked, "one for each process of torchrun"
    return asked, "requested"


def _strategy(want: Requested, has: Hardware, accelerator: str, world_size: int) -> tuple[str, str]:
    asked = want.strategy
    if not isinstance(asked, str):  # one of Lightning's, by its _target_
        return asked, "requested"
    if asked.startswith(("ddp", "fsdp")) and accelerator == "mps":
        raise UserError(f"trainer.strategy={asked} does not run on MPS. Remove it.")
    if asked.startswith("fsdp_") or asked.endswith(("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy={asked} must be one of: auto, ddp, fsdp.")
    if asked.startswith("ddp") and accelerator == "cuda" and has.system == "Windows":
        raise UserError(
            f"trainer.strategy={asked} needs NCCL, which Windows lacks. Use WSL or Linux."
        )
    if asked in ("ddp", "fsdp") and world_size == 1:
        return "auto", f"one device needs no {asked}"
    if asked == "auto":
        return "ddp" if world_size > 1 else "auto", "follows from the devices"
    return asked, "requested"


def _precision(want: Requested, accelerator: str, ampere: bool) -> tuple[str, str]:
    asked = SHORT_PRECISIONS.get(want.precision, want.precision)
    if asked == "64-true" and accelerator == "mps":
        raise UserError("trainer.precision=64-true is impossible on MPS. Use 32-true, or the CPU.")
    if asked.startswith("16") and accelerator == "cpu":  # Lightning would take bf16 without a word
        raise UserError(f"trainer.precision={asked} needs a GPU. Use 32-true or bf16-mixed.")
    if asked != "auto":
        return asked, "requested"
    if accelerator != "cuda":
        return "32-true", f"less is no faster or not safe on {accelerator}"
    if want.strategy == "fsdp" and not ampere:
        return "32-true", "no native bf16, and fsdp takes no 16-mixed"
    # torch.cuda.is_bf16_supported() says yes to emulation too, which is slow.
    return ("bf16-mixed", "native bf16") if ampere else ("16-mixed", "no native bf16")


def _num_workers(want: Requested, has: Hardware, num_processes: int) -> tuple[int, str]:
    if want.num_workers != "auto":
        if not isinstance(want.num_workers, int) or want.num_workers < 0:
            raise UserError(f"data.num_workers={want.num_workers} must be auto, 0 or more.")
        return want.num_workers, "requested"
    if has.system != "Linux":
        return 0, f"on {has.system} each worker starts a Python of its own, which takes seconds"
    if has.cores <= 2:
        return 0, f"with {has.cores} cores a worker would take the trainer's own"
    cores = has.cores // num_processes
    return max(0, min(8, cores - 1)), f"{cores} cores, one of them for the trainer; 8 at most"


def _compile(want: Requested, has: Hardware, accelerator: str) -> tuple[Any, str]:
    if want.compile is False:
        return False, "requested"
    if accelerator not in has.compiles:
        needs = {"cuda": CUDA_COMPILER}.get(accelerator, "a C++ compiler")
        if want.compile is True:
            raise UserError(f"compile=true needs {needs}, which is not here. Remove it.")
        return False, f"it needs {needs}"
    if want.compile is True:
        return True, "requested"
    if accelerator != "cuda":
        return False, f"it is slower, or not safe, on {accelerator}"
    if want.strategy == "fsdp":
        return False, "fsdp gathers the weights between the layers"
    return "large", "a large model is worth the half minute that compiling takes"
