"""The only file that knows hardware: a probe of this machine, a policy, its answer with reasons.

What is `auto` in the config is decided here, once, before anything is built. An explicit value
wins; an impossible one is refused in one sentence. `choose` is a pure function of what is asked
for and what is there, so every row of the policy can be tested on any machine.
"""

import contextlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from .errors import UserError
from .processes import launched

ACCELERATORS = ("auto", "cpu", "cuda", "mps", "gpu")
PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")
MATMUL_PRECISIONS = ("auto", "highest", "high", "medium")
SHORT_PRECISIONS = {32: "32-true", 16: "16-mixed", "bf16": "bf16-mixed", 64: "64-true"}
AMPERE = (8, 0)  # the compute capability from which on CUDA has bf16 and TF32 units
CUDA_COMPILER = "Triton, a C compiler, Python's headers and a GPU of 2017 or later"
VOLTA = (7, 0)  # from which on there is Triton, which torch.compile needs
LARGE = 10_000_000  # parameters of a model whose steps are soon worth half a minute of compiling


@dataclass(frozen=True)
class Gpu:
    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Probe:
    """What this machine has. A GPU counts only if a tiny operation on it works."""

    system: str  # as platform.system(): Darwin, Linux, Windows
    cpu: str
    cores: int  # that this process may use
    mps: str = ""  # the chip's name
    cuda: tuple[Gpu, ...] = ()
    missed: str = ""  # why a GPU that seems to be here does not count
    compiles: tuple[str, ...] = ("cpu", "cuda", "mps")  # what torch.compile has all it needs for
    processes: int = 0  # that torchrun has started here, one a device; 0: it has not
    hosts: int = 1  # on which it has


@dataclass(frozen=True)
class Request:
    """What the config asks for, in Lightning's words; `auto` leaves it to the policy."""

    accelerator: Any = "auto"
    devices: Any = "auto"
    strategy: Any = "auto"
    precision: Any = "auto"
    matmul_precision: Any = "auto"
    num_workers: Any = "auto"
    pin_memory: Any = "auto"
    persistent_workers: Any = "auto"
    compile: Any = "auto"
    on_device: Any = "auto"
    require_accelerator: str | None = None
    in_memory: bool = False  # fetching from the datamodule costs nothing

    def __post_init__(self) -> None:
        if self.accelerator not in ACCELERATORS:
            raise UserError(
                f"trainer.accelerator={self.accelerator} is none of {', '.join(ACCELERATORS)}."
            )
        if self.matmul_precision not in MATMUL_PRECISIONS:
            raise UserError(
                f"matmul_precision={self.matmul_precision} is none of"
                f" {', '.join(MATMUL_PRECISIONS)}."
            )
        if self.compile not in ("auto", True, False):
            raise UserError(f"compile={self.compile} is none of auto, true, false.")
        if self.precision not in (*PRECISIONS, *SHORT_PRECISIONS):
            raise UserError(
                f"trainer.precision={self.precision} is none of {', '.join(PRECISIONS)}."
            )


@dataclass(frozen=True)
class Choice:
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
    on_device: bool
    reasons: dict[str, str]
    num_nodes: int = 1  # hosts

    @property
    def num_devices(self) -> int:
        """Of this host."""
        return len(self.devices) if isinstance(self.devices, list) else self.devices

    def compiles(self, num_parameters: int) -> bool:
        return self.compile is True or (self.compile == "large" and num_parameters >= LARGE)

    @property
    def world_size(self) -> int:
        return self.num_devices * self.num_nodes


def probe() -> Probe:
    """Look at this machine. Only this needs PyTorch, which takes seconds to import."""
    import torch
    from lightning.pytorch.accelerators import MPSAccelerator

    def works(device: str) -> bool:
        # Of several processes each tries its own GPU: a try takes memory there until it ends.
        if device.startswith("cuda") and os.environ.get("LOCAL_RANK", device[5:]) != device[5:]:
            return True
        # Hosted Mac runners report MPS and cannot run it; a driver or a wheel can be too old.
        try:
            return torch.ones(2, device=device).sum().item() == 2
        except (RuntimeError, AssertionError):
            return False

    cuda = [
        Gpu(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))
        for index in range(torch.cuda.device_count())
        if works(f"cuda:{index}")
    ]
    mps = MPSAccelerator.is_available() and works("mps")  # False under DISABLE_MPS=1
    missed = ""
    if not cuda and shutil.which("nvidia-smi"):
        missed = "nvidia-smi is here, but this PyTorch has no CUDA: install a build that has"
        if torch.version.cuda is not None:
            missed = f"nvidia-smi is here, but CUDA {torch.version.cuda} fails: check the driver"
    elif not mps and torch.backends.mps.is_available():
        missed = "PyTorch reports MPS, but it is disabled or does not work"
    processes, hosts = launched() or (0, 1)
    return Probe(
        system=platform.system(),
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        mps=torch.backends.mps.get_name() if mps else "",
        cuda=tuple(cuda),
        missed=missed,
        compiles=("mps",) + ("cpu",) * _has_cxx() + ("cuda",) * _has_triton(cuda),
        processes=processes,
        hosts=hosts,
    )


def _has_cxx() -> bool:
    names = {"Darwin": "clang++", "Windows": "cl"}
    return shutil.which(os.environ.get("CXX") or names.get(platform.system(), "g++")) is not None


def _has_triton(gpus: list[Gpu]) -> bool:
    old = any(gpu.capability < VOLTA for gpu in gpus)
    # It compiles C, with Python's headers; its wheel for Windows brings a compiler.
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    builds = platform.system() == "Windows" or (compiler is not None and headers)
    return importlib.util.find_spec("triton") is not None and builds and not old


def visible_gpus() -> list[str]:
    """The CUDA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in named.split(",") if name]
    # Another process imports PyTorch, which takes seconds, and may take memory on each GPU.
    count = "import torch; print(torch.cuda.device_count())"
    asked = subprocess.run([sys.executable, "-c", count], capture_output=True, check=True)
    return [str(index) for index in range(int(asked.stdout))]


def _cpu_name() -> str:
    with contextlib.suppress(OSError):  # Linux tells more here than by platform.processor()
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def choose(want: Request, has: Probe) -> Choice:
    """The policy.

    Raises:
        UserError: this machine cannot do what is asked.
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
    # Outside CUDA a lower precision than highest would change what CPUs with AMX compute, too.
    policy: dict[str, tuple[Any, str]] = {
        "accelerator": (accelerator, why),
        "devices": (devices, why_devices),
        "strategy": _strategy(want, has, accelerator, count * has.hosts),
        "precision": _precision(want, accelerator, ampere),
        "matmul_precision": ("high", "TF32 units") if ampere else ("highest", "no TF32 units"),
        "num_workers": (num_workers, why_workers),
        "pin_memory": (accelerator == "cuda", "it speeds up copies to CUDA, and only those"),
        "persistent_workers": (num_workers > 0, "workers, where there are any, outlast an epoch"),
        "compile": _compile(want, has, accelerator),
        "on_device": _on_device(want, accelerator, num_workers),
    }
    for field in ("matmul_precision", "pin_memory", "persistent_workers", "on_device"):
        if getattr(want, field) != "auto":
            policy[field] = getattr(want, field), "asked for"
    if num_workers == 0:  # DataLoader refuses it
        policy["persistent_workers"] = False, "there are no workers"
    names = {"cpu": has.cpu, "mps": has.mps, "cuda": gpus[0].name if gpus else ""}
    return Choice(
        name=names[accelerator],
        num_nodes=has.hosts,
        reasons={field: reason for field, (_, reason) in policy.items()},
        **{field: value for field, (value, _) in policy.items()},
    )


def _accelerator(want: Request, has: Probe) -> tuple[str, str]:
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
            return name, "asked for"
    raise UserError(
        f"trainer.accelerator={want.accelerator}, but no {want.accelerator} works here{missed}:"
        " leave it out to use the best there is."
    )


def _devices(want: Request, has: Probe, accelerator: str) -> tuple[Any, str]:
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
        possible = isinstance(asked, int) and 1 <= asked <= (there or asked)
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
    return asked, "asked for"


def _strategy(want: Request, has: Probe, accelerator: str, world_size: int) -> tuple[str, str]:
    asked = want.strategy
    if not isinstance(asked, str):  # one of Lightning's, by its _target_
        return asked, "asked for"
    if asked.startswith(("ddp", "fsdp")) and accelerator == "mps":
        raise UserError(f"trainer.strategy={asked} does not run on MPS: leave it out.")
    if asked.startswith("fsdp_") or asked.endswith(("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy={asked} is none of auto, ddp, fsdp.")
    if asked.startswith("ddp") and accelerator == "cuda" and has.system == "Windows":
        raise UserError(
            f"trainer.strategy={asked} needs NCCL, which Windows lacks: use WSL or Linux."
        )
    if asked in ("ddp", "fsdp") and world_size == 1:
        return "auto", f"one device needs no {asked}"
    if asked == "auto":
        return "ddp" if world_size > 1 else "auto", "follows from the devices"
    return asked, "asked for"


def _precision(want: Request, accelerator: str, ampere: bool) -> tuple[str, str]:
    asked = SHORT_PRECISIONS.get(want.precision, want.precision)
    if asked == "64-true" and accelerator == "mps":
        raise UserError("trainer.precision=64-true is impossible on MPS: use 32-true, or the CPU.")
    if asked.startswith("16") and accelerator == "cpu":  # Lightning would take bf16 without a word
        raise UserError(f"trainer.precision={asked} needs a GPU: use 32-true or bf16-mixed.")
    if asked != "auto":
        return asked, "asked for"
    if accelerator != "cuda":
        return "32-true", f"less is no faster or not safe on {accelerator}"
    if want.strategy == "fsdp" and not ampere:
        return "32-true", "no native bf16, and fsdp takes no 16-mixed"
    # torch.cuda.is_bf16_supported() says yes to emulation too, which is slow.
    return ("bf16-mixed", "native bf16") if ampere else ("16-mixed", "no native bf16")


def _num_workers(want: Request, has: Probe, num_processes: int) -> tuple[int, str]:
    if want.num_workers != "auto":
        if not isinstance(want.num_workers, int) or want.num_workers < 0:
            raise UserError(f"data.num_workers={want.num_workers} is neither auto nor 0 or more.")
        return want.num_workers, "asked for"
    if want.in_memory:
        return 0, "the data is in memory, a worker would only copy it"
    if has.system != "Linux":
        return 0, f"on {has.system} each worker starts a Python of its own, which takes seconds"
    if has.cores <= 2:
        return 0, f"with {has.cores} cores a worker would take the trainer's own"
    cores = has.cores // num_processes
    return max(0, min(8, cores - 1)), f"{cores} cores, one of them for the trainer; 8 at most"


def _compile(want: Request, has: Probe, accelerator: str) -> tuple[Any, str]:
    if want.compile is False:
        return False, "asked for"
    if accelerator not in has.compiles:
        needs = {"cuda": CUDA_COMPILER}.get(accelerator, "a C++ compiler")
        if want.compile is True:
            raise UserError(f"compile=true needs {needs}, which is not here: leave it out.")
        return False, f"it needs {needs}"
    if want.compile is True:
        return True, "asked for"
    if accelerator != "cuda":
        return False, f"it is slower, or not safe, on {accelerator}"
    if want.strategy == "fsdp":
        return False, "fsdp gathers the weights between the layers"
    return "large", "a large model is worth the half minute that compiling takes"


def _on_device(want: Request, accelerator: str, num_workers: int) -> tuple[bool, str]:
    if want.on_device is True and num_workers > 0:
        raise UserError("data.on_device=true leaves workers nothing to do: add data.num_workers=0.")
    if accelerator != "cuda":
        return False, f"{accelerator} reads the same memory"
    if not want.in_memory or num_workers > 0:
        return False, "only for data that are in memory, without workers"
    return True, "no batch needs to be copied there"


TRAINER = ("accelerator", "devices", "strategy", "precision")
LOADER = ("num_workers", "pin_memory", "persistent_workers", "on_device")


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Without TF32, which CUDA uses in training: for results that other devices give as well."""
    import torch

    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def request(cfg: DictConfig) -> Request:
    """What `cfg` asks for. A datamodule of yours need not have the loader's settings."""
    want = Request(
        **{key: cfg.trainer[key] for key in TRAINER},
        **{key: cfg.data[key] for key in LOADER if key in cfg.data},
        matmul_precision=cfg.matmul_precision,
        require_accelerator=cfg.require_accelerator,
        compile=cfg.compile if "compile" in cfg else False,  # only what trains is compiled
    )
    try:
        datamodule = get_class(cfg.data._target_)  # imports PyTorch, so after the checks of names
    except (ImportError, ValueError) as error:
        raise UserError(f"data._target_={cfg.data._target_} cannot be imported: {error}") from error
    return replace(want, in_memory=getattr(datamodule, "in_memory", False))


def settle(cfg: DictConfig, choice: Choice) -> DictConfig:
    """A copy of `cfg` with the answer in place of every `auto`, and its reasons under `device`."""
    answer = asdict(choice)
    answer["strategy"] = _built(cfg, choice)
    if cfg.trainer.get("sync_batchnorm") and choice.world_size > 1 and choice.accelerator == "cpu":
        raise UserError("trainer.sync_batchnorm=true needs CUDA: leave it out on the CPU.")
    settled = OmegaConf.merge(
        OmegaConf.create(OmegaConf.to_container(cfg)),  # without Hydra's guard against new keys
        {
            "trainer": {key: answer[key] for key in (*TRAINER, "num_nodes")},
            "data": {key: answer[key] for key in LOADER if key in cfg.data},
            "matmul_precision": choice.matmul_precision,
            "device": {"name": choice.name, "reasons": choice.reasons},
        },
    )
    assert isinstance(settled, DictConfig)
    if "global_batch_size" in cfg.data:
        del settled.data.global_batch_size  # a datamodule knows that of a device
        settled.data.batch_size = batch_size(cfg, choice)
    return settled


def _built(cfg: DictConfig, choice: Choice) -> Any:
    """The strategy as the Trainer takes it."""
    if choice.strategy == "fsdp":  # FSDP2; Lightning's own `fsdp` is its predecessor
        strategy = f"{__package__}.sharded.ShardedStrategy"
        return {"_target_": strategy, "data_parallel_size": choice.world_size}
    exact = choice.accelerator == "cpu" or cfg.trainer.get("deterministic")
    if choice.strategy == "ddp" and exact and choice.world_size > 2:
        # Else DDP puts the gradients in another order after the first step of every start, in which
        # a sum of more than two rounds otherwise: a run that goes on would not have the same bits.
        strategy = "lightning.pytorch.strategies.DDPStrategy"
        return {"_target_": strategy, "find_unused_parameters": True}
    return choice.strategy


def batch_size(cfg: DictConfig, choice: Choice) -> int:
    """Of one device: as asked for, or what keeps `data.global_batch_size` on these devices.

    Raises:
        UserError: it cannot be split.
    """
    whole = cfg.data.global_batch_size if "global_batch_size" in cfg.data else None
    if whole is None:
        return int(cfg.data.batch_size)
    parts = choice.world_size * cfg.trainer.get("accumulate_grad_batches", 1)
    if whole < 1 or whole % parts:
        below = max(1, whole // parts) * parts
        raise UserError(
            f"data.global_batch_size={whole} cannot be split over {_devices_of(choice)} and"
            f" trainer.accumulate_grad_batches={parts // choice.world_size}: use {below} or"
            f" {below + parts}."
        )
    return int(whole // parts)


def _devices_of(choice: Choice) -> str:
    return f"{choice.world_size} device{'s' if choice.world_size > 1 else ''}"


def line(choice: Choice, cfg: DictConfig) -> str:
    """The one line that a run starts with."""
    said = f"{choice.accelerator} ({choice.name}), {choice.precision}, {_devices_of(choice)}"
    if choice.num_nodes > 1:
        said += f" on {choice.num_nodes} hosts"
    if "batch_size" in cfg.data:
        each, accumulated = batch_size(cfg, choice), cfg.trainer.get("accumulate_grad_batches", 1)
        said += f", effective batch size {each * choice.world_size * accumulated}"
    return f"{said}: {choice.reasons['accelerator']}"
