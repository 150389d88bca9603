"""How a task's optimizer is built and its gradients are clipped: the same for every task."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch.optim import Optimizer

from ..errors import UserError


def configure(task: Any, parameters: Iterable[Any]) -> dict[str, Any]:
    """What `configure_optimizers` returns.

    Args:
        task: has an `optimizer`, which takes parameters, and a `scheduler`, Lightning's
            `lr_scheduler` dict whose `scheduler` takes an optimizer.
        parameters: tensors, or groups of them as PyTorch's optimizers take them.
    """
    schedule = task.scheduler["scheduler"]
    filled_in = {}
    if "total_steps" in schedule.keywords:  # OneCycleLR's
        filled_in["total_steps"] = int(task.trainer.estimated_stepping_batches)
    try:
        optimizer = build(task.optimizer, parameters)
        scheduler = schedule(optimizer, **filled_in)
    except ZeroDivisionError as error:  # OneCycleLR cannot rise for one step
        raise UserError("scheduler: it rises for one step only, raise pct_start.") from error
    except (TypeError, ValueError) as error:  # of a value in their YAML
        raise UserError(f"optimizer or scheduler: {error}") from error
    return {"optimizer": optimizer, "lr_scheduler": {**task.scheduler, "scheduler": scheduler}}


def build(optimizer: Callable[..., Optimizer], parameters: Iterable[Any]) -> Optimizer:
    """An optimizer, in one kernel (`fused`) where PyTorch has that for these tensors.

    Without it a step is a dozen calls for each parameter: of a small model, most of the time.
    """
    groups = list(parameters)
    # A group is filled in by who takes it.
    built = optimizer([dict(group) if isinstance(group, dict) else group for group in groups])
    if _can_be_fused(built):
        built = optimizer(groups, fused=True)
    built.register_load_state_dict_pre_hook(_stay_as_built)
    return built


def _can_be_fused(built: Optimizer) -> bool:
    choices = built.defaults
    # None is undecided; True and False stand in its YAML, and are left alone.
    if choices.get("fused", False) is not None or choices.get("foreach"):
        return False
    if choices.get("differentiable"):
        return False
    kernel = f"aten::_fused_{type(built).__name__.lower()}_"
    tensors = [tensor for group in built.param_groups for tensor in group["params"]]
    return all(tensor.is_floating_point() and _has(kernel, tensor.device) for tensor in tensors)


def _has(kernel: str, device: torch.device) -> bool:
    key = torch._C._dispatch_key_for_device(device.type)
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(kernel, key)
    except RuntimeError:  # there is none of this name
        return False


def _stay_as_built(built: Optimizer, state: dict[str, Any]) -> None:
    """A checkpoint may come from a device that fuses to one that does not."""
    for own, saved in zip(built.param_groups, state["param_groups"], strict=False):
        if "fused" in own:
            saved["fused"] = own["fused"]


def clip(task: LightningModule, optimizer: Any, value: float | None, algorithm: str | None) -> None:
    """What `configure_gradient_clipping` does: as Lightning, for fused optimizers too.

    Lightning refuses those in any mixed precision, since they divide by the loss scale within their
    step. bf16 has no such scale, and float16's can be divided by before: the step then leaves it.
    """
    if not value:
        return
    precision = task.trainer.precision_plugin
    if not isinstance(precision, MixedPrecision):
        task.clip_gradients(optimizer, value, algorithm)
        return
    if precision.scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        precision.scaler.unscale_(optimizer)
    Precision.clip_gradients(precision, optimizer, value, algorithm or "norm")  # type: ignore[arg-type]
