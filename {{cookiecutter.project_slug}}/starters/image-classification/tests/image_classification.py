"""What the tests must know of this starter; all else in them is for any."""

from {{ cookiecutter.package_name }}.data.digits import (
    DigitsDataModule as DataModule,
)
from {{ cookiecutter.package_name }}.tasks.classification import (
    ClassificationTask as Task,
)

__all__ = [
    "ADDED_LAYER",
    "LEAVES",
    "RANDOM",
    "STOPS",
    "TINY",
    "TOO_LARGE",
    "DataModule",
    "Task",
    "has_learned",
]

TINY: dict[str, object] = {}  # values that make a run quick: it is already
RANDOM = ("data.augment=true",)  # with random numbers in each step
STOPS = ("monitor=val/acc", "mode=max")  # what does not get better forever
LEAVES = "confusion.png"  # in the folder of a run
TOO_LARGE = ("experiment=convnet", "memory=2.5MB")  # but not with a smaller batch
ADDED_LAYER = "model.layers.9.weight"  # of model.num_layers=3


def has_learned(metrics: dict[str, float]) -> bool:
    """After two epochs."""
    return metrics["test/acc"] > 0.8
