"""Exact resume on Lightning's own fit loop: after any kill, the same command gives the same bits.

A checkpoint is taken at the start of a batch, where nothing is half done, and what Lightning leaves
out of one is put in. Random numbers and the order of the data follow from the position.
"""

import logging
import math
from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import lightning
import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer

from ..errors import UserError
from ..parallel.consensus import Agreement
from . import state
from .due import is_last_step, validation_follows
from .internals import CHECKED, IS_CHECKED, read, write
from .loaders import ResumableLoader, ended_loaders
from .logged import Logged
from .made_on import made_on, warn_if_not_exact
from .position import Position

if TYPE_CHECKING:
    from ..run.folder import RunFolder
    from ..run.signals import Signals

log = logging.getLogger(__name__)

MAX_OVERHEAD = 0.02  # of the time, for checkpoints
ASSUMED_SAVE_SECONDS = 0.2  # of the first checkpoint, which therefore waits for 10 s
LONG_VALIDATION_SECONDS = 5  # before a validation that takes longer, a checkpoint is taken


class Resume(Callback):
    """Save a run's position into its folder, and resume there. It must be the first callback.

    Args:
        folder: of the run; its checkpoints are written, and the two newest kept.
        seed: of every random number.
        every_n_minutes: how often to save in a long epoch. Short epochs save at their start, as
            often as it costs `MAX_OVERHEAD` of the time.
        every_n_steps: how often to save, in place of both.
        signals: say when to save and exit.
        same_run: the checkpoint to resume from is of this run. Otherwise the user has named one of
            another run, whose should_stop, rows and best files are not taken over.
        device_name: stored in checkpoints, to warn when one is resumed on another device.
        enabled: False saves nothing, as with `fast_dev_run`.
    """

    def __init__(
        self,
        folder: "RunFolder",
        *,
        seed: int,
        every_n_minutes: float,
        every_n_steps: int | None,
        signals: "Signals",
        same_run: bool,
        device_name: str,
        enabled: bool = True,
    ) -> None:
        self.folder, self.signals = folder, signals
        self.every_n_minutes, self.every_n_steps = every_n_minutes, every_n_steps
        self.same_run, self.device_name, self.enabled = same_run, device_name, enabled
        self.position = Position(seed)
        self.restored: dict[str, Any] | None = None  # until the first batch has started
        self.restored_validation: dict[str, Any] | None = (
            None  # the same, until a validation starts
        )
        self.saving = False
        self.saved_at, self.saved_step = perf_counter(), 0
        self.last_step = -1  # global_step at the start of the batch before
        self.seconds_to_save = ASSUMED_SAVE_SECONDS
        self.seconds_to_validate, self.validation_started = 0.0, 0.0
        self.saved_before_validation = False
        self.losses: float | torch.Tensor = 0.0  # their sum: not finite if one of them was not

    # What is set up, in the order of Lightning's hooks.

    def setup(self, trainer: Trainer, task: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        # Lightning does it after loading: float64 weights would have been rounded to float32.
        trainer.precision_plugin.convert_module(task)
        self.agreement = Agreement(trainer)
        self.trainer = trainer
        vars(trainer.strategy).update(
            process_dataloader=self._process_dataloader, save_checkpoint=self._save_checkpoint
        )
        write(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor", state.do_nothing)

    def _process_dataloader(self, loader: object) -> ResumableLoader:
        """In place of the strategy's own, which it calls."""
        self.signals.take_over()
        if isinstance(loader, ResumableLoader):  # in a CombinedLoader that is used again
            loader = loader.loader
        strategy = self.trainer.strategy
        loader = type(strategy).process_dataloader(strategy, loader)
        return ResumableLoader(loader, self.trainer, self.position)

    def _save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """In place of the strategy's own, which it calls."""
        if "optimizer_states" not in checkpoint:
            state.use_averaged_weights(self.trainer, checkpoint)
        strategy = self.trainer.strategy
        type(strategy).save_checkpoint(strategy, checkpoint, path, storage_options)

    def on_load_checkpoint(self, trainer: Trainer, task: Any, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint.get("resume")
        if saved is None or trainer.state.fn != "fit":
            return
        here = made_on(trainer, self.device_name)
        warn_if_not_exact(saved["made_on"], here, same_run=self.same_run)
        self.restored = self.restored_validation = saved
        self.position.resume_at, self.position.ended = tuple(saved["at"]), saved["ended"]
        # Of loaders with a state of their own, which has gone beyond the position.
        checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
        if self.same_run:
            trainer.should_stop = saved["should_stop"]
        state.before_setup(trainer, saved)
        state.move_keepers(trainer, checkpoint, same_run=self.same_run)

    def on_fit_start(self, trainer: Trainer, task: LightningModule) -> None:
        if self.restored:
            state.before_optimizer_states(trainer, self.restored)

    def on_sanity_check_start(self, trainer: Trainer, task: LightningModule) -> None:
        # Lightning's handler of SIGTERM hangs if one of several ranks gets it.
        self.signals.take_over()

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        self.signals.take_over()
        self.logged = Logged(trainer)
        self.saved_at = perf_counter()
        if self.enabled and not (self.restored and self.same_run):
            # Of a start that was killed before it saved.
            self._remove_later_files(trainer, None)
            state.purge_events(trainer, 0)
        if self.enabled and not IS_CHECKED:
            log.warning(
                f"Lightning {lightning.__version__} is unknown here ({CHECKED} is checked): this"
                " run saves and resumes at the start of an epoch only."
            )

    def on_train_epoch_start(self, trainer: Trainer, task: LightningModule) -> None:
        self.signals.take_over()  # from a handler of a task or another callback

    def teardown(self, trainer: Trainer, task: LightningModule, stage: str) -> None:
        self.signals.deferred = False
        for name in ("process_dataloader", "save_checkpoint"):
            vars(trainer.strategy).pop(name, None)

    def on_exception(self, trainer: Trainer, task: LightningModule, exception: Any) -> None:
        self.signals.deferred = False

    # What happens around a batch.

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        batch_idx = read(trainer.fit_loop, "batch_idx", batch_idx)
        self.position.epoch, self.position.batch = trainer.current_epoch, batch_idx
        if self.restored:
            self._restore(trainer, self.restored)
        self.signals.deferred = True
        step, before = trainer.global_step, self.last_step
        self.last_step = step
        self.saved_before_validation = False
        # Not within an accumulation, whose gradients are not saved (those of manual optimization
        # are).
        if batch_idx == 0 or step != before or not task.automatic_optimization:
            self._between_steps(trainer, batch_idx, max(1, step - before))

    def _between_steps(self, trainer: Trainer, batch_idx: int, steps: int) -> None:
        if batch_idx % max(1, trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self._refuse_non_finite(trainer)
        several = trainer.world_size > 1
        last = is_last_step(trainer, batch_idx, steps)
        due = last or self._is_due(trainer, batch_idx)
        stopped = self.signals.received is not None
        shortest = max(LONG_VALIDATION_SECONDS, self.seconds_to_save / MAX_OVERHEAD)
        before_long_validation = self.seconds_to_validate > shortest
        validates = (before_long_validation or several) and validation_follows(trainer, batch_idx)
        before_long_validation = before_long_validation and validates
        if several:
            # Steps are the same on all ranks. Seconds and signals are not, so the ranks agree on
            # the three reasons to save.
            same_on_all_ranks = (
                last or validates or batch_idx == 0 or (due and self.every_n_steps is not None)
            )
            if same_on_all_ranks or self.agreement.is_time():
                due, stopped, before_long_validation = self.agreement.any(
                    due, stopped, before_long_validation
                )
            else:
                due = stopped = before_long_validation = False
        if (due or stopped or before_long_validation) and (IS_CHECKED or batch_idx == 0):
            self.save(trainer)
            self.saved_before_validation = before_long_validation
        if stopped:
            self.signals.exit()

    def on_train_batch_end(
        self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.position.resume_at = None  # a step with a dataloader_iter has fetched the batch itself
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor):
            self.losses = self.losses + loss.detach()  # a GPU goes on; nobody looks yet

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        self._refuse_non_finite(trainer)
        self.logged.end_epoch()
        if self.enabled and trainer.global_step == 0 and trainer.current_epoch == 0:
            log.warning(
                "Lightning has counted no optimizer step, so no checkpoint is saved. Step what"
                " self.optimizers() returns, without use_pl_optimizer=False."
            )

    def on_validation_start(self, trainer: Trainer, task: LightningModule) -> None:
        self.validation_started = perf_counter()
        if self.restored_validation and not trainer.sanity_checking:
            state.at_validation(trainer, self.restored_validation)
            self.restored_validation = None

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        # Otherwise a signal waits for the next training batch, and after the last one for train().
        if self.saved_before_validation and self.signals.received is not None:
            self.signals.exit()

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        self.seconds_to_validate = perf_counter() - self.validation_started

    def _refuse_non_finite(self, trainer: Trainer) -> None:
        """Lightning would train on. A GPU must wait for this, so it is not done at every step."""
        if not math.isfinite(self.losses):
            raise UserError(
                f"The loss or a weight became nan or infinite by epoch {trainer.current_epoch + 1},"
                f" step {trainer.global_step}: lower optimizer.lr, set trainer.gradient_clip_val,"
                " or look at the data; the checkpoints from before are kept."
            )
        self.losses = 0.0

    # When and what is saved.

    def _is_due(self, trainer: Trainer, batch_idx: int) -> bool:
        if self.every_n_steps is not None:
            return trainer.global_step - self.saved_step >= self.every_n_steps
        waited = perf_counter() - self.saved_at
        if waited < self.seconds_to_save / MAX_OVERHEAD:
            return False
        return batch_idx == 0 or waited >= 60 * self.every_n_minutes

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint, and keep it and the one before.

        Raises:
            UserError: a loss or weight is not finite, and would spoil it.
        """
        if not self.enabled or trainer.global_step == self.saved_step:
            return
        started = perf_counter()
        # A step can spoil the weights after a loss that was finite.
        weights = [
            one.detach() for one in trainer.lightning_module.parameters() if one.requires_grad
        ]
        norm: Any = torch.nn.utils.get_total_norm(weights)
        self.losses = self.losses + (norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        self._refuse_non_finite(trainer)
        for logger in trainer.loggers:
            logger.save()  # so that it has all that was logged before
        self.saving = True
        try:
            path = self.folder.checkpoint(trainer.global_step)
            trainer.save_checkpoint(path, weights_only=False)
        finally:
            self.saving = False
        if trainer.is_global_zero:
            self.folder.prune()
            self.folder.push()
        self.saved_at, self.saved_step = perf_counter(), trainer.global_step
        self.seconds_to_save = self.saved_at - started

    def on_save_checkpoint(self, trainer: Trainer, task: Any, checkpoint: dict[str, Any]) -> None:
        if not self.saving:  # a ModelCheckpoint's file, which is not to resume from
            return
        logged = [self.logged.state()] * trainer.world_size
        if trainer.world_size > 1:
            dist.all_gather_object(logged, logged[0])
        checkpoint["resume"] = state.gather(trainer) | {
            "at": [self.position.epoch, self.position.batch],
            "ended": ended_loaders(trainer),
            "logged": logged,
            "made_on": made_on(trainer, self.device_name),
        }

    def _restore(self, trainer: Trainer, saved: dict[str, Any]) -> None:
        self.restored = None
        state.at_first_batch(trainer, saved)
        if self.same_run:
            state.at_first_batch_of_same_run(trainer, saved)
            self._remove_later_files(trainer, saved["files"])
            self.saved_step = trainer.global_step
        self.logged.restore(saved["logged"][trainer.global_rank % len(saved["logged"])])

    def _remove_later_files(self, trainer: Trainer, known: list[list[str]] | None) -> None:
        own = {path.resolve() for path in self.folder.checkpoints()}
        state.remove_later_files(trainer, self.folder.path.resolve(), own, known)
