"""Callbacks that ship with Lightning, and a user's own."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    Callback,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from torch import Tensor, nn

from .harness import Place, Scenario, by_scenario, check
from .tasks import NoBatchNorm, Task, loaders


class WithBackbone(Task):
    def __init__(self) -> None:
        super().__init__("epoch")
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    def loss(self, inputs: Tensor) -> Tensor:
        return self.model(self.backbone(inputs)).square().mean()

    def configure_optimizers(self) -> Any:
        trained = [one for one in self.parameters() if one.requires_grad]
        return torch.optim.AdamW(trained, lr=1e-2)


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, task: Any) -> None:
        self.freeze(task.backbone, train_bn=False)

    def finetune_function(self, task: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(task.backbone, optimizer, lr=0.02)


class UnfreezeByHand(Callback):
    """As people write it, without BaseFinetuning."""

    def setup(self, trainer: Any, task: Any, stage: str) -> None:
        task.backbone.requires_grad_(False)

    def on_train_epoch_start(self, trainer: Any, task: Any) -> None:
        if trainer.current_epoch == 1:
            task.backbone.requires_grad_(True)
            group = {"params": list(task.backbone.parameters()), "lr": 0.02}
            trainer.optimizers[0].add_param_group(group)


class Counter(Callback):
    """Has a state, and logs."""

    def __init__(self) -> None:
        self.batches, self.sum = 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "sum": self.sum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.batches, self.sum = state["batches"], state["sum"]

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, batch_idx: int) -> None:
        self.sum += float(batch[0].sum())

    def on_train_batch_end(self, trainer: Any, task: Any, *_: Any) -> None:
        self.batches += 1
        task.log("batches", float(self.batches))
        self.log("sum", self.sum, on_step=False, on_epoch=True)
        trainer.logger.log_metrics({"direct": self.batches}, step=trainer.global_step)


def keeper(folder: Path, name: str = "kept", **options: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder / name, **{"monitor": "val/loss"} | options)


SCENARIOS = {
    "best": Scenario(Task, loaders, lambda f: [keeper(f, save_last=True)]),
    "best 3": Scenario(
        Task, loaders, lambda f: [keeper(f, save_top_k=3)], {"val_check_interval": 2}
    ),
    "best 2, accumulated": Scenario(
        Task,
        loaders,
        lambda f: [keeper(f, save_top_k=2)],
        {"val_check_interval": 2, "accumulate_grad_batches": 4},
    ),
    "three that keep files": Scenario(
        Task,
        loaders,
        lambda f: [
            keeper(f, "checkpoints", filename="best", save_weights_only=True),
            keeper(f, "own", monitor="train/mean", mode="max", save_top_k=2, save_last=True),
            keeper(f, "steps", monitor=None, every_n_train_steps=2, save_top_k=-1),
        ],
    ),
    "best after some steps": Scenario(
        Task,
        loaders,
        lambda f: [keeper(f, every_n_train_steps=2, save_top_k=2)],
        {"val_check_interval": 3},
    ),
    "learning rate by step": Scenario(Task, loaders, lambda f: [LearningRateMonitor("step")]),
    "learning rate by both": Scenario(
        Task, loaders, lambda f: [LearningRateMonitor()], {"accumulate_grad_batches": 2}
    ),
    "learning rate by epoch": Scenario(
        lambda: Task("epoch"), loaders, lambda f: [LearningRateMonitor("epoch", log_momentum=True)]
    ),
    "averaged weights": Scenario(Task, loaders, lambda f: [WeightAveraging()]),
    "EMA": Scenario(
        Task,
        loaders,
        lambda f: [
            EMAWeightAveraging(decay=0.9, update_every_n_steps=2, update_starting_at_step=3),
            keeper(f, save_top_k=2),
        ],
        {"val_check_interval": 3},
    ),
    "EMA, best weights": Scenario(
        Task,
        loaders,
        lambda f: [EMAWeightAveraging(decay=0.9), keeper(f, save_weights_only=True)],
    ),
    "SWA": Scenario(
        lambda: Task("epoch"),
        loaders,
        lambda f: [StochasticWeightAveraging(0.05, swa_epoch_start=2)],
        {"max_epochs": 4},
    ),
    "SWA without batch norm": Scenario(
        lambda: NoBatchNorm("epoch"),
        loaders,
        lambda f: [StochasticWeightAveraging(0.05, swa_epoch_start=1, annealing_epochs=2)],
        {"max_epochs": 4},
    ),
    "finetuning": Scenario(WithBackbone, loaders, lambda f: [Unfreeze()]),
    "backbone finetuning": Scenario(
        WithBackbone,
        loaders,
        lambda f: [BackboneFinetuning(1, lambda epoch: 1.5, backbone_initial_ratio_lr=0.1)],
        {"max_epochs": 4},
    ),
    "finetuning by hand": Scenario(WithBackbone, loaders, lambda f: [UnfreezeByHand()]),
    "timer": Scenario(Task, loaders, lambda f: [Timer(duration="00:01:00:00", interval="step")]),
    "a user's own": Scenario(Task, loaders, lambda f: [Counter()]),
}
QUICK = {"three that keep files", "EMA", "finetuning", "finetuning by hand"}


@by_scenario(SCENARIOS, QUICK)
def test_resumes_exactly(tmp_path: Path, name: str, places: list[Place], fast: bool) -> None:
    check(tmp_path, SCENARIOS[name], places, fast=fast)
