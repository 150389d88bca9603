"""Use a trained model on something of your own, on any device.

    python -m <package> predict run=latest input=...
    python -m <package> predict run=runs/NAME-1a2b3c4d input=... output=FILE
    python -m <package> predict run=best.ckpt input=...

What an input is, and how predictions are written, is for the datamodule to say.
"""

import logging
from pathlib import Path

from omegaconf import DictConfig

from .engine import cli
from .engine.errors import UserError
from .engine.run import find

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> Path:
    """Give `cfg.input` to the checkpoint that `cfg.run` names.

    Args:
        cfg: configs/predict.yaml, composed with the overrides.

    Returns:
        The file with the predictions.
    """
    if cfg.output is not None and Path(cfg.output).is_dir():
        raise UserError(f"output={cfg.output} is a folder. Name a file.")
    trained, checkpoint = find(cfg.run, cfg.runs_dir)  # says at once if there is none

    from .engine.trainer import build_trained, float32

    built = build_trained(checkpoint, cfg, trained.path)
    trainer, task, datamodule = built.trainer, built.task, built.datamodule
    for method in ("read_inputs", "write_predictions"):
        if not hasattr(datamodule, method):
            raise UserError(
                f"{type(datamodule).__name__} has no {method}, which predict needs. The datamodule"
                " of this project's starter shows one."
            )
    inputs = datamodule.read_inputs(str(cfg.input))  # an ordinary DataLoader
    with float32(trainer):
        predictions = trainer.predict(task, inputs)
    output = Path(cfg.output or trained.path / datamodule.predictions_file)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        datamodule.write_predictions(predictions, output)
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
