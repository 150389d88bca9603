"""Callbacks of a user."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import (
    BasePredictionWriter,
    Callback,
    LambdaCallback,
    WeightAveraging,
)
from torch.optim.swa_utils import get_ema_avg_fn


class Counter(Callback):
    """A callback with state."""

    def __init__(self) -> None:
        self.state = {"epochs": 0, "batches": 0}

    def on_train_epoch_end(self, *_: Any) -> None:
        self.state["epochs"] += 1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.state["batches"] += 1
        pl_module.log("batches", float(self.state["batches"]))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state.update(state_dict)

    def state_dict(self) -> dict[str, Any]:
        return self.state.copy()


class SaysWhy(Callback):
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        print(f"on_exception: {type(exception).__name__}", flush=True)


class Writer(BasePredictionWriter):
    """The example of BasePredictionWriter's documentation."""

    def __init__(self, output_dir: str, write_interval: str = "epoch") -> None:
        super().__init__(write_interval)
        self.output_dir = output_dir

    def write_on_epoch_end(
        self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any
    ) -> None:
        torch.save(predictions, Path(self.output_dir, "written.pt"))


class EveryStepAveraging(WeightAveraging):
    """The example of WeightAveraging's documentation."""

    def __init__(self) -> None:
        super().__init__(avg_fn=get_ema_avg_fn(0.9))

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return step_idx is not None and step_idx >= 5


def by_lambda() -> LambdaCallback:
    return LambdaCallback(
        on_train_batch_end=lambda trainer, module, *_: module.log(
            "double", 2.0 * trainer.global_step
        )
    )


def accumulation() -> dict[int, int]:
    return {0: 1, 1: 3}
