"""Planted, kind 8: a default device, which what Lightning and PyTorch make at import does not have."""

import os

import torch
import torch.nn.functional as F
from cases import Task, planted
from torch import nn


@planted("vendor", mps="flagged", cuda="flagged", cpu="flagged", stage="")
class DefaultDeviceSet(Task):
    def __init__(self) -> None:
        super().__init__()
        if "TRAIN_ON" in os.environ:
            # fault: DefaultDeviceSet
            torch.set_default_device(os.environ["TRAIN_ON"])
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])
