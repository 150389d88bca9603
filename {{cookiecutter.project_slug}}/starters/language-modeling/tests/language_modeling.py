"""What the tests must know of this starter; all else in them is for any."""

from {{ cookiecutter.package_name }}.data.text import (
    TextDataModule as DataModule,
)
from {{ cookiecutter.package_name }}.tasks.language_modeling import (
    LanguageModelingTask as Task,
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

TINY: dict[str, object] = {  # values that make a run quick, of GPT-2 too
    "model.context": 16,
    "model.width": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "data.batch_size": 8,
    "optimizer.lr": 0.01,
    "trainer.limit_train_batches": 40,
    "trainer.limit_val_batches": 4,
    "trainer.limit_test_batches": 4,
    "trainer.val_check_interval": 1.0,
    "trainer.accumulate_grad_batches": 1,
}
RANDOM = ("model.dropout=0.2",)  # with random numbers in each step
STOPS = ("optimizer.lr=0.0",)  # what does not get better forever
LEAVES = "sample.txt"  # in the folder of a run
TOO_LARGE = ("memory=100MB",)  # but not with a smaller batch
ADDED_LAYER = "model.blocks.1.attention_norm.weight"  # of model.num_layers=3


def has_learned(metrics: dict[str, float]) -> bool:
    """After two epochs."""
    return metrics["test/loss"] < 3.5  # 5.5 are chance
