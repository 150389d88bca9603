"""Make `self.log` in every step cheap, with the values that Lightning's own gives.

Lightning checks all of a call's options each time, and compares them with those of the call before.
Here the first call of a key in an epoch is Lightning's own. Later ones with the same options only
pass the value to the object that Lightning keeps for the key. The arithmetic, the place of the sums
and all that reads them stay Lightning's. On a GPU, nothing waits for a value.

Names of Lightning that are not public, checked in the versions of fast_loop.CHECKED. In other
versions nothing is installed:
    LightningModule._current_fx_name                the hook that logs
    Trainer._results, ._logger_connector            what was logged, and whether an epoch begins
    _ResultMetric.update, .has_reset, .meta         the sums of a key and its options
    Metric._update_count, ._computed                what torchmetrics sets around an update
"""

from typing import Any, NamedTuple

import torch
from lightning import LightningModule

from .fast_loop import is_checked


def install(task: LightningModule) -> bool:
    """Make the task's `self.log` fast, if it is Lightning's own. Return whether it is."""
    if not is_checked() or type(task).log is not LightningModule.log or "log" in vars(task):
        return False
    task.log = FastLog(task)  # type: ignore[method-assign]
    return True


class Known(NamedTuple):
    """A key that was logged before."""

    stage: Any  # the trainer, and what it does
    asked: Any  # the call's options
    results: Any  # Lightning's _ResultCollection of this stage
    loader: int | None  # of several validation loaders
    result: Any  # Lightning's _ResultMetric, which holds the sums of the key


class FastLog:
    """`self.log` of a task."""

    def __init__(self, task: LightningModule) -> None:
        self.task = task
        self.known: dict[str, Known] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"task": self.task, "known": {}}  # a copy of the task begins anew

    def __call__(
        self, name: str, value: Any, *args: Any, batch_size: int | None = None, **options: Any
    ) -> None:
        trainer: Any = self.task._trainer
        hook: Any = self.task._current_fx_name
        key = f"{hook}.{name}"
        stage = trainer and (trainer, trainer.state.fn, trainer.state.stage)
        asked = args, options, batch_size is None
        known = self.known.get(key)
        if (
            known is None
            or known.result.has_reset  # at the start of an epoch
            or known.stage != stage
            or known.asked != asked
            or known.loader != known.results.dataloader_idx
            or trainer._logger_connector.should_reset_tensors(hook)
            or (tensor := as_scalar(value, known.result.value)) is None
        ):
            given = options if batch_size is None else {**options, "batch_size": batch_size}
            LightningModule.log(self.task, name, value, *args, **given)
            self._remember(key, stage, asked)
            return
        result = known.result
        size = known.results._extract_batch_size(result, batch_size, result.meta)
        # As result.update(...), which torchmetrics has wrapped.
        type(result).update(result, tensor, size)
        result._update_count, result._computed = result._update_count + 1, None
        trainer._logger_connector._current_fx = hook

    def _remember(self, key: str, stage: Any, asked: Any) -> None:
        results: Any = stage and stage[0]._results
        if results is None:
            return
        loader = results.dataloader_idx
        result = results.get(key if loader is None else f"{key}.{loader}")
        if result is not None and result.is_tensor and not result.meta.enable_graph:
            self.known[key] = Known(stage, asked, results, loader, result)


def as_scalar(value: Any, like: torch.Tensor) -> torch.Tensor | None:
    """Return a number or 0-d tensor as a tensor, if that is safe to add to `like`. Else None."""
    if type(value) is torch.Tensor:
        fits = value.ndim == 0 and value.device == like.device
        return value.detach() if fits else None
    if type(value) in (float, int) and not abs(value) > 1e15:  # NaN is fine
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        # torch.tensor(value, device="cuda") would wait for the GPU.
        return torch.full((), value, dtype=dtype, device=like.device)
    return None
