"""Lightning's loop over the batches of an epoch, without what does nothing in this run.

What Lightning does around a batch takes as long as the step of a small model: hooks that nobody has
written, contexts that are empty, metrics that have not changed. Here only that is left out; what is
called comes in Lightning's order. Where more is to do than this knows (several devices, a loss
scale, gradients accumulated over batches, optimization by hand, a profiler), Lightning's own runs.
"""

from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection

from .hooks import Hooks, written
from .validation import LeanValidation

PRECISIONS = (Precision, HalfPrecision, MixedPrecision)
# Of a task or datamodule that has one of these, Lightning's own loop takes care.
RARE = ("optimizer_step", "on_train_batch_start", "on_before_batch_transfer")


class LeanLoop(_TrainingEpochLoop):
    hooks: Hooks | None = None  # None: Lightning's own loop runs

    def __init__(self, trainer: Trainer, min_steps: int | None, max_steps: int) -> None:
        super().__init__(trainer, min_steps, max_steps)
        self._results = Results(training=True)
        self.automatic_optimization: LeanOptimization = LeanOptimization(trainer)

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        self.hooks = Hooks(self.trainer) if self._is_usual(data_fetcher) else None
        self.automatic_optimization.hooks = self.hooks
        if isinstance(self.val_loop, LeanValidation):
            self.val_loop.hooks = self.hooks

    def _is_usual(self, data_fetcher: Any) -> bool:
        trainer: Any = self.trainer
        task, precision = trainer.lightning_module, trainer.precision_plugin
        return (
            task.automatic_optimization
            and trainer.accumulate_grad_batches == 1
            and type(data_fetcher) is _PrefetchDataFetcher
            and type(trainer.strategy) is SingleDeviceStrategy
            and type(precision) in PRECISIONS
            and getattr(precision, "scaler", None) is None
            and type(trainer.profiler) is PassThroughProfiler
            and not any(written(hook, task, trainer.datamodule) for hook in RARE)
        )

    def advance(self, data_fetcher: Any) -> None:
        if self.hooks is None or self.restarting:
            super().advance(data_fetcher)
            return
        trainer, hooks, progress = self.trainer, self.hooks, self.batch_progress
        connector, results = trainer._logger_connector, self._results
        batch, *_ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = hooks.move(trainer.precision_plugin.convert_input(batch))
        progress.increment_ready()
        connector._first_loop_iter = connector._first_loop_iter is None
        connector._current_fx = None  # until something is logged
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None

        outputs: Any = None
        if batch is not None:
            hooks.call("on_train_batch_start", batch, batch_idx)
            progress.increment_started()
            taken: Any = {"batch": batch}
            outputs = self.automatic_optimization.run(trainer.optimizers[0], batch_idx, taken)
        progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)

        hooks.call("on_train_batch_end", outputs, batch, batch_idx)
        if connector._current_fx is not None:
            connector.on_batch_end()
        results.batch, results.batch_size = None, None
        progress.increment_completed()
        connector.update_train_step_metrics()

    def update_lr_schedulers(self, interval: str, update_plateau_schedulers: bool) -> None:
        if self.hooks is None or interval in self.hooks.intervals:
            super().update_lr_schedulers(interval, update_plateau_schedulers)

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        trainer: Any = self.trainer
        if (
            isinstance(trainer.val_check_batch, int)
            and trainer.check_val_every_n_epoch is not None
            and trainer._val_check_time_interval is None
            and not trainer.should_stop
            and (self.batch_idx + 1) % trainer.val_check_batch
        ):
            return False  # without looking at what is the same in the whole epoch
        return super()._should_check_val_fx(data_fetcher)


class LeanOptimization(_AutomaticOptimization):
    hooks: Hooks | None = None

    def run(self, optimizer: Any, batch_idx: int, kwargs: Any) -> dict[str, Any]:
        if self.hooks is None:
            return super().run(optimizer, batch_idx, kwargs)
        outputs: dict[str, Any] = {}

        def closure() -> torch.Tensor | None:
            with torch.enable_grad():
                loss = self._forward(kwargs["batch"], batch_idx, outputs)
                self._zero_grad(batch_idx, optimizer)
                self._backward(loss, optimizer)
            return outputs.get("loss")

        self.optim_progress.optimizer.step.increment_ready()
        optimizer.step(closure)
        self.optim_progress.optimizer.step.increment_completed()
        return outputs

    def _forward(self, batch: Any, batch_idx: int, outputs: dict[str, Any]) -> Any:
        assert self.hooks is not None
        loss: Any = self.hooks.step("training_step", batch, batch_idx)
        extra: dict[str, Any] = {}
        if not isinstance(loss, torch.Tensor):  # but a dict, or None
            result = ClosureResult.from_training_step_output(loss)
            loss, extra = result.closure_loss, result.extra
        if loss is not None:
            outputs.update(loss=loss.detach(), **extra)
        return loss

    def _zero_grad(self, batch_idx: int, optimizer: Any) -> None:
        assert self.hooks is not None
        progress = self.optim_progress.optimizer.zero_grad
        progress.increment_ready()
        self.hooks.call("on_before_zero_grad", optimizer)
        progress.increment_started()
        if self.hooks.zeroes:
            task = self.trainer.lightning_module
            task.optimizer_zero_grad(self.trainer.current_epoch, batch_idx, optimizer)
        else:  # as PyTorch's own does, which tells it to a profiler, too
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    weight.grad = None
        progress.increment_completed()

    def _backward(self, loss: torch.Tensor | None, optimizer: Any) -> None:
        trainer, hooks = self.trainer, self.hooks
        assert hooks is not None
        if loss is not None:
            hooks.call("on_before_backward", loss)
            trainer.lightning_module.backward(loss)
            hooks.call("on_after_backward")
        hooks.call("on_before_optimizer_step", optimizer)
        trainer.lightning_module.configure_gradient_clipping(
            optimizer,
            gradient_clip_val=trainer.gradient_clip_val,
            gradient_clip_algorithm=trainer.gradient_clip_algorithm,
        )


class Results(_ResultCollection):
    """What `self.log` has been given. Lightning's moves it to its device at every call."""

    def __setitem__(self, key: str, result: Any) -> None:
        move = result.to

        def to(device: torch.device) -> Any:
            return result if result.is_tensor and result.value.device == device else move(device)

        result.to = to
        super().__setitem__(key, result)
