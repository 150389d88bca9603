"""The only file that knows hardware: a probe of this machine, a policy, and its answer with reasons.

What is `auto` in the config is decided here, once, before anything is built. An explicit value wins;
an impossible one is refused in one sentence. `choose` is a pure function, so every row of the policy
can be tested on any machine.
"""

import os
import platform
import shutil
from dataclasses import asdict, dataclass, fields
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from .errors import UserError

ACCELERATORS = ("auto", "cpu", "cuda", "gpu", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
SHORT_PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed", "64": "64-true"}


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]  # CUDA compute capability: (8, 0) is an A100
    native_bf16: bool


@dataclass(frozen=True)
class Probe:
    """What this machine has. A GPU counts only if a tiny operation on it works."""

    system: str  # as platform.system(): Darwin, Linux, Windows
    processor: str
    cores: int  # that this process may use
    mps: bool = False
    cuda: tuple[Gpu, ...] = ()
    missed: str = ""  # a GPU that is here and cannot be used, and what to do about it


@dataclass(frozen=True)
class Request:
    """What the config asks for, in Lightning's words; `auto` leaves it to the policy."""

    accelerator: str = "auto"
    devices: Any = "auto"
    strategy: str = "auto"
    precision: Any = "auto"
    matmul_precision: str = "auto"
    num_workers: int | str = "auto"
    pin_memory: bool | str = "auto"
    persistent_workers: bool | str = "auto"
    require_accelerator: str | None = None
    in_memory: bool = False  # the datamodule's items cost nothing to fetch


@dataclass(frozen=True)
class Choice:
    """What the run uses; `reasons` says why, field by field."""

    accelerator: str
    name: str
    devices: int | list[int]
    strategy: str
    precision: str
    matmul_precision: str
    num_workers: int
    pin_memory: bool
    persistent_workers: bool
    reasons: dict[str, str]

    @property
    def num_devices(self) -> int:
        return len(self.devices) if isinstance(self.devices, list) else self.devices


def probe() -> Probe:
    """Look at this machine. Only this needs PyTorch: what can be refused without it is, at once."""
    import torch
    from lightning.pytorch.accelerators import MPSAccelerator

    cuda = []
    for index in range(torch.cuda.device_count()):
        if _works(f"cuda:{index}"):
            capability = torch.cuda.get_device_capability(index)
            # is_bf16_supported() counts emulation, which is slow; bf16 units came with Ampere (8.0).
            cuda.append(Gpu(torch.cuda.get_device_name(index), capability, capability >= (8, 0)))
    missed = ""
    if not cuda and shutil.which("nvidia-smi"):
        missed = (
            "nvidia-smi is here, but this PyTorch is a CPU build: install a CUDA build"
            if torch.version.cuda is None
            else f"nvidia-smi is here, but PyTorch for CUDA {torch.version.cuda} cannot use the GPU:"
            " check the driver with nvidia-smi"
        )
    elif platform.system() == "Darwin" and torch.backends.mps.is_available():
        missed = "PyTorch offers MPS, but it is disabled or does not work here"
    return Probe(
        system=platform.system(),
        processor=platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        mps=MPSAccelerator.is_available() and _works("mps"),
        cuda=tuple(cuda),
        missed=missed,
    )


def _works(device: str) -> bool:
    import torch

    # Hosted Mac runners report MPS and cannot run it; a driver or a kernel image can be too old.
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except (RuntimeError, AssertionError):
        return False


def choose(want: Request, has: Probe) -> Choice:
    """The policy.

    Raises:
        UserError: this machine cannot do what is asked.
    """
    why: dict[str, str] = {}
    accelerator, why["accelerator"] = _accelerator(want, has)
    if want.require_accelerator not in (None, accelerator):
        raise UserError(
            f"require_accelerator={want.require_accelerator}, but this run would use {accelerator}:"
            f" {why['accelerator']}."
        )
    gpus = has.cuda if accelerator == "cuda" else ()
    devices, why["devices"] = _devices(want, accelerator, len(gpus))
    strategy, why["strategy"] = _strategy(want, has, accelerator)
    precision, why["precision"] = _precision(want, accelerator, gpus)
    workers, why["num_workers"] = _workers(want, has, accelerator)
    pinned, why["pin_memory"] = (
        (want.pin_memory, "asked for")
        if want.pin_memory != "auto"
        else (accelerator == "cuda", "pinned memory speeds up copies to CUDA, and only those")
    )
    if want.persistent_workers == "auto" or workers == 0:
        persistent, why["persistent_workers"] = workers > 0, "kept between epochs if there are any"
    else:
        persistent, why["persistent_workers"] = bool(want.persistent_workers), "asked for"
    if want.matmul_precision != "auto":
        matmul, why["matmul_precision"] = want.matmul_precision, "asked for"
    elif gpus and all(gpu.capability >= (8, 0) for gpu in gpus):
        matmul, why["matmul_precision"] = "high", "TF32 on CUDA 8.0 and newer"
    else:  # it would change the numbers of CPUs with AMX too (pytorch: mkldnn.matmul.fp32_precision)
        matmul, why["matmul_precision"] = "highest", "full float32 outside CUDA 8.0 and newer"
    name = gpus[0].name if gpus else has.processor
    return Choice(
        accelerator=accelerator,
        name=name,
        devices=devices,
        strategy=strategy,
        precision=precision,
        matmul_precision=matmul,
        num_workers=workers,
        pin_memory=bool(pinned),
        persistent_workers=persistent,
        reasons=why,
    )


def _accelerator(want: Request, has: Probe) -> tuple[str, str]:
    asked = want.accelerator
    there = {"mps": has.mps, "cuda": bool(has.cuda), "cpu": True}
    missed = f" ({has.missed})" if has.missed else ""
    if asked not in ACCELERATORS:
        raise UserError(
            f"trainer.accelerator={asked} is not one of {', '.join(ACCELERATORS)}: choose one of them."
        )
    if asked == "auto":
        best = next(name for name in there if there[name])
        return best, f"no GPU works here{missed}" if best == "cpu" else f"auto: {best} works here"
    if asked == "gpu":
        best = next((name for name in ("mps", "cuda") if there[name]), "")
    else:
        best = asked if there[asked] else ""
    if not best:
        raise UserError(
            f"trainer.accelerator={asked}, but no {asked} device works here{missed}:"
            " leave it out to use the best there is."
        )
    return best, "asked for"


def _devices(want: Request, accelerator: str, num_gpus: int) -> tuple[Any, str]:
    most = {"cuda": num_gpus, "mps": 1}.get(accelerator)
    if want.devices in ("auto", -1, "-1"):
        return (most, "every CUDA GPU that works") if accelerator == "cuda" else (1, f"one {accelerator}")
    asked = OmegaConf.to_container(want.devices) if OmegaConf.is_list(want.devices) else want.devices
    asked = int(asked) if isinstance(asked, str) and asked.isdecimal() else asked
    if isinstance(asked, list) and accelerator == "cuda":
        possible = bool(asked) and all(isinstance(i, int) and 0 <= i < num_gpus for i in asked)
    else:
        possible = isinstance(asked, int) and asked >= 1 and (most is None or asked <= most)
    if not possible:
        raise UserError(
            f"trainer.devices={asked} is impossible here: there {_count(most, accelerator)}."
        )
    return asked, "asked for"


def _count(most: int | None, accelerator: str) -> str:
    if most is None:
        return "is one cpu, and a number above 1 means that many processes on it"
    return f"{'is' if most == 1 else 'are'} {most} {accelerator} device{'s' if most != 1 else ''}"


def _strategy(want: Request, has: Probe, accelerator: str) -> tuple[str, str]:
    if want.strategy.startswith(("ddp", "fsdp")) and accelerator == "mps":
        raise UserError(f"trainer.strategy={want.strategy} does not run on MPS: leave it out there.")
    if want.strategy.startswith("fsdp") and accelerator == "cpu":
        raise UserError(f"trainer.strategy={want.strategy} needs CUDA: leave it out on the CPU.")
    if want.strategy.startswith("ddp") and accelerator == "cuda" and has.system == "Windows":
        raise UserError("trainer.strategy=ddp needs NCCL, which Windows lacks: use WSL or Linux.")
    return want.strategy, "follows from devices" if want.strategy == "auto" else "asked for"


def _precision(want: Request, accelerator: str, gpus: tuple[Gpu, ...]) -> tuple[str, str]:
    asked = str(want.precision)
    if asked == "auto":
        if not gpus:
            return "32-true", f"exact, and reduced precision is no faster or unsafe on {accelerator}"
        if all(gpu.native_bf16 for gpu in gpus):
            return "bf16-mixed", "the GPU computes bf16 natively"
        return "16-mixed", "the GPU is older than native bf16"
    asked = SHORT_PRECISIONS.get(asked, asked)
    if asked not in PRECISIONS:
        raise UserError(
            f"trainer.precision={asked} is not one of auto, {', '.join(PRECISIONS)}: choose one of them."
        )
    if asked == "64-true" and accelerator == "mps":
        raise UserError("trainer.precision=64-true is impossible on MPS: use 32-true, or the CPU.")
    if asked.startswith("16") and accelerator == "cpu":  # Lightning would silently take bf16
        raise UserError(f"trainer.precision={asked} needs a GPU: use 32-true or bf16-mixed on the CPU.")
    return asked, "asked for"


def _workers(want: Request, has: Probe, accelerator: str) -> tuple[int, str]:
    if want.num_workers != "auto":
        if not isinstance(want.num_workers, int) or want.num_workers < 0:
            raise UserError(f"data.num_workers={want.num_workers} is not auto, 0 or more: choose one.")
        return want.num_workers, "asked for"
    if want.in_memory:
        return 0, "the data is in memory: a worker would only copy it"
    if has.system != "Linux":
        return 0, f"{has.system} starts each worker as a new Python, which takes seconds"
    if has.cores <= 2:
        return 0, f"{has.cores} cores: a worker would take the trainer's own"
    return min(8, has.cores - 1), f"one for each of {has.cores} cores but one, 8 at most"


def request(cfg: DictConfig) -> Request:
    """What `cfg` asks for. A datamodule of yours need not have the loader's settings."""
    trainer = {key: cfg.trainer[key] for key in ("accelerator", "devices", "strategy", "precision")}
    loader = {key: cfg.data[key] for key in _LOADER if key in cfg.data}
    return Request(
        **trainer,
        **loader,
        matmul_precision=cfg.matmul_precision,
        require_accelerator=cfg.require_accelerator,
        in_memory=getattr(get_class(cfg.data._target_), "in_memory", False),
    )


_LOADER = ("num_workers", "pin_memory", "persistent_workers")


def settle(cfg: DictConfig, choice: Choice) -> DictConfig:
    """A copy of `cfg` with the answer in place of every `auto`, and its reasons under `device`."""
    answer = asdict(choice)
    return OmegaConf.merge(  # type: ignore[return-value]
        OmegaConf.create(OmegaConf.to_container(cfg)),
        {
            "trainer": {k: answer[k] for k in ("accelerator", "devices", "strategy", "precision")},
            "data": {key: answer[key] for key in _LOADER if key in cfg.data},
            "matmul_precision": choice.matmul_precision,
            "device": {"name": choice.name, "reasons": choice.reasons},
        },
    )


def line(choice: Choice, cfg: DictConfig) -> str:
    """The one line that a run starts with."""
    count = f"{choice.num_devices} device{'s' if choice.num_devices > 1 else ''}"
    said = f"{choice.accelerator} ({choice.name}), {choice.precision}, {count}"
    if "batch_size" in cfg.data:
        accumulated = cfg.trainer.get("accumulate_grad_batches", 1)
        size = cfg.data.batch_size * choice.num_devices * accumulated
        said += f", effective batch size {size}"
    return f"{said}; {choice.reasons['accelerator']}"
