"""Planted, kind 8: the choice between "cuda" and "cpu" of a thousand tutorials; a Mac gets the CPU."""

import torch
import torch.nn.functional as F
from cases import Task, planted
from torch import nn

# fault: CudaOrElseTheCPU
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# Of CUDA nothing is claimed: the choice was made when this was imported, on a machine without it.
@planted("vendor", mps="flagged", cuda="any", cpu="flagged", stage="", also=("device",))
class CudaOrElseTheCPU(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        noise = torch.randn(len(batch[0]), 16, device=DEVICE)
        return F.cross_entropy(self.net(batch[0] + noise), batch[1])
