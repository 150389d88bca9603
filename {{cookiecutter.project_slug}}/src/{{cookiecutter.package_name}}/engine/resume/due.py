"""When a checkpoint is due for a reason other than time."""

from lightning import Trainer

from .internals import read


def is_last_step(trainer: Trainer, batch_idx: int, steps: int) -> bool:
    """Whether training is known to end with the optimizer step that starts now.

    A checkpoint is taken here, so that a run which is given more epochs or steps resumes here.

    Args:
        steps: of a batch; by hand, these may be several.
    """
    if 0 <= trainer.max_steps <= trainer.global_step + steps:
        return True
    if trainer.current_epoch + 1 != trainer.max_epochs:
        return False
    end = batch_idx + trainer.accumulate_grad_batches
    return trainer.is_last_batch or end >= trainer.num_training_batches


def validation_follows(trainer: Trainer, batch_idx: int) -> bool:
    """Whether the batch, or the accumulation that starts with it, is followed by a validation."""
    epochs, every = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or (epochs and (trainer.current_epoch + 1) % epochs):
        return False
    if not isinstance(every, int):  # at an unknown end of the epoch, or after so many minutes
        return trainer.is_last_batch
    progress = read(trainer.fit_loop.epoch_loop, "batch_progress")
    batch = batch_idx if epochs or progress is None else progress.total.ready - 1
    return (batch + trainer.accumulate_grad_batches) // every > batch // every
