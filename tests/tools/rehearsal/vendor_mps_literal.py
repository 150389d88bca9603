"""Planted, kind 8: a branch for "mps", so that the devices do not run the same code."""

import torch.nn.functional as F
from cases import Task, planted
from torch import nn


@planted("vendor", mps="flagged", cuda="flagged", cpu="flagged", stage="")
class BranchForMps(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        x = batch[0]
        # fault: BranchForMps
        if x.device.type == "mps":
            x = x.contiguous()
        return F.cross_entropy(self.net(x), batch[1])
