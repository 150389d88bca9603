"""Train a model, test its best checkpoint, and leave everything in one folder.

    python -m <package>.train                           # the default, on the best device there is
    python -m <package>.train experiment=NAME           # another experiment
    python -m <package>.train model.width=64 optimizer.lr=0.001
    python -m <package>.train trainer.accelerator=cpu   # not on the GPU
    python -m <package>.train debug=fast                # one batch, to see that it runs

The same command again continues an unfinished run, and shows a finished one.
"""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from . import cli, device, processes
from .errors import UserError
from .run import Run, how_long, plain_config, start_of
from .stopping import Stop

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> dict[str, float]:
    """Compute the run that `cfg` describes, or what is left of it.

    Args:
        cfg: configs/train.yaml, composed with the overrides.

    Returns:
        What stands in its metrics.json: test metrics, the best validation score, epochs and steps.
    """
    refuse_nonsense(cfg)
    # What is asked for and impossible here is refused even if the run is finished.
    processes.enter()
    choice = device.choose(device.request(cfg), device.probe())
    first = processes.first()
    logging.disable(logging.NOTSET if first else logging.WARNING)  # of several, one speaks
    run = Run.of(cfg)
    run.fetch(steps=False)
    finished = processes.agreed("finished", lambda: run.metrics if run.results(cfg) else None)
    if finished is not None:
        if first and run.mirror is not None:
            run.mirror.finish()
        log.info(f"{run.folder} is finished; resume=never trains it again in a new folder.")
        return run.results(cfg) or {}
    run.fetch()
    if cfg.resume == "must" and not run.checkpoints():
        raise UserError(f"There is nothing to go on from in {run.folder}: leave resume=must out.")

    if choice.num_devices > 1 and not processes.launched():
        device.settle(cfg, choice)  # what it refuses is said once
        processes.launch(choice.num_devices, run.folder)
        logging.disable(logging.INFO)  # they have shown the results
        return run.results(cfg) or {}

    with Stop() as stop, run.alone() if first else contextlib.nullcontext():
        try:
            return _train(cfg, choice, run, stop, first)
        except BaseException:
            if stop.signal is None:
                raise
            again = cfg.resume != "never" and run.checkpoints()
            then = f"the same command goes on from {again[0]}" if again else f"see {run.folder}"
            log.info(f"Interrupted; {then}.")
            stop.exit()
            raise


def _train(
    cfg: DictConfig, choice: device.Choice, run: Run, stop: Stop, first: bool
) -> dict[str, float]:
    import torch
    from lightning import seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint

    from .checkpoint import load_weights, refuse_to_go_on

    run.share("checkpoints", in_parts=cfg.trainer.strategy == "fsdp")
    built = build(cfg, choice, run, stop, first)
    trainer, task, datamodule, last = built.trainer, built.task, built.datamodule, built.last
    loop = trainer.fit_loop.epoch_loop

    log.info(f"{device.line(choice, cfg)}; writing to {run.folder}")
    compiled = ", compiled" if built.compiled else ""
    log.info(f"{type(task).__name__}: {built.num_parameters:,} parameters{compiled}")
    if last is None:
        if (last := start_of(cfg, "ckpt_path")) is not None:
            refuse_to_go_on(last, task, cfg)
        if (weights := start_of(cfg, "init_from")) is not None:
            load_weights(task, weights)
    if last is not None:
        log.info(f"Going on from {last}")
    processes.join(trainer.strategy)
    trainer.fit(task, datamodule, ckpt_path=last)
    loop.save()
    if loop.any_process(stop.signal is not None):
        stop.exit()
    trainer.strategy.checkpoint_io.write_the_rest()
    if first and loop.saves and not run.checkpoint(trainer.global_step).exists():
        raise UserError(f"{run.folder} could not be written: free some space, and train again.")

    epochs = trainer.fit_loop.epoch_progress.current.ready
    metrics: dict[str, float] = {"epochs": epochs, "steps": trainer.global_step}
    keeper = trainer.checkpoint_callback
    if isinstance(keeper, ModelCheckpoint) and keeper.best_model_score is not None:
        metrics[f"best {keeper.monitor}"] = float(keeper.best_model_score)
    run.share("best weights")
    best = run.best if run.best.is_file() else None  # there is none after a fast_dev_run
    if best is None and loop.saves and isinstance(keeper, ModelCheckpoint):
        log.info("Nothing was validated: the last weights are tested.")
    seed_everything(cfg.seed, workers=True, verbose=False)  # wherever the training went on from
    with device.exact_float32(), torch.compiler.set_stance("force_eager"):
        for tested in trainer.test(task, datamodule, ckpt_path=best, verbose=False):
            metrics |= tested
    if trainer.is_global_zero:
        run.finish(cfg, metrics)
    return metrics


@dataclass
class Built:
    """Everything that trains."""

    trainer: Any
    task: Any
    datamodule: Any
    last: Path | None  # the checkpoint to go on from
    num_parameters: int
    compiled: bool


def build(
    cfg: DictConfig, choice: device.Choice, run: Run, stop: Stop, first: bool = True
) -> Built:
    """Build what `cfg` describes, ready to be trained into the folder of `run`."""
    import torch
    from hydra.utils import instantiate
    from lightning import Trainer, seed_everything

    from .checkpoint import CheckpointIO, is_whole
    from .compiling import FirstStep, compile_in_place
    from .resume import EpochLoop

    cfg = OmegaConf.merge(cfg, {"run_dir": str(run.folder), "run_name": run.folder.name})  # type: ignore[assignment]
    settled = device.settle(cfg, choice)
    seed_everything(cfg.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision(choice.matmul_precision)
    datamodule = instantiate(settled.data, _convert_="all")  # plain lists, should it keep them
    task = instantiate(settled.task)
    # For checkpoints and loggers: as asked for, every auto still auto, so that it can go elsewhere.
    task.hparams.clear()  # a module among its own would make the checkpoint unreadable
    task.save_hyperparameters(plain_config(cfg))
    num_parameters = sum(p.numel() for p in task.parameters())
    callbacks = list(instantiate(settled.get("callbacks") or {}).values())
    settled.compile = choice.compiles(num_parameters)
    if settled.compile:
        compile_in_place(task, same_bits=bool(cfg.trainer.deterministic))
        callbacks.append(FirstStep())
    if first:
        run.start(settled)  # before the loggers, which write to the folder
    loggers = list(instantiate(settled.get("logger") or {}).values())
    trainer: Trainer = instantiate(settled.trainer, callbacks=callbacks, logger=loggers)
    # Before a checkpoint is loaded, which Lightning does first: 64-true would be cut to float32.
    trainer.precision_plugin.convert_module(task)
    last = processes.agreed("newest", lambda: run.newest(is_whole))
    if last is not None and not last.exists():
        raise UserError(f"{last} is not on this host: put runs_dir where every host sees it.")
    if cfg.resume == "must" and last is None:
        raise UserError(f"No checkpoint in {run.folder} is whole: leave resume=must out.")
    trainer.fit_loop.epoch_loop = EpochLoop(
        trainer,
        run,
        seed=cfg.seed,
        **cfg.save,
        how_long=how_long(cfg),
        stop=stop,
        device_name=choice.name + (", compiled" if settled.compile else ""),
        own=last is not None,
    )
    trainer.strategy.checkpoint_io = CheckpointIO()
    return Built(trainer, task, datamodule, last, num_parameters, bool(settled.compile))


def refuse_nonsense(cfg: DictConfig) -> None:
    """Values that would otherwise be taken for something else, or fail after an hour."""
    for key, allowed in (("resume", ("auto", "never", "must")), ("mode", ("min", "max"))):
        if cfg[key] not in allowed:
            raise UserError(f"{key}={cfg[key]} is none of {', '.join(allowed)}.")
    if not 0 <= cfg.seed < 2**32:
        raise UserError(f"seed={cfg.seed} is not a whole number from 0 to {2**32 - 1}.")
    if cfg.trainer.max_epochs is None or cfg.trainer.max_epochs < 1:
        raise UserError(
            f"trainer.max_epochs={cfg.trainer.max_epochs} is not 1 or more: schedules follow from"
            " it, so set it, and trainer.max_steps or trainer.max_time beside it to stop earlier."
        )
    for key in ("max_steps", "limit_train_batches"):
        if cfg.trainer.get(key) == 0:
            raise UserError(f"trainer.{key}=0 would train nothing: use 1 or more.")


def main() -> None:
    def program(cfg: DictConfig) -> None:
        with processes.one_says_it():
            if metrics := train(cfg):
                cli.show(metrics)

    cli.run(program, "train")


if __name__ == "__main__":
    main()
