"""Use a trained model on something of your own, on any device.

    python -m <package> predict run=latest input=...
    python -m <package> predict run=runs/NAME-1a2b3c4d input=... output=FILE
    python -m <package> predict run=best.ckpt input=...

The datamodule reads `input` (`read_inputs`), writes predictions (`write_predictions`) and names
their file (`predictions_file`). Without `input`, its `predict_dataloader` is used as in Lightning:
the list of what `predict_step` returns goes to predictions.pt, unless a callback such as
BasePredictionWriter writes it.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from .engine import cli
from .engine.errors import UserError
from .engine.files import write_whole
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

    import torch

    from .engine.trainer import build_trained, float32, has_loader, predict_as_lightning

    built = build_trained(checkpoint, cfg, trained.path)
    trainer, task, datamodule = built.trainer, built.task, built.datamodule
    if OmegaConf.is_missing(cfg, "input") and has_loader("predict", built):
        output = Path(cfg.output or trained.path / "predictions.pt")
        with float32(trainer):
            predictions = predict_as_lightning(built)
        if predictions is not None:
            with _writing(output):
                write_whole(output, lambda file: torch.save(predictions, file))
            log.info(f"written to {output}")
        return output
    for needed in ("read_inputs", "write_predictions", "predictions_file"):
        if not hasattr(datamodule, needed):
            raise UserError(
                f"{type(datamodule).__name__} has neither a predict_dataloader nor {needed}. Give"
                " it one; the datamodule of this project's starter shows how."
            )
    inputs = datamodule.read_inputs(str(cfg.input))  # an ordinary DataLoader
    with float32(trainer):
        predictions = trainer.predict(task, inputs)
    output = Path(cfg.output or trained.path / datamodule.predictions_file)
    with _writing(output):
        datamodule.write_predictions(predictions, output)
    log.info(f"written to {output}")
    return output


@contextlib.contextmanager
def _writing(output: Path) -> Iterator[None]:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{output} cannot be written: {error.strerror}. Add output=FILE, of another place."
        ) from error


def main() -> None:
    cli.run(predict, "predict", text="input")


if __name__ == "__main__":
    main()
