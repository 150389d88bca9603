"""Test a trained model again, from its run folder or its checkpoint alone, on any device.

    python -m <package>.evaluate run=latest
    python -m <package>.evaluate run=runs/NAME-1a2b3c4d trainer.accelerator=cpu
    python -m <package>.evaluate run=best.ckpt +data.batch_size=256

Prints the test metrics, and writes them and a picture or text to the folder `evaluate` of the run.
"""

import logging

from omegaconf import DictConfig

from . import cli
from .run import Run, write_json

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Test the checkpoint that `cfg.run` names.

    Args:
        cfg: configs/evaluate.yaml, composed with the overrides.

    Returns:
        The test metrics.
    """
    run, path = Run.find(cfg.run, cfg.runs_dir)
    from .checkpoint import rebuild  # only now: a run that is not there is said at once
    from .device import exact_float32

    folder = run.folder / "evaluate"
    folder.mkdir(exist_ok=True)
    trainer, task, datamodule = rebuild(path, cfg, folder)
    metrics: dict[str, float] = {}
    with exact_float32():
        for tested in trainer.test(task, datamodule, verbose=False):  # one a test dataloader
            metrics |= tested
    write_json(folder / "metrics.json", {"checkpoint": str(path), **metrics})
    return metrics


def main() -> None:
    def program(cfg: DictConfig) -> None:
        cli.show(evaluate(cfg))

    cli.run(program, "evaluate")


if __name__ == "__main__":
    main()
