"""What somebody has written to be called around a training batch, looked up once an epoch.

Lightning calls every hook of every callback, the task and the datamodule, most of them empty.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

ZERO_GRAD = torch.optim.Optimizer.zero_grad


def written(hook: str, *owners: Any) -> bool:
    """Whether one of them has a hook of its own."""
    return any(owner is not None and is_overridden(hook, owner) for owner in owners)


class Hooks:
    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.task = trainer, trainer.lightning_module
        self.device = trainer.strategy.root_device
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.moves = written("transfer_batch_to_device", self.task, data)
        owner = data if written("on_after_batch_transfer", data) else self.task
        self.after_move = owner.on_after_batch_transfer
        precision = trainer.precision_plugin
        lower = type(precision) is not Precision
        self.context: Any = precision.train_step_context if lower else nullcontext
        zero_grad = getattr(trainer.optimizers[0].zero_grad, "__func__", None)
        self.zeroes = written("optimizer_zero_grad", self.task) or zero_grad is not ZERO_GRAD
        self.intervals = {config.interval for config in trainer.lr_scheduler_configs}
        self.found: dict[str, list[Callable[..., Any]]] = {}
        self.takes_index: dict[str, bool] = {}

    def call(self, hook: str, *args: Any) -> None:
        """Of each callback, then of the task."""
        if hook not in self.found:
            self.found[hook] = self._find(hook)
        if functions := self.found[hook]:
            before, self.task._current_fx_name = self.task._current_fx_name, hook  # for self.log
            for function in functions:
                function(*args)
            self.task._current_fx_name = before

    def step(self, name: str, batch: Any, batch_idx: int) -> Any:
        """The training_step or validation_step, in the precision of the run."""
        function = getattr(self.task, name)
        if name not in self.takes_index:
            self.takes_index[name] = is_param_in_hook_signature(function, "batch_idx", min_args=2)
        before, self.task._current_fx_name = self.task._current_fx_name, name
        with self.context():
            output = function(batch, batch_idx) if self.takes_index[name] else function(batch)
        self.task._current_fx_name = before
        return output

    def _find(self, hook: str) -> list[Callable[..., Any]]:
        callbacks: Any = self.trainer.callbacks  # type: ignore[attr-defined]
        theirs = [getattr(callback, hook) for callback in callbacks if written(hook, callback)]
        own = [getattr(self.task, hook)] if written(hook, self.task) else []
        return [*(partial(function, self.trainer, self.task) for function in theirs), *own]

    def move(self, batch: Any) -> Any:
        """A batch, on the device."""
        if self.moves or not self._is_there(batch):
            return call._call_strategy_hook(
                self.trainer, "batch_to_device", batch, dataloader_idx=0
            )
        return self.after_move(batch, 0)

    def _is_there(self, batch: Any) -> bool:
        return isinstance(batch, list | tuple) and all(
            isinstance(part, torch.Tensor) and part.device == self.device for part in batch
        )
