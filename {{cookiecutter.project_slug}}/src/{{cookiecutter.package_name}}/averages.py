"""The running averages of an epoch, which Lightning leaves out of a checkpoint.

What `self.log(..., on_epoch=True)` has been given so far: without it the epoch in which a run goes
on would be logged as the average of its second part alone.
"""

from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.apply_func import move_data_to_device

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


def running_averages(results: Any) -> dict[str, Any]:
    """Those in a loop's results, as plain data: of tensors, and of metrics of the task."""
    running = {}
    for key, result in results.items():
        metric = result if result.is_tensor else result.value
        if not result.meta.on_epoch or not metric._update_count:
            continue
        state = {name: getattr(metric, name) for name in metric._defaults}
        running[key] = {
            "state": move_data_to_device(state, torch.device("cpu")),
            "updates": metric._update_count,
            "logged": {name: getattr(result.meta, name) for name in LOGGED},
            "reduce_fx": result.meta.reduce_fx.__name__,
            "sync_dist": result.meta.sync.should,
            "rank_zero_only": result.meta.sync.rank_zero_only,
        }
    return running


def restore_averages(trainer: Trainer, running: dict[str, Any]) -> None:
    """Log each once, as the task will, and put in the state that it had."""
    results = trainer.fit_loop.epoch_loop._results
    for key, saved in running.items():
        attribute = saved["logged"]["metric_attribute"]
        metric: Any = attribute and trainer.lightning_module.get_submodule(attribute)
        results.log(
            **saved["logged"],
            value=metric or torch.zeros((), device=trainer.strategy.root_device),
            reduce_fx=getattr(torch, saved["reduce_fx"]),
            sync_dist=saved["sync_dist"],
            sync_dist_fn=trainer.strategy.reduce,
            rank_zero_only=saved["rank_zero_only"],
            batch_size=1,
        )
        metric = metric or results[key]
        for name, value in move_data_to_device(saved["state"], metric.device).items():
            setattr(metric, name, value)
        metric._update_count = saved["updates"]
