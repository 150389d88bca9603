"""Lightning's training and validation loops without the parts that do nothing in this run.

What Lightning does around a batch takes as long as a small model's step: hooks that nobody has
overridden, empty contexts, metrics that nobody reads. `install` gives Lightning's own loop objects
methods that leave just that out. Everything else happens in Lightning's order, so results are the
same to the bit. Wherever a run needs more than these methods know, Lightning's own methods run.

Names of Lightning that are not public, checked in the versions of CHECKED. In other versions
nothing is installed.
    Trainer.fit_loop.epoch_loop, .val_loop             the loop objects
    _TrainingEpochLoop.advance, ._should_check_val_fx  replaced: a training batch
    _AutomaticOptimization._training_step, ._make_backward_fn, ._optimizer_step,
        ._on_before_zero_grad, ._optimizer_zero_grad   replaced: the parts of a training step
    _EvaluationLoop._evaluation_step                   replaced: a validation batch
    their counters, ._results, ._warning_cache         what the replaced methods read and write
    Trainer._logger_connector, ._val_check_time_interval, LightningModule._current_fx_name,
        ._on_before_batch_transfer, call._call_strategy_hook, _PrefetchDataFetcher    likewise
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import lightning
import torch
from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher
from lightning.pytorch.loops.optimization.automatic import ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

CHECKED = ("2.6.",)
BACKWARD = SingleDeviceStrategy.backward  # a plugin may patch it: then Lightning's loop runs
PRECISIONS = (Precision, HalfPrecision, MixedPrecision)
TRANSFER_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


def is_checked() -> bool:
    return lightning.__version__.startswith(CHECKED)


def install(trainer: Any) -> bool:
    """Make the trainer's fit loop fast, if it is one that we know. Return whether it is."""
    loop, precision = trainer.fit_loop.epoch_loop, trainer.precision_plugin
    if (
        not is_checked()
        or type(loop) is not _TrainingEpochLoop
        or type(trainer.strategy) is not SingleDeviceStrategy
        or type(precision) not in PRECISIONS
        or getattr(precision, "scaler", None) is not None
        or type(trainer.profiler) is not PassThroughProfiler
    ):
        return False
    loop.__class__ = FastLoop
    loop.automatic_optimization.__class__ = FastOptimization
    loop.val_loop.__class__ = FastValidation
    return True


class OverriddenHooks:
    """The hooks around a batch that somebody has overridden, found once per epoch.

    Lightning calls every hook of every callback and of the task, though most are empty.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer, self.task = trainer, trainer.lightning_module
        self.task_state = vars(self.task)  # as setting attributes of a module is slow
        self.device = trainer.strategy.root_device
        data = trainer.datamodule
        self.moves_batches = any(
            overrides(self.task, hook) or overrides(data, hook) for hook in TRANSFER_HOOKS
        )
        precision = trainer.precision_plugin
        self.has_context = type(precision) is not Precision
        zero_grad = getattr(trainer.optimizers[0].zero_grad, "__func__", None)
        own = overrides(self.task, "optimizer_zero_grad")
        self.zeroes_as_usual = zero_grad is torch.optim.Optimizer.zero_grad and not own
        self.takes_index: dict[str, bool] = {}
        self.callbacks: list[Callback] = []  # those for which `found` holds
        self.found: dict[str, list[Callable[..., Any]]] = {}

    def call(self, hook: str, *args: Any) -> None:
        """Call `hook` on every callback, then on the task."""
        callbacks = self.trainer.callbacks
        if self.callbacks != callbacks:
            self.callbacks, self.found = list(callbacks), {}
        if hook not in self.found:
            self.found[hook] = self._find(hook)
        if functions := self.found[hook]:
            before, self.task_state["_current_fx_name"] = self.task._current_fx_name, hook
            for function in functions:
                function(*args)
            self.task_state["_current_fx_name"] = before

    def call_task(self, hook: str, *args: Any, **kwargs: Any) -> Any:
        before, self.task_state["_current_fx_name"] = self.task._current_fx_name, hook
        output = getattr(self.task, hook)(*args, **kwargs)
        self.task_state["_current_fx_name"] = before
        return output

    def call_step(self, step: str, batch: Any, batch_idx: int) -> Any:
        """Call training_step or validation_step in the precision of the run."""
        precision = self.trainer.precision_plugin
        if step not in self.takes_index:
            function = getattr(self.task, step)
            self.takes_index[step] = is_param_in_hook_signature(function, "batch_idx", min_args=2)
        args = (batch, batch_idx) if self.takes_index[step] else (batch,)
        with precision.train_step_context() if self.has_context else nullcontext():
            return self.call_task(step, *args)

    def _find(self, hook: str) -> list[Callable[..., Any]]:
        theirs = [getattr(one, hook) for one in self.callbacks if overrides(one, hook)]
        own = [getattr(self.task, hook)] if overrides(self.task, hook) else []
        return [*(partial(function, self.trainer, self.task) for function in theirs), *own]

    def move(self, batch: Any) -> Any:
        """Return the batch on the device."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        if self.moves_batches:
            batch = self.task._on_before_batch_transfer(batch, dataloader_idx=0)
            step = "batch_to_device"
            return call._call_strategy_hook(self.trainer, step, batch, dataloader_idx=0)
        if type(batch) in (list, tuple, dict):
            parts = batch.values() if type(batch) is dict else batch
            if all(type(part) is Tensor and part.device == self.device for part in parts):
                return type(batch)(batch)  # a new list, as the task may change it
        return move_data_to_device(batch, self.device)


def overrides(owner: Any, hook: str) -> bool:
    """Return whether a callback, task or datamodule has a hook of its own, of whatever kind."""
    if owner is None:
        return False
    default = Callback if isinstance(owner, Callback) else LightningModule
    own = getattr(owner, hook)
    return callable(own) and getattr(own, "__func__", own) is not getattr(default, hook)


class FastLoop(_TrainingEpochLoop):
    hooks: OverriddenHooks | None = None  # None: Lightning's own methods run

    def run(self, data_fetcher: Any) -> None:
        try:
            super().run(data_fetcher)
        finally:
            with suppress(RuntimeError):  # of a GPU that has just failed
                self._show_metrics()
            self._set_hooks(None)

    def on_run_start(self, data_fetcher: Any) -> None:
        super().on_run_start(data_fetcher)
        trainer, task = self.trainer, self.trainer.lightning_module
        if (
            task.automatic_optimization
            and type(data_fetcher) is _PrefetchDataFetcher
            and trainer.world_size == 1
            and trainer.strategy.model is task
            and getattr(trainer.strategy.backward, "__func__", None) is BACKWARD
            and not overrides(task, "on_train_batch_start")  # it may end the epoch
        ):
            self._set_hooks(OverriddenHooks(trainer))

    def _set_hooks(self, hooks: OverriddenHooks | None) -> None:
        for loop in (self, self.automatic_optimization, self.val_loop):
            loop.hooks = hooks  # type: ignore[union-attr]

    def advance(self, data_fetcher: Any) -> None:
        if self.hooks is None or self.restarting:
            super().advance(data_fetcher)
            return
        trainer: Any = self.trainer
        hooks, progress, results = self.hooks, self.batch_progress, self._results
        connector = trainer._logger_connector
        batch, *_ = next(data_fetcher)
        batch_idx = self.batch_idx + 1
        progress.is_last_batch = data_fetcher.done
        batch = hooks.move(batch)
        progress.increment_ready()
        # None -> True -> False, as in Lightning
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None

        outputs: Any = None
        if batch is None:
            self._warning_cache.warn("train_dataloader yielded None.")
        else:
            hooks.call("on_train_batch_start", batch, batch_idx)
            progress.increment_started()
            step: Any = {"batch": batch, "batch_idx": batch_idx}
            outputs = self.automatic_optimization.run(trainer.optimizers[0], batch_idx, step)
        progress.increment_processed()
        self.update_lr_schedulers("step", update_plateau_schedulers=False)
        if self._num_ready_batches_reached():
            self.update_lr_schedulers("epoch", update_plateau_schedulers=False)

        hooks.call("on_train_batch_end", outputs, batch, batch_idx)
        results.batch = results.batch_size = None
        progress.increment_completed()
        every_n_steps = trainer.log_every_n_steps
        is_due = every_n_steps and (self._batches_that_stepped + 1) % every_n_steps == 0
        if is_due or trainer.should_stop or trainer.fast_dev_run:
            connector.update_train_step_metrics()

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        trainer: Any = self.trainer
        interval = trainer.val_check_batch
        if (
            self.hooks is not None
            and type(interval) is int
            and trainer.check_val_every_n_epoch is not None
            and trainer._val_check_time_interval is None
            and not trainer.should_stop
            and (self.batch_idx + 1) % interval != 0
        ):
            return False
        if is_due := super()._should_check_val_fx(data_fetcher):
            self._show_metrics()
        return is_due

    def _show_metrics(self) -> None:
        """Update the trainer's metrics, as Lightning does after each batch.

        Inside an epoch the trainer adds what was logged last whenever somebody reads its metrics.
        So it is enough to do this before the epoch ends or a validation begins.
        """
        connector = self.trainer._logger_connector
        if self.hooks is not None and connector._first_loop_iter is not None:
            connector.on_batch_end()


class FastOptimization(_AutomaticOptimization):
    hooks: OverriddenHooks | None = None

    def _training_step(self, kwargs: Any) -> ClosureResult:
        if self.hooks is None:
            return super()._training_step(kwargs)
        output = self.hooks.call_step("training_step", **kwargs)
        accumulated = self.trainer.accumulate_grad_batches
        if accumulated == 1 and isinstance(output, Tensor):
            return ClosureResult(output)  # Lightning divides it by 1
        return ClosureResult.from_training_step_output(output, accumulated)

    def _on_before_zero_grad(self, optimizer: Any) -> None:
        if self.hooks is None:
            super()._on_before_zero_grad(optimizer)
            return
        progress = self.optim_progress.optimizer.zero_grad
        progress.increment_ready()
        self.hooks.call("on_before_zero_grad", optimizer)
        progress.increment_started()

    def _optimizer_zero_grad(self, batch_idx: int, optimizer: Any) -> None:
        if self.hooks is None:
            super()._optimizer_zero_grad(batch_idx, optimizer)
            return
        if self.hooks.zeroes_as_usual:
            for group in optimizer.param_groups:  # PyTorch also reports this to its profiler
                for weight in group["params"]:
                    weight.grad = None
        else:
            epoch = self.trainer.current_epoch
            self.hooks.call_task("optimizer_zero_grad", epoch, batch_idx, optimizer)
        self.optim_progress.optimizer.zero_grad.increment_completed()

    def _make_backward_fn(self, optimizer: Any) -> Callable[[Tensor], None] | None:
        hooks = self.hooks
        if hooks is None or self._skip_backward:
            return super()._make_backward_fn(optimizer)

        def backward(loss: Tensor) -> None:
            hooks.call("on_before_backward", loss)
            hooks.call_task("backward", loss)
            hooks.call("on_after_backward")

        return backward

    def _optimizer_step(self, batch_idx: int, closure: Callable[[], Any]) -> None:
        hooks, trainer = self.hooks, self.trainer
        if hooks is None or overrides(hooks.task, "optimizer_step"):
            super()._optimizer_step(batch_idx, closure)
            return
        optimizer = trainer.optimizers[0]
        clip, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        clips = clip is not None or overrides(hooks.task, "configure_gradient_clipping")

        def closure_then_clip() -> Any:
            result = closure()
            hooks.call("on_before_optimizer_step", optimizer)
            if clips:
                options = {"gradient_clip_val": clip, "gradient_clip_algorithm": algorithm}
                hooks.call_task("configure_gradient_clipping", optimizer, **options)
            return result

        self.optim_progress.optimizer.step.increment_ready()
        optimizer.step(closure=closure_then_clip)
        self.optim_progress.optimizer.step.increment_completed()


class FastValidation(_EvaluationLoop):
    hooks: OverriddenHooks | None = None

    def _evaluation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int, dataloader_iter: Iterator[Any] | None
    ) -> None:
        hooks, trainer = self.hooks, self.trainer
        if hooks is None or self.num_dataloaders > 1 or dataloader_iter is not None:
            super()._evaluation_step(batch, batch_idx, dataloader_idx, dataloader_iter)
            return
        progress, connector = self.batch_progress, trainer._logger_connector
        batch = hooks.move(batch)
        progress.increment_ready()
        connector.on_batch_start(batch)
        hooks.call("on_validation_batch_start", batch, batch_idx)
        progress.increment_started()
        output = hooks.call_step("validation_step", batch, batch_idx)
        progress.increment_processed()
        hooks.call("on_validation_batch_end", output, batch, batch_idx)
        if any(one.meta.on_step for one in self._results.values()):
            connector.on_batch_end()
            connector.update_eval_step_metrics(self._seen_batches_per_dataloader[0])
        self._results.batch = self._results.batch_size = None
        progress.increment_completed()
        self._has_run = True
        self._seen_batches_per_dataloader[0] += 1
        if trainer.received_sigterm and not progress.is_last_batch:
            raise SIGTERMException
