"""Train a model, test its best checkpoint, and leave everything in one folder.

    python -m <package> train                           # the default, on the best device here
    python -m <package> train experiment=NAME           # another experiment
    python -m <package> train model.width=64 optimizer.lr=0.001
    python -m <package> train trainer.accelerator=cpu   # not on the GPU
    python -m <package> train debug=fast                # one batch, to see that it runs

The same command again resumes an unfinished run, and shows the results of a finished one.
"""

import logging

from omegaconf import DictConfig

from .engine import cli
from .engine.parallel.torchrun import report_once
from .engine.run import open_run

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> dict[str, float]:
    """Compute the run that `cfg` describes, or what is left of it.

    Args:
        cfg: configs/train.yaml, composed with the overrides.

    Returns:
        The results: test metrics, the best validation score, epochs and steps.
    """
    run = open_run(cfg)  # the device is chosen, the folder found
    if run.results is not None:
        log.info(f"{run.folder.path} is finished. Add resume=never to train again in a new folder.")
        return run.results
    if run.needs_torchrun:  # one process for each GPU
        return run.launch()

    # Imported here, so that `--help` and mistakes on the command line answer at once.
    from .engine.trainer import build, compute_test_metrics, fit, summary

    with run.training():  # the folder is locked, signals are caught
        run.start()
        built = build(run)
        run.log_start(built.task, compiled=built.compiled, resume_from=built.resume_from)
        best = fit(run, built)
        metrics = summary(built.trainer) | compute_test_metrics(built, best)
        run.finish(metrics, best)
    return metrics


def main() -> None:
    def program(cfg: DictConfig) -> None:
        with report_once():  # of several processes, one prints an error
            cli.show(train(cfg))

    cli.run(program, "train")


if __name__ == "__main__":
    main()
