"""Some steps on a device that is here and on the CPU, from the same weights and batches."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ...engine.device import exact_float32
from . import batches
from .findings import Finding, Verdict
from .step_runner import quiet_lightning

STEPS = 5
# How far apart results may be, relative to their size. Three digits are what float32 leaves of sums
# in another order after some steps. bfloat16 has two itself: gradients of a few layers in it were
# seen to be a tenth of their size away from those in float32, on the same CPU.
TOLERANCES = {"32-true": 1e-3, "64-true": 1e-6, "16-mixed": 5e-2, "16-true": 5e-2}
COARSEST = 2.5e-1  # bf16-mixed, bf16-true
SAMPLE = 4096  # numbers of a layer's output that are compared one by one


@dataclass
class Trace:
    """What a training did, in the order in which it did it."""

    outputs: dict[str, Tensor] = field(default_factory=dict)  # of layers, in the first step
    gradients: dict[str, Tensor] = field(default_factory=dict)  # of parameters, in the first step
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)  # of all gradients, step by step
    parameters: dict[str, Tensor] = field(default_factory=dict)  # in the end
    moved: float = 0.0  # the sum of all learning rates


def compare(
    verdict: Verdict,
    build: Callable[[], LightningModule],
    datamodule: LightningDataModule,
    taken: dict[str, Any],
    precision: str,
) -> Verdict:
    """Return the verdict with what differs between the device and the CPU."""
    task = build()
    weights = {name: tensor.clone() for name, tensor in task.state_dict().items()}

    def trace(accelerator: str, precision: str) -> Trace:
        task = build()
        task.load_state_dict(weights)
        return train(task, datamodule, taken, accelerator, precision)

    tolerance = TOLERANCES.get(precision, COARSEST)
    found = differences(trace("cpu", "32-true"), trace(verdict.target, precision), tolerance)
    findings = [*verdict.findings, *found]
    how = f"{verdict.how}; and {STEPS} steps here, beside the CPU"
    return replace(verdict, findings=findings, how=how)


def train(
    task: LightningModule,
    datamodule: LightningDataModule,
    taken: dict[str, Any],
    accelerator: str,
    precision: Any = "32-true",
) -> Trace:
    """Train a few steps, with the random numbers of the CPU on every device."""
    trace = Trace()
    only_training = batches.given(datamodule, {"train": taken["train"]})
    with quiet_lightning(), only_training, torch.random.fork_rng():
        torch.manual_seed(0)
        trainer = Trainer(
            accelerator=accelerator,
            devices=1,
            precision=precision,
            callbacks=[_Watcher(trace)],
            max_steps=STEPS,
            max_epochs=1000,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with exact_float32(), _SameNoise():
            trainer.fit(task, datamodule=datamodule)
    trace.parameters = {name: _kept(tensor) for name, tensor in task.named_parameters()}
    return trace


def differences(cpu: Trace, other: Trace, tolerance: float) -> list[Finding]:
    """Return the first thing that differs by more than the tolerance."""
    # A gradient that is only rounding noise is compared with the others; and an optimizer like Adam
    # moves its weight by the whole learning rate in either direction.
    norms = [gradient.norm().item() for gradient in cpu.gradients.values()]
    noise = max(tolerance, 1e-3) * max(norms, default=0.0)
    for what, ours, theirs, floor, free in (
        ("the output of", cpu.outputs, other.outputs, 0.0, 0.0),
        ("the gradient of", cpu.gradients, other.gradients, noise, 0.0),
        ("loss", _numbered(cpu.losses), _numbered(other.losses), 0.0, 0.0),
        ("gradient norm", _numbered(cpu.norms), _numbered(other.norms), 0.0, 0.0),
        ("after training,", cpu.parameters, other.parameters, 0.0, 2 * cpu.moved),
    ):
        for name, expected in ours.items():
            apart = _apart(expected, theirs.get(name), floor, free)
            if not apart <= tolerance:
                return [
                    Finding(
                        "parity",
                        "fails",
                        f"{what} {name} is the first that differs from the CPU's, by {apart:.1e} of"
                        f" its size, where {tolerance:.0e} is allowed",
                        "train with trainer.accelerator=cpu, and report it to PyTorch",
                    )
                ]
    return []


class _Watcher(Callback):
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.hooks: list[Any] = []

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        for name, module in task.named_modules():
            if name and not list(module.children()):
                self.hooks.append(module.register_forward_hook(self._hook(name)))

    def _hook(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor) and tensor.is_floating_point():
                    self.trace.outputs.setdefault(name, _kept(tensor))

        return keep

    def on_before_optimizer_step(self, trainer: Trainer, task: Any, optimizer: Any) -> None:
        gradients = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
        for name, gradient in gradients.items():
            self.trace.gradients.setdefault(name, _kept(gradient))
        self.trace.moved += max(group["lr"] for group in optimizer.param_groups)
        norms = [gradient.detach().float().norm().item() for gradient in gradients.values()]
        self.trace.norms.append(math.hypot(*norms))

    def on_train_batch_end(
        self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self.trace.losses.append(loss.detach().float().item())
        while self.hooks:
            self.hooks.pop().remove()


class _SameNoise(TorchDispatchMode):
    """Let random operators (dropout, noise, sampling) draw on the CPU, whatever the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
        on_the_cpu_too = has_kernel(func.name(), "CPU") or not has_kernel(func.name(), "CUDA")
        if torch.Tag.nondeterministic_seeded not in func.tags or not on_the_cpu_too:
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        place = kwargs.get("device") or (given[0].device if given else torch.device("cpu"))
        if torch.device(place).type == "cpu":
            return func(*args, **kwargs)
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        copies = {id(tensor): tensor.cpu() for tensor in given}

        def on_cpu(leaf: Any) -> Any:
            return copies[id(leaf)] if isinstance(leaf, Tensor) else leaf

        result = func(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))
        changed = {id(copies[id(tensor)]): tensor for tensor in given}

        def back(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if id(leaf) in changed:  # in place
                return changed[id(leaf)].copy_(leaf)
            return leaf.to(place)

        return tree_map(back, result)


def _kept(tensor: Tensor) -> Tensor:
    """Return as many numbers as are compared, and the mean size of all."""
    flat = tensor.detach().float().flatten()
    return torch.cat([flat[:SAMPLE], flat.abs().mean()[None]]).cpu()


def _apart(expected: Tensor, found: Tensor | None, floor: float, free: float) -> float:
    """Return the relative difference, beyond `free`; sizes below `floor` count as `floor`."""
    if found is None or expected.shape != found.shape:
        return math.inf
    difference = (expected - found).abs().sub(free).clamp(min=0).norm().item()
    return difference / (max(expected.norm().item(), floor) or 1.0)


def _numbered(values: list[float]) -> dict[str, Tensor]:
    return {f"in step {step}": torch.tensor([value]) for step, value in enumerate(values, 1)}
