"""Small runs of the text project."""

from collections.abc import Callable

from engine.small_runs import compose_config
from omegaconf import DictConfig

Compose = Callable[..., DictConfig]
TINY = (
    *("model.context=16", "model.width=16", "model.num_layers=1", "model.num_heads=2"),
    *("data.batch_size=8", "optimizer.lr=0.01", "trainer.limit_train_batches=40"),
    *("trainer.limit_val_batches=4", "trainer.limit_test_batches=4", "trainer.max_epochs=1"),
)


def compose_text(name: str, *overrides: str) -> DictConfig:
    return compose_config(name, *overrides, package="text_project")
