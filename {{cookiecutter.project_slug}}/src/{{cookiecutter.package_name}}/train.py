"""Train a model, test its best checkpoint, and leave everything in one folder.

    python -m <package>.train                           # the default, on the best device there is
    python -m <package>.train experiment=convnet        # another experiment
    python -m <package>.train model.width=512 optimizer.lr=0.001
    python -m <package>.train trainer.accelerator=cpu   # not on the GPU
    python -m <package>.train debug=fast                # one batch, to see that it runs

The same command again continues an unfinished run, and shows a finished one.
"""

import logging
import sys

from omegaconf import DictConfig, OmegaConf

from . import cli, device
from .errors import UserError
from .run import Run, plain_config

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
    choice = device.choose(device.request(cfg), device.probe())
    run = Run.of(cfg)
    if (finished := run.results(cfg)) is not None:
        log.info(f"{run.folder} is finished; resume=never trains it again in a new folder.")
        return finished

    import torch
    from hydra.utils import instantiate
    from lightning import Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.utilities.exceptions import SIGTERMException
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from .callbacks import SeedEpochs

    cfg = OmegaConf.merge(cfg, {"run_dir": str(run.folder), "run_name": run.folder.name})  # type: ignore[assignment]
    settled = device.settle(cfg, choice)
    seed_everything(cfg.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision(choice.matmul_precision)
    datamodule = instantiate(settled.data)
    task = instantiate(settled.task)
    # For checkpoints and loggers: as asked for, every auto still auto, so that it can go elsewhere.
    task.save_hyperparameters(plain_config(cfg))
    callbacks = [SeedEpochs(cfg.seed), *instantiate(settled.callbacks).values()]
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        run.start(settled)  # before the loggers, which write to the folder
    else:
        logging.disable(logging.INFO)  # of several processes one speaks
    loggers = list(instantiate(settled.logger).values())
    trainer: Trainer = instantiate(settled.trainer, callbacks=callbacks, logger=loggers)

    log.info(f"{device.line(choice, cfg)}; writing to {run.folder}")
    log.info(f"{type(task).__name__}: {sum(p.numel() for p in task.parameters()):,} parameters")
    last = run.last if run.last.is_file() else None
    if last is not None:
        log.info(f"Going on from {last}")
    try:
        trainer.fit(task, datamodule, ckpt_path=last)
        metrics: dict[str, float] = {"epochs": trainer.current_epoch, "steps": trainer.global_step}
        keeper = trainer.checkpoint_callback
        if isinstance(keeper, ModelCheckpoint) and keeper.best_model_score is not None:
            metrics[f"best {keeper.monitor}"] = float(keeper.best_model_score)
        best = run.best if run.best.is_file() else None  # there is none after a fast_dev_run
        with device.exact_float32():
            for tested in trainer.test(task, datamodule, ckpt_path=best, verbose=False):
                metrics |= tested
    except SystemExit as stopped:  # Lightning makes one of Ctrl-C (1) and of SIGTERM (0)
        again = cfg.resume == "auto" and run.last.is_file()
        then = f"the same command goes on from {run.last}" if again else f"see {run.folder}"
        log.info(f"Interrupted; {then}.")
        sys.exit(143 if isinstance(stopped, SIGTERMException) else 130)
    if trainer.is_global_zero:
        run.finish(cfg, metrics)
    return metrics


def refuse_nonsense(cfg: DictConfig) -> None:
    """Values that would otherwise be taken for something else, or fail after an hour."""
    for key, allowed in (("resume", ("auto", "never")), ("mode", ("min", "max"))):
        if cfg[key] not in allowed:
            raise UserError(f"{key}={cfg[key]} is neither {' nor '.join(allowed)}.")
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
        cli.show(train(cfg))

    cli.run(program, "train")


if __name__ == "__main__":
    main()
