"""The loop that a person would write: what Lightning is compared with."""

import inspect
import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils._pytree import tree_map_only

from ...engine.errors import UserError


class BareLoop:
    """Forward, backward, clip, step, and nothing else.

    Lightning has built and placed everything as for its own loop, so weights, optimizer, schedule,
    precision and loader (with its order and random numbers) are the same. Then this loop runs
    instead: no callbacks, no logging, no hooks of the task, no counters and no validation.

    Args:
        trainer: in the middle of `fit`.
        task: only its training_step is called.
    """

    def __init__(self, trainer: Trainer, task: LightningModule) -> None:
        if not task.automatic_optimization:
            raise UserError(
                f"{type(task).__name__} steps its optimizers itself: there is no bare loop of it."
            )
        self.device = trainer.strategy.root_device
        self.trainer, self.task, self.precision = trainer, task, trainer.precision_plugin
        trainer.fit_loop.setup_data()
        loader: Any = trainer.train_dataloader
        if isinstance(loader, Mapping | list | tuple):
            raise UserError("The data has several loaders: there is no bare loop of them.")
        self.loader = loader
        (self.optimizer,) = trainer.optimizers
        for logging in ("log", "log_dict"):  # Lightning's would miss its own loop
            setattr(task, logging, lambda *args, **kwargs: None)
        with_index = len(inspect.signature(task.training_step).parameters) > 1
        self.training_step: Callable[..., Any] = (
            task.training_step if with_index else lambda batch, _: task.training_step(batch)
        )

    def run(self) -> None:
        """Train epoch after epoch, until the clock raises `Over`."""
        num_batches, accumulate = (
            self.trainer.num_training_batches,
            self.trainer.accumulate_grad_batches,
        )
        to_device = self._to_device()
        for epoch in itertools.count():
            for index, batch in enumerate(self.loader):
                batch = to_device(batch)
                with self.precision.forward_context():
                    outputs = self.training_step(batch, index)
                self._backward(outputs, accumulate)
                last = index + 1 == num_batches
                if (index + 1) % accumulate == 0 or last:
                    self._step()
                    self.optimizer.zero_grad()
                    self._step_schedules("step", index + 1)
                if last:
                    break
            self._step_schedules("epoch", epoch + 1)
            self.trainer.fit_loop.epoch_progress.increment_completed()  # the loader asks for it

    def one_batch(self) -> Any:
        """Return the first batch, on the device."""
        return self._to_device()(next(iter(self.loader)))

    def backward_of(self, batch: Any) -> None:
        """Compute forward and backward of one batch."""
        with self.precision.forward_context():
            outputs = self.training_step(batch, 0)
        self._backward(outputs, 1)

    def _to_device(self) -> Callable[[Any], Any]:
        """Return what moves a batch to the device, with the hooks of the data if it has some."""
        hooks: list[Callable[[Any], Any]] = [self.precision.convert_input]
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        pinned = self.device.type == "cuda"
        move = partial(
            tree_map_only, Tensor, lambda tensor: tensor.to(self.device, non_blocking=pinned)
        )
        for name, arguments, default in (
            ("on_before_batch_transfer", (0,), None),
            ("transfer_batch_to_device", (self.device, 0), move),
            ("on_after_batch_transfer", (0,), None),
        ):
            owner = next((has for has in (data, self.task) if is_overridden(name, has)), None)
            if owner is not None:
                hooks.append(partial(_call, getattr(owner, name), arguments))
            elif default is not None:
                hooks.append(default)

        def to_device(batch: Any) -> Any:
            for hook in hooks:
                batch = hook(batch)
            return batch

        return to_device

    def _backward(self, outputs: Any, accumulate: int) -> None:
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        if loss is None:  # the task leaves this batch out
            return
        if accumulate > 1:
            loss = loss / accumulate
        scaler = getattr(self.precision, "scaler", None)
        (loss if scaler is None else scaler.scale(loss)).backward()

    def _step(self) -> None:
        scaler = getattr(self.precision, "scaler", None)
        if limit := self.trainer.gradient_clip_val:
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            clip = clip_grad_norm_
            if self.trainer.gradient_clip_algorithm == "value":
                clip = clip_grad_value_  # type: ignore[assignment]
            clip([p for group in self.optimizer.param_groups for p in group["params"]], limit)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()

    def _step_schedules(self, interval: str, count: int) -> None:
        for config in self.trainer.lr_scheduler_configs:
            due = config.interval == interval and count % config.frequency == 0
            if due and not config.reduce_on_plateau:  # a plateau is one of the validation
                config.scheduler.step()  # type: ignore[call-arg]


def _call(hook: Callable[..., Any], arguments: tuple[Any, ...], batch: Any) -> Any:
    return hook(batch, *arguments)
