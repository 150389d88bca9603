"""What Lightning leaves out of a checkpoint, besides what was logged: gathered and put back.

Plain data and tensors only, so that a checkpoint loads with `weights_only=True`.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.parsing import (
    lightning_getattr,
    lightning_hasattr,
    lightning_setattr,
)
from torch import Tensor
from torch.nn.utils import prune

from ..files import remove
from .internals import read, write

SHOWN = ("callback_metrics", "logged_metrics", "progress_bar_metrics")  # of the trainer
KEEPER = ("_last_global_step_saved", "_last_checkpoint_saved", "_defer_save_until_validation")


def gather(trainer: Trainer) -> dict[str, Any]:
    """Return what Lightning leaves out, at the start of a batch.

    `found` holds what a learning rate or batch size finder has set, `shown` the trainer's metrics,
    `eval` the modules in evaluation mode, `fixed` those that do not track running statistics.
    """
    task, fit_loop = trainer.lightning_module, trainer.fit_loop
    val_loop = fit_loop.epoch_loop.val_loop
    modules, parameters = dict(task.named_modules()), dict(task.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    by_hand = {} if task.automatic_optimization else parameters
    return {
        "steps_logged": read(fit_loop.epoch_loop, "_batches_that_stepped"),
        "validation_steps": dict(read(val_loop, "_seen_batches_per_dataloader", {})),
        "reloaded": read(fit_loop, "_last_train_dl_reload_epoch"),
        "validation_reloaded": read(val_loop, "_last_val_dl_reload_epoch"),
        "accumulate": trainer.accumulate_grad_batches,
        "should_stop": trainer.should_stop,
        "shown": {name: dict(getattr(trainer, name)) for name in SHOWN},
        "rows": [one.resume_rows if takes_back(one) else None for one in trainer.loggers],
        "found": {name: lightning_getattr(task, name) for name in _found_by_search(trainer)},
        "keepers": [
            {name: read(one, name) for name in KEEPER} for one in model_checkpoints(trainer)
        ],
        "files": [sorted(_files(one)) for one in model_checkpoints(trainer)],
        "groups": [
            [[names.get(id(one)) for one in group["params"]] for group in optimizer.param_groups]
            for optimizer in trainer.optimizers
        ],
        "masks": masks(task),
        "frozen": [name for name, one in parameters.items() if not one.requires_grad],
        "eval": [name for name, one in modules.items() if not one.training],
        # BaseFinetuning.freeze() sets this of batch norm.
        "fixed": [n for n, one in modules.items() if not getattr(one, "track_running_stats", True)],
        "gradients": {n: one.grad for n, one in by_hand.items() if one.grad is not None},
    }


def takes_back(logger: Any) -> TypeGuard[Any]:
    """Whether a logger can drop rows. Lightning's DummyLogger claims to have any attribute."""
    return hasattr(type(logger), "resume_rows")


def before_setup(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Put back what must stand before loaders and optimizers are made."""
    task = trainer.lightning_module
    for name, value in saved["found"].items():
        lightning_setattr(task, name, value)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, LearningRateFinder | BatchSizeFinder):
            # It would search again, from the weights of the resume.
            vars(callback)["on_fit_start"] = do_nothing


def before_optimizer_states(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Put back the masks of ModelPruning, and add parameter groups that a callback had added."""
    for name, (mask, original) in saved["masks"].items():
        owner, _, tensor = name.rpartition(".")
        module = trainer.lightning_module.get_submodule(owner)
        prune.custom_from_mask(module, tensor, mask)
        module.get_parameter(f"{tensor}_orig").data.copy_(original)
    parameters = dict(trainer.lightning_module.named_parameters())
    for optimizer, groups in zip(trainer.optimizers, saved["groups"], strict=False):
        for group in groups[len(optimizer.param_groups) :]:
            if all(name in parameters for name in group):
                optimizer.add_param_group({"params": [parameters[name] for name in group]})


def masks(task: LightningModule) -> dict[str, tuple[Tensor, Tensor]]:
    """Return of each pruned parameter the mask and the values, which ModelPruning multiplies."""
    parameters, buffers = dict(task.named_parameters()), dict(task.named_buffers())
    pruned = [name.removesuffix("_orig") for name in parameters if name.endswith("_orig")]
    return {
        name: (buffers[f"{name}_mask"], parameters[f"{name}_orig"].data)
        for name in pruned
        if f"{name}_mask" in buffers
    }


def at_first_batch(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Put back the rest, when Lightning has done its part."""
    task, fit_loop = trainer.lightning_module, trainer.fit_loop
    read(fit_loop, "on_iteration_done", lambda: None)()
    if progress := read(fit_loop.epoch_loop, "batch_progress"):
        progress.total.ready -= 1
    write(fit_loop.epoch_loop, "_batches_that_stepped", saved["steps_logged"])
    write(fit_loop, "_last_train_dl_reload_epoch", saved["reloaded"])
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            # It sets itself up at the start of an epoch, which is over; it has one optimizer.
            state = copy.deepcopy(trainer.optimizers[0].state_dict())
            callback.on_train_epoch_start(trainer, task)
            trainer.optimizers[0].load_state_dict(state)
    for name, metrics in saved["shown"].items():
        getattr(trainer, name).update(metrics)
    for name, module in task.named_modules():
        module.training = name not in saved["eval"]
        if hasattr(module, "track_running_stats"):
            module.track_running_stats = name not in saved["fixed"]
    for name, parameter in task.named_parameters():
        parameter.requires_grad = name not in saved["frozen"]
        if name in saved["gradients"]:
            parameter.grad = saved["gradients"][name].to(parameter.device)


def at_first_batch_of_same_run(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Put back, at the first batch, what belongs to the run's own folder and settings."""
    trainer.accumulate_grad_batches = saved["accumulate"]
    for logger, rows in zip(trainer.loggers, saved["rows"], strict=False):
        if rows is not None and takes_back(logger):
            logger.resume_rows = rows
    # A user's own rows have trainer.global_step, which counts the steps of each optimizer.
    purge_events(trainer, max(trainer.global_step, saved["steps_logged"] or 0))
    for keeper, values in zip(model_checkpoints(trainer), saved["keepers"], strict=False):
        for name, value in values.items():
            write(keeper, name, value)


def purge_events(trainer: Trainer, step: int) -> None:
    """Let TensorBoard forget what an earlier process has logged from `step` on.

    It will be logged again. A reader of the event files drops what stands before a file that begins
    with this step.
    """
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, TensorBoardLogger):
            writer = logger.experiment
            if len([*Path(logger.log_dir).glob("events.out.tfevents.*")]) > 1:
                writer.close()
                writer.purge_step = step  # read when the next row opens a new file


def remove_later_files(
    trainer: Trainer, folder: Path, own: set[Path], known: list[list[str]] | None
) -> None:
    """Remove files that a ModelCheckpoint wrote after the checkpoint that is resumed.

    Training will write them again. Until then Lightning would choose another name, with `-v1`.

    Args:
        folder: of the run; nothing outside it is removed.
        own: the step_*.ckpt files, which stay.
        known: the names at the time of the checkpoint, by ModelCheckpoint; None: training starts.
    """
    names = known or [[] for _ in model_checkpoints(trainer)]
    for keeper, kept in zip(model_checkpoints(trainer), names, strict=False):
        for name, path in _files(keeper).items() if trainer.is_global_zero else ():
            if folder in path.parents and name not in kept and path not in own:
                remove(path)


def at_validation(trainer: Trainer, saved: dict[str, Any]) -> None:
    """Put back, at the start of the first validation, what Lightning resets before it."""
    val_loop = trainer.fit_loop.epoch_loop.val_loop
    every = trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    if every and trainer.current_epoch - saved["validation_reloaded"] >= every:
        write(val_loop, "_last_val_dl_reload_epoch", trainer.current_epoch)
    else:
        write(val_loop, "_last_val_dl_reload_epoch", saved["validation_reloaded"])
        read(val_loop, "_seen_batches_per_dataloader", {}).update(saved["validation_steps"])


def model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]


def move_keepers(trainer: Trainer, checkpoint: dict[str, Any], *, same_run: bool) -> None:
    """Let a ModelCheckpoint find its files in a folder that has moved.

    Lightning forgets all of them but the best one, whose old path it keeps.
    """
    for keeper in model_checkpoints(trainer):
        state = checkpoint["callbacks"].get(keeper.state_key)
        if state is None or keeper.dirpath == state["dirpath"]:
            continue
        if not same_run:  # the best one of this run is yet to come
            del checkpoint["callbacks"][keeper.state_key]
            continue
        moved = {path: str(Path(keeper.dirpath or "", Path(path).name)) for path in _paths(state)}
        moved = {path: here for path, here in moved.items() if Path(here).exists()}
        state["dirpath"] = keeper.dirpath
        for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
            state[name] = moved.get(state[name], "")
        scores = state["best_k_models"].items()
        state["best_k_models"] = {moved[path]: score for path, score in scores if path in moved}


def _paths(state: dict[str, Any]) -> Iterator[str]:
    paths = (state["best_model_path"], state["last_model_path"], *state["best_k_models"])
    yield from filter(None, paths)


def _files(keeper: ModelCheckpoint) -> dict[str, Path]:
    """Return the files in its folder, and in those that a filename with `{val/loss}` makes."""
    folder = Path(keeper.dirpath or "nowhere")
    depths = range((keeper.filename or "").count("/") + 1)
    files = [path for depth in depths for path in folder.glob("*/" * depth + "*.ckpt")]
    return {path.relative_to(folder).as_posix(): path for path in files}


def _found_by_search(trainer: Trainer) -> list[str]:
    """Return the attributes of the task or datamodule that a finder has set."""
    names: list[str] = []
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, LearningRateFinder):
            names += [read(callback, "_attr_name") or "", "lr", "learning_rate"]
        elif isinstance(callback, BatchSizeFinder):
            names += [read(callback, "_batch_arg_name") or ""]
    return [name for name in names if name and lightning_hasattr(trainer.lightning_module, name)]


def use_averaged_weights(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Put the averaged or pruned weights, which were validated, into a checkpoint of weights alone.

    Lightning does this for full checkpoints only, in the same hook.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging | ModelPruning):
            callback.on_save_checkpoint(trainer, trainer.lightning_module, checkpoint)
            checkpoint.pop("current_model_state", None)
            checkpoint.pop("averaging_state", None)


def do_nothing(*_: Any) -> None: ...
