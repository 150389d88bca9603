"""What `self.log` and the metrics of a task have gathered in an epoch.

Lightning leaves it out of a checkpoint, so the epoch of a resume would be logged as the mean of its
second part.
"""

import logging
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities import move_data_to_device
from torchmetrics import Metric, MetricTracker

from .internals import read, write

log = logging.getLogger(__name__)


class Logged:
    """The sums, the metrics' states and the last values of the training epoch.

    After a resume Lightning starts every sum at zero. The saved part is added when the task first
    logs the key; a key that is not logged again is logged once at the epoch's end.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.task = trainer.lightning_module
        self.results = read(trainer.fit_loop.epoch_loop, "_results")
        self.pending: dict[str, Any] = {}  # sums that were restored and not logged again yet

    def state(self) -> dict[str, Any]:
        metrics = {
            name: (module.update_count, module.metric_state)
            for name, module in self.task.named_modules()
            if isinstance(module, Metric) and module.update_count
        }
        sums = {
            key: {
                "name": result.meta.forked_name(False),
                "prog_bar": result.meta.prog_bar,
                "logger": result.meta.logger,
                "reduce_fx": result.meta.reduce_fx.__name__,
                "sync_dist": result.meta.sync.should,
                "metric": result.meta.metric_attribute,
                "state": result.metric_state if result.is_tensor else {},
            }
            for key, result in self.results.items()
            if result.meta.on_epoch and not result.has_reset
        }
        # Lightning logs the value of a step again at each next step, until there is a new one.
        last = self.results.metrics(on_step=True)
        steps = {
            name: (value, name in last["pbar"])
            for name, value in last["log"].items()
            if f"on_train_batch_start.{name}" not in self.results
        }
        state = {
            "trackers": {name: tracker.n_steps for name, tracker in self._trackers().items()},
            "metrics": metrics,
            "sums": sums | self.pending,
            "steps": steps,
        }
        return move_data_to_device(state, torch.device("cpu"))

    def restore(self, state: dict[str, Any]) -> None:
        """Called in `on_train_batch_start`, where Lightning lets a task log."""
        for name, tracker in self._trackers().items():  # each step of it is a metric of its own
            while tracker.n_steps < state.get("trackers", {}).get(name, 0):
                tracker.increment()
        modules = dict(self.task.named_modules())
        for name, (count, values) in state["metrics"].items():
            metric: Any = modules.get(name)
            if metric is None:
                log.warning(f"The metric {name} is not there at the start, and begins empty.")
                continue
            for key, value in move_data_to_device(values, metric.device).items():
                setattr(metric, key, value)
            write(metric, "_update_count", count)
        for name, (value, prog_bar) in state["steps"].items():
            # With a batch size, since training_step(dataloader_iter) has no batch here.
            self.task.log(
                name, value, prog_bar=prog_bar, on_step=True, on_epoch=False, batch_size=1
            )
        self.pending = dict(state["sums"])
        if self.pending:
            self.results.log = self._log

    def _trackers(self) -> dict[str, MetricTracker]:
        modules = self.task.named_modules()
        return {name: module for name, module in modules if isinstance(module, MetricTracker)}

    def _log(self, fx: str, name: str, *args: Any, **kwargs: Any) -> None:
        """Log as Lightning does, and add what was logged under this name before the resume."""
        type(self.results).log(self.results, fx, name, *args, **kwargs)
        if saved := self.pending.pop(f"{fx}.{name}", None):
            result = self.results[f"{fx}.{name}"]
            add = result.meta.reduce_fx if saved["reduce_fx"] in ("max", "min") else torch.add
            for key, value in saved["state"].items():
                setattr(result, key, add(value.to(result.device), getattr(result, key)))

    def end_epoch(self) -> None:
        """Log a zero for keys not logged since the resume, so that the saved part is added."""
        left, self.pending = list(self.pending.values()), {}
        for saved in left:
            name, value = saved["name"], saved["state"].get("value")
            if value is None:
                value = self.task.get_submodule(saved["metric"])
            else:
                self.pending[f"on_train_epoch_end.{name}"] = saved
                value = value if saved["reduce_fx"] in ("max", "min") else 0.0
            how = {key: saved[key] for key in ("prog_bar", "logger", "reduce_fx", "sync_dist")}
            self.task.log(name, value, on_step=False, on_epoch=True, batch_size=0, **how)
        vars(self.results).pop("log", None)
