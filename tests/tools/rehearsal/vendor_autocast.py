"""Planted, kind 8: autocast for "cuda" only: elsewhere it warns and does nothing."""

import torch
import torch.nn.functional as F
from cases import Task, planted
from torch import nn


@planted("vendor", mps="flagged", cuda="flagged", cpu="flagged", stage="")
class AutocastForCuda(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        # fault: AutocastForCuda
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = self.net(batch[0])
        return F.cross_entropy(logits.float(), batch[1])
