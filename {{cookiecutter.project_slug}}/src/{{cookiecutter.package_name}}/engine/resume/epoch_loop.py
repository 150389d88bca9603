"""A run that stops between any two batches goes on as if it had not, to the same bits.

Three things make it so: before each batch every random number generator is seeded from its
position, so that none has a state to save; a checkpoint is taken only between two batches, where
nothing is half done; and what Lightning leaves out of it is put in. The order of the data is the
sampler's (data/tensors.py); how a file is written and found safely stands in storage.py.
"""

import hashlib
import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from ..errors import UserError
from ..parallel.consensus import Agreement
from ..run import Run
from ..signals import Signals
from ..speed.lean import LeanLoop
from ..speed.validation import LeanValidation
from .averages import restore_averages, running_averages
from .tensors import ReplayableSampler

log = logging.getLogger(__name__)

MAX_OVERHEAD = 0.02  # of the time of a short run, for its checkpoints
ASSUMED_SAVE_SECONDS = (
    0.2  # seconds that a checkpoint may take: none comes before that is MAX_OVERHEAD of the time
)
LONG_VALIDATION_SECONDS = 5  # seconds of a validation before which a checkpoint is taken


def seed_position(device: torch.device, *position: int) -> None:
    """Seed Python, NumPy, PyTorch and `device` from (seed, epoch, batch, rank, ...).

    Not torch.manual_seed, which asks every backend that there is and takes 300 times as long.
    """
    digest = hashlib.blake2b(repr(position).encode(), digest_size=4).digest()
    seed = int.from_bytes(digest, "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


class EpochLoop(LeanLoop):
    """Lightning's loop over the batches of an epoch, which can go on between any two of them.

    Lightning guesses from its counters where a checkpoint was taken, and where it guesses wrong it
    repeats or skips a validation, a scheduler's step or an epoch. Here there is nothing to guess.

    Args:
        trainer: gets this loop in place of its own.
        run: its checkpoints are these.
        seed: of every random number.
        every_n_minutes: how often to save in a long epoch; in short ones it is done at their
            starts, as often as it costs `MAX_OVERHEAD` of the time.
        every_n_steps: in place of both.
        training_limits: what ends the training; if it is another one, an end so far was none.
        stop: says when to save and end.
        device_name: whose bits these are.
        own: the checkpoint to go on from is of this run, not one that the user has chosen.
    """

    def __init__(
        self,
        trainer: Trainer,
        run: Run,
        *,
        seed: int,
        every_n_minutes: float,
        every_n_steps: int | None,
        training_limits: dict[str, Any],
        stop: Signals,
        device_name: str,
        own: bool,
    ) -> None:
        super().__init__(trainer, trainer.min_steps, trainer.max_steps)
        self.val_loop = ValidationLoop(
            trainer, TrainerFn.FITTING, RunningStage.VALIDATING, verbose=False, inference_mode=False
        )
        self.saved_run = run
        self.seed = seed
        self.every_n_minutes = every_n_minutes
        self.every_n_steps = every_n_steps
        self.watch_every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        self.agreement = Agreement(trainer)
        self.stop = stop
        # Lightning's own handler, if one of several processes gets a signal, waits for the others.
        trainer._signal_connector.register_signal_handlers = stop.take_over  # type: ignore[method-assign]
        self.training_limits = training_limits
        self.device_name = device_name
        self.own = own
        self.saves = not (trainer.fast_dev_run or trainer.checkpoint_callback is None)  # type: ignore[attr-defined]
        self.saved_at, self.saved_step = time.monotonic(), 0
        self.seconds_to_save = ASSUMED_SAVE_SECONDS  # until one has been
        # A call of a callback takes as long as all of this loop's own work.
        self.automatic_optimization.run = self._watched(self.automatic_optimization.run)  # type: ignore[method-assign]
        self.manual_optimization.run = self._watched(self.manual_optimization.run)  # type: ignore[method-assign]
        self.losses: float | torch.Tensor = 0.0  # their sum: nan or infinite if one was
        self.accumulate: int | None = None
        self.stepped_to = 0  # global_step at the end of the last batch but one
        # A checkpoint was taken after a batch, before its validation.
        self.before_validation = False
        self.seconds_to_validate = 0.0
        # As they were when max_steps or the like ended the epoch: its end empties them.
        self.averages: dict[str, Any] | None = None

    # How an epoch begins, and goes on.

    def reset(self) -> None:
        fit_loop = self.trainer.fit_loop
        # Lightning leaves this on for the epoch, and no plateau scheduler is stepped at its end.
        for loop in (fit_loop, self, self.val_loop):
            loop._restarting = False
        if not fit_loop.restarted_mid_epoch:
            super().reset()

    def on_run_start(self, data_fetcher: Any) -> None:
        self.stop.deferred = True
        if self.trainer.current_epoch > 0:
            self._seed(-1)  # DataLoader(shuffle=True) draws the order of the epoch
        if self.trainer.fit_loop.is_resuming:
            if self.trainer.fit_loop.restarted_mid_epoch and self.accumulate is not None:
                # GradientAccumulationScheduler sets it in on_train_epoch_start, which has been.
                self.trainer.accumulate_grad_batches = self.accumulate
            batch = self.batch_progress.current.ready
            self._go_to(batch, data_fetcher)
            # Lightning would begin the averages anew, as at the first batch of an epoch.
            self.trainer._logger_connector._first_loop_iter = False if batch else None
        super().on_run_start(data_fetcher)
        if self.before_validation:
            self.before_validation, self.saved_step = False, -1  # there is more to save after it
            self.on_advance_end(data_fetcher)

    def _go_to(self, batch: int, data_fetcher: Any) -> None:
        """Make `batch` the next one. Lightning has called iter() before it knew the epoch."""
        loaders = data_fetcher.combined_loader.flattened
        sampler = getattr(loaders[0], "sampler", None)
        if len(loaders) == 1 and isinstance(sampler, ReplayableSampler):
            sampler.start = batch * (loaders[0].batch_size or 1)
            iter(data_fetcher)
            return
        if self.trainer.current_epoch > 0:
            # It may fetch a batch in advance, as it does when an epoch begins without a resume.
            data_fetcher._start_profiler = lambda: self._seed(0)
            iter(data_fetcher)
        for skipped in range(batch):
            data_fetcher._start_profiler = partial(self._seed, skipped)
            next(data_fetcher)
        data_fetcher.fetched = 0  # on_run_start adds them

    def advance(self, data_fetcher: Any) -> None:
        # Inside an accumulation, a task's own too, the gradients so far are in no checkpoint.
        task, step = self.trainer.lightning_module, self.trainer.global_step
        first = self.batch_progress.current.ready == 0 and task.automatic_optimization
        if first or step != self.stepped_to:
            self._between_batches()
        self.stepped_to = step
        super().advance(data_fetcher)

    def _between_batches(self) -> None:
        if self.batch_progress.current.ready % self.watch_every == 0:
            self._refuse_non_finite()
        due, stopped = self._due(), self.stop.signal is not None
        if self.trainer.world_size > 1:
            # Of steps all have the same count, and of seconds not.
            at_once = due and self.every_n_steps is not None
            if at_once or self.batch_progress.current.ready == 0 or self.agreement.is_time():
                due, stopped = self.agreement.any(due, stopped)
            else:
                due, stopped = False, False
        if due or stopped:
            self.save()
            if stopped:
                self.stop.exit()

    def any_process(self, wants: bool) -> bool:
        return self.agreement.any(wants)[0] if self.trainer.world_size > 1 else wants

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: Lightning makes the devices wait for each other here, before every batch."""

    def on_advance_end(self, data_fetcher: Any) -> None:
        started = time.monotonic()
        validates = self._should_check_val_fx(data_fetcher)
        long = self.seconds_to_validate > max(
            LONG_VALIDATION_SECONDS, self.seconds_to_save / MAX_OVERHEAD
        )
        if validates and self.any_process(long) and self.trainer.global_step != self.stepped_to:
            # So that a signal need not wait for its end. Within, the weights may be averaged ones.
            self.before_validation = True
            self.save()
        super().on_advance_end(data_fetcher)
        self.before_validation = False
        if validates:
            self.seconds_to_validate = time.monotonic() - started
        if self._num_ready_batches_reached():
            self._refuse_non_finite()
        elif self.done:
            self.averages = running_averages(self.trainer)

    def _on_before_fetch(self) -> None:
        super()._on_before_fetch()
        self._seed(self.batch_progress.current.ready)

    def between_validation_batches(self, batch: int) -> None:
        if self.trainer.sanity_checking:
            return
        if self.before_validation and self.stop.signal is not None:
            self.stop.exit()  # of several processes, torchrun ends the others
        self._seed(self.batch_progress.current.ready, batch)

    def _seed(self, *batch: int) -> None:
        trainer = self.trainer
        position = (self.seed, trainer.current_epoch, trainer.global_rank, *batch)
        seed_position(trainer.strategy.root_device, *position)

    def teardown(self) -> None:
        self.stop.deferred = False
        super().teardown()

    def _watched(self, optimize: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            outputs = optimize(*args)
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            if isinstance(loss, torch.Tensor):
                self.losses = self.losses + loss.detach()
            return outputs

        return watched

    def _refuse_non_finite(self) -> None:
        """Lightning would train on. A GPU must wait for this, so it is not done at every step."""
        if not math.isfinite(self.losses):
            epoch, step = self.trainer.current_epoch + 1, self.trainer.global_step
            raise UserError(
                f"The loss or a weight became nan or infinite by epoch {epoch}, step {step}: lower"
                " optimizer.lr, set trainer.gradient_clip_val,"
                " or look at the data; the checkpoints from before are kept."
            )
        self.losses = 0.0

    # When and what is saved.

    def _due(self) -> bool:
        step = self.trainer.global_step
        if not self.saves or step == self.saved_step:
            return False
        if self.every_n_steps is not None:
            return step - self.saved_step >= self.every_n_steps
        waited = time.monotonic() - self.saved_at
        if waited < self.seconds_to_save / MAX_OVERHEAD:
            return False
        return self.batch_progress.current.ready == 0 or waited >= 60 * self.every_n_minutes

    def save(self) -> None:
        """Write a checkpoint of what is now, and keep it and the one before.

        Raises:
            UserError: a loss or a weight is no number, which would spoil it.
        """
        if not self.saves or self.trainer.global_step == self.saved_step:
            return
        started = time.monotonic()
        # A step can spoil the weights after a loss that was still a number.
        weights = self.trainer.lightning_module.parameters()
        trained = [weight.detach() for weight in weights if weight.requires_grad]
        norm: Any = torch.nn.utils.get_total_norm(trained)
        self.losses = self.losses + (norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self._refuse_non_finite()
        for logger in self.trainer.loggers:
            logger.save()  # so that it has all that was logged before
        path = self.saved_run.checkpoint(self.trainer.global_step)
        self.trainer.save_checkpoint(path, weights_only=False)
        if self.trainer.is_global_zero:
            self.saved_run.prune()
            self.saved_run.push()
        self.saved_at, self.saved_step = time.monotonic(), self.trainer.global_step
        self.seconds_to_save = self.saved_at - started

    def on_save_checkpoint(self) -> dict[str, Any]:
        connector = self.trainer._logger_connector
        running = [self.averages or running_averages(self.trainer)]
        if self.trainer.world_size > 1:
            running *= self.trainer.world_size
            dist.all_gather_object(running, running[0])
        return super().on_save_checkpoint() | {
            "step": self.trainer.global_step,
            "before_validation": self.before_validation,
            "cut_off": self.averages is not None,
            "should_stop": self.trainer.should_stop,
            "training_limits": self.training_limits,
            "accumulate": self.trainer.accumulate_grad_batches,
            "running": running,
            # A scheduler or callback may look at the last validation's.
            "callback_metrics": dict(connector._callback_metrics),
            "progress_bar_metrics": dict(connector._progress_bar_metrics),
            "rows": [getattr(logger, "rows", None) for logger in self.trainer.loggers],
            "made_on": self._made_on(),
        }

    def on_load_checkpoint(self, state_dict: dict[str, Any]) -> None:
        super().on_load_checkpoint(state_dict)
        self._compare(state_dict["made_on"])
        self.saved_at, self.stepped_to = time.monotonic(), state_dict["step"]
        self.before_validation = state_dict["before_validation"]
        if self.own:
            self.saved_step, self.accumulate = state_dict["step"], state_dict["accumulate"]
        # Where everything is done here, a loader that has a state must not get it.
        self.trainer.fit_loop._combined_loader_states_to_load = []
        if self.own and state_dict["training_limits"] == self.training_limits:
            self.trainer.should_stop = state_dict["should_stop"]
        elif state_dict["cut_off"]:  # Lightning has counted that epoch as a whole one
            progress = self.trainer.fit_loop.epoch_progress
            for count in (progress.total, progress.current):
                count.processed -= 1  # type: ignore[attr-defined]
                count.completed -= 1
        connector = self.trainer._logger_connector
        connector._callback_metrics.update(state_dict["callback_metrics"])
        connector._progress_bar_metrics.update(state_dict["progress_bar_metrics"])
        for logger, rows in zip(self.trainer.loggers, state_dict["rows"], strict=False):
            if rows is not None and hasattr(logger, "rows"):
                logger.rows = rows
        ranks = len(state_dict["running"])
        restore_averages(self.trainer, state_dict["running"][self.trainer.global_rank % ranks])

    # Where the same bits cannot be promised.

    def _made_on(self) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "devices": trainer.world_size,
            "strategy": type(trainer.strategy).__name__,
            "accelerator": trainer.strategy.root_device.type,
            "device": self.device_name,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }

    def _compare(self, saved: dict[str, Any]) -> None:
        here = self._made_on()
        if saved["devices"] != here["devices"] and self.own:
            raise UserError(
                f"This run has {saved['devices']} devices, not {here['devices']}: take"
                f" trainer.devices={saved['devices']}, or resume=never to start a new run, or"
                " ckpt_path=CHECKPOINT to go on all the same."
            )
        if here["accelerator"] != "cpu":
            del here["threads"]  # they compute nothing
        other = [what for what in here if saved.get(what, here[what]) != here[what]]
        if other:
            was, now = (", ".join(f"{what} {of[what]}" for what in other) for of in (saved, here))
            hint = f" (OMP_NUM_THREADS={saved['threads']} would)" if other == ["threads"] else ""
            log.warning(f"Saved with {was}; with {now} it goes on, but not to the same bits{hint}.")


class ValidationLoop(LeanValidation):
    """Lightning's, which can be stopped, and whose random numbers follow from the position."""

    def run(self) -> Any:
        with torch.compiler.set_stance("force_eager"):  # compiling.py says why
            return super().run()

    def _on_before_fetch(self) -> None:
        super()._on_before_fetch()
        epoch_loop = self.trainer.fit_loop.epoch_loop
        assert isinstance(epoch_loop, EpochLoop)
        epoch_loop.between_validation_batches(self.batch_progress.current.ready)
