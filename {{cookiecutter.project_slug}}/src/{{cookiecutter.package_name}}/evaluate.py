"""Test a trained model again, from its run folder or its checkpoint alone, on any device.

    python -m <package> evaluate run=latest
    python -m <package> evaluate run=runs/NAME-1a2b3c4d trainer.accelerator=cpu
    python -m <package> evaluate run=best.ckpt +data.batch_size=256

Prints the test metrics. Writes them, and what the group `show` draws, to the run's folder
`evaluate`.
"""

import contextlib
import logging

from omegaconf import DictConfig

from .engine import cli
from .engine.run import find, write_json

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Test the checkpoint that `cfg.run` names.

    Args:
        cfg: configs/evaluate.yaml, composed with the overrides.

    Returns:
        The test metrics.
    """
    trained, checkpoint = find(cfg.run, cfg.runs_dir)  # says at once if there is none

    from .engine.trainer import build_trained, compute_test_metrics

    folder = trained.path / "evaluate"
    with contextlib.suppress(OSError):  # said below
        folder.mkdir(exist_ok=True)
    metrics = compute_test_metrics(build_trained(checkpoint, cfg, folder))
    try:
        write_json(folder / "metrics.json", {"checkpoint": str(checkpoint), **metrics})
    except OSError as error:
        log.warning(f"{folder} cannot be written ({error.strerror}): the results are only here.")
    return metrics


def main() -> None:
    cli.run(lambda cfg: cli.show(evaluate(cfg)), "evaluate")


if __name__ == "__main__":
    main()
