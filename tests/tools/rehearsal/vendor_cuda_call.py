"""Planted, kind 8: a tensor moved by .cuda(). It stands in a file of its own, which is read whole."""

import torch.nn.functional as F
from cases import Task, planted
from torch import nn


@planted(
    "vendor",
    mps="fails",
    cpu="fails",
    cuda="warning",
    stage="",
    on_cpu=False,
    also=("error", "device"),
)
class MovedByCuda(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        # fault: MovedByCuda
        x, y = batch[0].cuda(), batch[1]
        return F.cross_entropy(self.net(x), y.to(x.device))
