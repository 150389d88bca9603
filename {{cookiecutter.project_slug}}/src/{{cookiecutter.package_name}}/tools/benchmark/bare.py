"""The loop that a person would write: what Lightning is measured against."""

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
from ...engine.resume.epoch_loop import seed_position


class BareLoop:
    """Forward, backward, clip, step, and nothing else.

    Lightning has built and placed everything, as for its own loop, so that the weights, the
    optimizer, the schedule, the precision and the loader are the same; then this runs in its place.
    There are no callbacks, no logging, no hooks of the task, no counters and no validation.

    Args:
        trainer: in the middle of `fit`.
        task: only its training_step is called.
        seed: of the random numbers of each epoch.
        same_noise: seed them before each batch too, as this project does (resume.py): then the
            losses are the same, and not only the work.
    """

    def __init__(
        self, trainer: Trainer, task: LightningModule, seed: int, *, same_noise: bool = False
    ) -> None:
        if not task.automatic_optimization:
            raise UserError(
                f"{type(task).__name__} steps its optimizers itself: there is no bare loop of it."
            )
        self.device = trainer.strategy.root_device
        self.trainer, self.task, self.precision = trainer, task, trainer.precision_plugin
        self.seed, self.same_noise = seed, same_noise
        trainer.fit_loop.setup_data()
        loader: Any = trainer.train_dataloader
        if isinstance(loader, Mapping | list | tuple):
            raise UserError("The data has several loaders: there is no bare loop of them.")
        self.loader = loader
        (self.optimizer,) = trainer.optimizers
        for silent in ("log", "log_dict"):  # Lightning's would miss its own loop
            setattr(task, silent, lambda *args, **kwargs: None)
        with_index = len(inspect.signature(task.training_step).parameters) > 1
        self.training_step: Callable[..., Any] = (
            task.training_step if with_index else lambda batch, _: task.training_step(batch)
        )

    def run(self) -> None:
        """Epoch after epoch; the clock ends it."""
        optimizer, num_batches = self.optimizer, self.trainer.num_training_batches
        accumulate = self.trainer.accumulate_grad_batches
        take = self._on_device()
        for epoch in itertools.count():
            if hasattr(getattr(self.loader, "sampler", None), "set_epoch"):
                self.loader.sampler.set_epoch(epoch)
            if epoch:
                self._seed(epoch, -1)
            for index, batch in enumerate(self.loader):
                if self.same_noise:
                    self._seed(epoch, index)
                batch = take(batch)
                with self.precision.forward_context():
                    outputs = self.training_step(batch, index)
                last = index + 1 == num_batches
                self._backward(outputs, accumulate)
                if (index + 1) % accumulate == 0 or last:
                    self._step()
                    optimizer.zero_grad()
                    self._step_schedules("step", index + 1)
                if last:
                    break
            self._step_schedules("epoch", epoch + 1)

    def one_batch(self) -> Any:
        """The first one, on the device."""
        return self._on_device()(next(iter(self.loader)))

    def backward_of(self, batch: Any) -> None:
        """Forward and backward alone."""
        with self.precision.forward_context():
            outputs = self.training_step(batch, 0)
        self._backward(outputs, 1)

    def _seed(self, epoch: int, index: int) -> None:
        seed_position(self.device, self.seed, epoch, 0, index)

    def _on_device(self) -> Callable[[Any], Any]:
        """What brings a batch to the device, with the hooks of the data where there are any."""
        hooks: list[Callable[[Any], Any]] = [self.precision.convert_input]
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        pinned = bool(getattr(self.loader, "pin_memory", False))
        move = partial(
            tree_map_only, Tensor, lambda tensor: tensor.to(self.device, non_blocking=pinned)
        )
        for name, arguments, by_hand in (
            ("on_before_batch_transfer", (0,), None),
            ("transfer_batch_to_device", (self.device, 0), move),
            ("on_after_batch_transfer", (0,), None),
        ):
            owner = next((has for has in (data, self.task) if is_overridden(name, has)), None)
            if owner is not None:
                hooks.append(partial(_call, getattr(owner, name), arguments))
            elif by_hand is not None:
                hooks.append(by_hand)

        def take(batch: Any) -> Any:
            for hook in hooks:
                batch = hook(batch)
            return batch

        return take

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
            # A plateau is one of the validation, which there is none of.
            due = config.interval == interval and count % config.frequency == 0
            if due and not config.reduce_on_plateau:
                config.scheduler.step()  # type: ignore[call-arg]


def _call(hook: Callable[..., Any], arguments: tuple[Any, ...], batch: Any) -> Any:
    return hook(batch, *arguments)
