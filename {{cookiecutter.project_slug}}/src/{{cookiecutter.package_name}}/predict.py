"""Classify images of your own with a trained model, on any device.

    python -m <package>.predict run=latest input=photo.png
    python -m <package>.predict run=runs/mlp-1a2b3c4d input=folder_of_images
    python -m <package>.predict run=best.ckpt input=images.npy output=classes.csv

Writes a CSV with a line for each image: its name, its class, and each class's probability.
"""

import csv
import logging
from pathlib import Path

from omegaconf import DictConfig

from . import cli
from .errors import UserError
from .run import Run

log = logging.getLogger(__name__)


def predict(cfg: DictConfig) -> Path:
    """Classify what `cfg.input` names with the checkpoint that `cfg.run` names.

    Args:
        cfg: configs/predict.yaml, composed with the overrides.

    Returns:
        The CSV file.
    """
    run, path = Run.find(cfg.run, cfg.runs_dir)
    if not Path(cfg.input).exists():
        raise UserError(f"There is no {cfg.input}: say input=FILE or input=FOLDER.")

    import torch
    from torch.utils.data import DataLoader

    from .checkpoint import rebuild
    from .data.images import read_images
    from .data.tensors import TensorBatches, take_batch
    from .device import exact_float32

    trainer, task, datamodule = rebuild(path, cfg, run.folder)
    names, inputs = read_images(Path(cfg.input), datamodule.image_shape)
    batches = DataLoader(TensorBatches(inputs), datamodule.batch_size, collate_fn=take_batch)
    with exact_float32():
        probabilities = torch.cat(trainer.predict(task, batches))  # type: ignore[arg-type]

    output = Path(cfg.output or run.folder / "predictions.csv")
    output.parent.mkdir(parents=True, exist_ok=True)
    classes = datamodule.class_names
    lines = []
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "class", *(f"p({name})" for name in classes)])
        for name, row in zip(names, probabilities.tolist(), strict=True):
            best = max(range(len(classes)), key=row.__getitem__)
            writer.writerow([name, classes[best], *(f"{p:.6f}" for p in row)])
            lines.append(f"  {name}: {classes[best]} ({row[best]:.2f})")
    log.info("\n".join(lines[:10] + [f"  ... {len(lines) - 10} more"] * (len(lines) > 10)))
    log.info(f"written to {output}")
    return output


def main() -> None:
    cli.run(predict, "predict")


if __name__ == "__main__":
    main()
