"""Fine-tuning: a frozen backbone that is unfrozen later."""

from typing import Any

import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import Tensor, nn

from .regression import Regression


class Transfer(Regression):
    """`backbone` is what BackboneFinetuning looks for."""

    def __init__(self, lr: float = 0.01, dropout: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Identity()
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))

    def configure_optimizers(self) -> Any:
        trained = filter(lambda p: p.requires_grad, self.parameters())
        return torch.optim.Adam(trained, lr=self.hparams.lr)


class Frozen(Transfer):
    """Frozen by hand, and unfrozen in a hook."""

    def on_train_epoch_start(self) -> None:
        frozen = self.current_epoch < 1
        self.backbone.requires_grad_(not frozen)
        self.backbone.train(not frozen)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class UnfreezeAt(BaseFinetuning):
    """The example of BaseFinetuning's documentation."""

    def __init__(self, unfreeze_at_epoch: int = 1) -> None:
        super().__init__()
        self._unfreeze_at_epoch = unfreeze_at_epoch

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, current_epoch: int, optimizer: Any) -> None:
        if current_epoch == self._unfreeze_at_epoch:
            self.unfreeze_and_add_param_group(
                modules=pl_module.backbone, optimizer=optimizer, train_bn=True
            )


def double(epoch: int) -> float:
    """For BackboneFinetuning(lambda_func=...)."""
    return 2.0
