"""Use a trained model on something of your own, on any device.

    python -m <package>.predict run=latest input=...
    python -m <package>.predict run=runs/NAME-1a2b3c4d input=... output=FILE
    python -m <package>.predict run=best.ckpt input=...

What an input is, and what is written, is for the task to say: its `answer`.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig

from . import cli
from .errors import UserError
from .run import Run

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> Path:
    """Give `cfg.input` to the checkpoint that `cfg.run` names.

    Args:
        cfg: configs/predict.yaml, composed with the overrides.

    Returns:
        The file with the answer.
    """
    if cfg.output is not None and Path(cfg.output).is_dir():
        raise UserError(f"output={cfg.output} is a folder: name a file.")
    run, path = Run.find(cfg.run, cfg.runs_dir)
    from .checkpoint import rebuild  # only now: a run that is not there is said at once
    from .device import exact_float32

    trainer, task, datamodule = rebuild(path, cfg, run.folder)
    answer = getattr(task, "answer", None)
    if answer is None:
        raise UserError(f"{type(task).__name__} has no `answer`: write one to use predict.")
    try:
        with exact_float32():
            output: Path = answer(cfg, trainer, datamodule, run.folder)
    except OSError as error:
        if cfg.output is None:
            raise
        raise UserError(f"output={cfg.output} cannot be written: {error.strerror}.") from error
    log.info(f"written to {output}")
    return output


def main() -> None:
    cli.run(predict, "predict", text="input")


if __name__ == "__main__":
    main()
