"""Step vanilla optimizers in one fused kernel, unless the user set `fused`, `foreach` or the like.

An optimizer that is not fused calls a dozen kernels for each parameter. In a small model, that is
most of the step. `task.configure_optimizers` stays as in Lightning's documentation: PyTorch reads
`fused` from the parameter groups at every step, so it can be set after the optimizer was built.

The optimizer's private `_step_supports_amp_scaling` stays unset. Lightning therefore unscales and
clips gradients as usual, in any mixed precision. (Built with `fused=True`, the optimizer would make
Lightning refuse to clip: https://github.com/Lightning-AI/pytorch-lightning/issues/16434.)
"""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer

# Subclasses are left alone: they may compute their step in another way.
KNOWN = (SGD, Adam, AdamW, Adagrad)


class FusedOptimizers(Callback):
    def on_fit_start(self, trainer: Trainer, task: LightningModule) -> None:
        self.unproven = [one for one in trainer.optimizers if fuse(one, task)]

    def on_before_optimizer_step(
        self, trainer: Trainer, task: LightningModule, optimizer: Optimizer
    ) -> None:
        # Only a gradient shows whether it is sparse (as by F.embedding), which no fused kernel
        # takes. PyTorch looks at `fused` after this hook, so even the first step is a plain one.
        if optimizer not in self.unproven:
            return
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"]]
        if any(one is not None and one.is_sparse for one in gradients):
            _set_fused(optimizer, None)
        elif any(one is None for one in gradients):
            return  # it comes in a later step
        self.unproven.remove(optimizer)


def fuse(optimizer: Optimizer, task: nn.Module) -> bool:
    """Fuse `optimizer`, which trains parameters of `task`, unless that is impossible or decided.

    Call it after the optimizer was built and before its state is loaded.

    Returns:
        Whether it was fused.
    """
    if type(optimizer) not in KNOWN or _differ_between_groups(optimizer):
        return False
    fused = not _is_decided(optimizer.defaults) and _can_be_fused(optimizer, task)
    if fused:
        _set_fused(optimizer, True)
    optimizer.register_load_state_dict_pre_hook(_keep_fused_as_here)
    return fused


def _differ_between_groups(optimizer: Optimizer) -> bool:
    return any(group["fused"] != optimizer.defaults["fused"] for group in optimizer.param_groups)


def _is_decided(options: dict[str, Any]) -> bool:
    """Return whether the user has given `fused`, or an option that excludes it."""
    excluding = ("foreach", "capturable", "differentiable")
    return options["fused"] is not None or any(options.get(one) for one in excluding)


def _set_fused(optimizer: Optimizer, fused: bool | None) -> None:
    optimizer.defaults["fused"] = fused  # for groups that are added later, as by fine-tuning
    for group in optimizer.param_groups:
        group["fused"] = fused


def _can_be_fused(optimizer: Optimizer, task: nn.Module) -> bool:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if not all(weight.is_floating_point() for weight in weights):
        return False
    if any(getattr(module, "sparse", False) for module in task.modules()):
        return False  # an embedding with sparse gradients, which no fused kernel takes
    kinds = {(weight.device, weight.dtype) for weight in weights}
    return all(_has_kernel(type(optimizer), device, dtype) for device, dtype in kinds)


def _has_kernel(kind: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a fused step of one weight works. PyTorch has no public list of kernels."""
    if kind is Adagrad and device.type == "mps":
        return False  # the CPU would compute it: PyTorch 2.15 has no such kernel for MPS
    weight = nn.Parameter(torch.ones(1, device=device, dtype=dtype))
    weight.grad = torch.ones_like(weight)
    trial = kind([weight])
    _set_fused(trial, True)
    try:
        trial.step()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _keep_fused_as_here(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Let a checkpoint from a device with the kernel load on one without, and the other way."""
    for saved in state["param_groups"]:
        saved["fused"] = optimizer.defaults["fused"]
