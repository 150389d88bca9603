"""The names of Lightning, PyTorch and torchmetrics that are not public and that resume needs.

They are read and written by `read` and `write` alone, which leave out a name that is gone: training
goes on without what the table says.
"""

from typing import Any

import lightning

CHECKED = "2.6"  # the version of Lightning that the template's tests cover
IS_CHECKED = lightning.__version__.startswith(f"{CHECKED}.")
# name: (why it is needed, what happens when it is gone). The texts are documentation only.
INTERNALS = {
    "_FitLoop.batch_idx": (
        "it is right for training_step(dataloader_iter), too",
        "such a task resumes at the wrong batch",
    ),
    "_FitLoop.on_iteration_done": (
        "Lightning treats the whole epoch of a resume as a restart",
        "a plateau scheduler misses a step in the epoch of a resume",
    ),
    "_FitLoop._last_train_dl_reload_epoch": (
        "reload_dataloaders_every_n_epochs",
        "the n epochs count from the resume",
    ),
    "_TrainingEpochLoop.batch_progress": (
        "Lightning counts the batch of the checkpoint twice",
        "val_check_interval across epochs is a batch early after a resume",
    ),
    "_TrainingEpochLoop._batches_that_stepped": (
        "the step of logged rows",
        "rows after a resume have another step",
    ),
    "_TrainingEpochLoop._results": (
        "the sums and last values of self.log",
        "means of the epoch of a resume cover its second part",
    ),
    "_TrainingEpochLoop._broadcast_sigterm_tensor": (
        "Lightning makes ranks wait before every batch, for a signal that it does not get here",
        "a little time is lost",
    ),
    "_EvaluationLoop._seen_batches_per_dataloader": (
        "the step of rows that validation_step logs",
        "they count from 0 after a resume",
    ),
    "_EvaluationLoop._last_val_dl_reload_epoch": (
        "reload_dataloaders_every_n_epochs",
        "the n epochs count from the resume",
    ),
    "ModelCheckpoint._last_global_step_saved": (
        "it writes one file a step",
        "it may write a file twice",
    ),
    "ModelCheckpoint._last_checkpoint_saved": ("save_last", "last.ckpt may be missing"),
    "ModelCheckpoint._defer_save_until_validation": (
        "every_n_train_steps with a validation's metric",
        "a file may be missing",
    ),
    "LearningRateFinder._attr_name": ("the attribute that it sets", "it is not set on a resume"),
    "BatchSizeFinder._batch_arg_name": ("the attribute that it sets", "it is not set on a resume"),
    "DataLoader._iterator": (
        "Lightning ends persistent workers by it",
        "they end with the process",
    ),
    "Metric._update_count": ("compute() of a restored metric", "it warns that nothing was updated"),
}
NAMES = {name.rpartition(".")[2] for name in INTERNALS}


def read(owner: Any, name: str, default: Any = None) -> Any:
    assert name in NAMES
    return getattr(owner, name, default)


def write(owner: Any, name: str, value: Any) -> None:
    assert name in NAMES
    if hasattr(owner, name):
        setattr(owner, name, value)
