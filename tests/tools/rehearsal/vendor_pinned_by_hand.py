"""Planted, kind 8: pin_memory() by hand; on MPS the tensor is then one of the GPU's."""

from typing import Any

import torch
import torch.nn.functional as F
from cases import Task, planted
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate


def collate(rows: Any) -> list[Tensor]:
    x, y = default_collate(rows)
    if torch.accelerator.is_available():
        # fault: PinnedByHand
        x = x.pin_memory()
    return [x, y]


@planted("vendor", mps="flagged", cuda="any", cpu="any", stage="")
class PinnedByHand(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    @staticmethod
    def data():
        rows = [(torch.randn(16), index % 4) for index in range(8)]
        return DataLoader(rows, 4, collate_fn=collate)
