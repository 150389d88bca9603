"""Planted, kind 8: a copy by hand that does not wait; on MPS its data can be garbage."""

import torch.nn.functional as F
from cases import Task, planted
from torch import nn


@planted("vendor", mps="flagged", cuda="any", cpu="any", stage="")
class CopiedWithoutWaiting(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        # fault: CopiedWithoutWaiting
        return [part.to(device, non_blocking=True) for part in batch]

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])
