"""The running averages of an epoch, which Lightning leaves out of a checkpoint.

The metrics of the task, and what `self.log(..., on_epoch=True)` has been given so far: without them
the epoch in which a run goes on would be logged as the average of its second part alone.
"""

from typing import Any

import torch
from lightning import Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torchmetrics import Metric

LOGGED = (  # of what self.log() was called with
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "metric_attribute",
)


def running_averages(trainer: Trainer) -> dict[str, Any]:
    """All of them as plain data: the metrics by their names, the results by Lightning's keys."""
    metrics = {
        name: _state(module)
        for name, module in trainer.lightning_module.named_modules()
        if isinstance(module, Metric) and module._update_count
    }
    results = {
        key: {
            "logged": {name: getattr(result.meta, name) for name in LOGGED},
            "reduce_fx": result.meta.reduce_fx.__name__,
            "sync_dist": result.meta.sync.should,
            "rank_zero_only": result.meta.sync.rank_zero_only,
            **(_state(result) if result.is_tensor else {}),
        }
        for key, result in trainer.fit_loop.epoch_loop._results.items()
        if result.meta.on_epoch and not result.has_reset  # logged in this epoch
    }
    return {"metrics": metrics, "results": results}


def restore_averages(trainer: Trainer, running: dict[str, Any]) -> None:
    """Go on with them: as if the task had updated and logged them already."""
    task, results = trainer.lightning_module, trainer.fit_loop.epoch_loop._results
    for key, saved in running["results"].items():
        attribute = saved["logged"]["metric_attribute"]
        value: Any = attribute and task.get_submodule(attribute)
        results.log(
            **saved["logged"],
            value=value or torch.zeros((), device=trainer.strategy.root_device),
            reduce_fx=getattr(torch, saved["reduce_fx"]),
            sync_dist=saved["sync_dist"],
            sync_dist_fn=trainer.strategy.reduce,
            rank_zero_only=saved["rank_zero_only"],
            batch_size=1,
        )
        if "state" in saved:
            _restore(results[key], saved)
    for name, saved in running["metrics"].items():
        _restore(task.get_submodule(name), saved)


def _state(metric: Any) -> dict[str, Any]:
    # Copies: the metric updates its own in place.
    state = {name: getattr(metric, name) for name in metric._defaults}
    return {"state": _copied(state, torch.device("cpu")), "updates": metric._update_count}


def _restore(metric: Any, saved: dict[str, Any]) -> None:
    for name, value in _copied(saved["state"], metric.device).items():
        setattr(metric, name, value)
    metric._update_count = saved["updates"]


def _copied(state: dict[str, Any], device: torch.device) -> dict[str, Any]:
    copied: dict[str, Any] = apply_to_collection(
        state, torch.Tensor, lambda tensor: tensor.detach().to(device, copy=True)
    )
    return copied
