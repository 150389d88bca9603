"""Planted, kinds 7 and 9: what a target refuses, and what does not fit in its memory."""

import torch
import torch.nn.functional as F
from cases import Linear, Task, batches, on, planted, sound
from torch import nn
from torch.utils.checkpoint import checkpoint

NONE = on(line=False, stage="")


@planted("policy", mps="fails", **NONE)
class Float64Training(Linear):
    settings = {"precision": "64-true"}

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0].to(self.net.weight.dtype)), batch[1])


@planted("policy", cpu="fails", on_cpu=False, **NONE)
class Float16Mixed(Linear):
    """With a GradScaler; the CPU has none, and Lightning would take bf16 without a word."""

    settings = {"precision": "16-mixed"}


@planted("policy", cpu="fails", on_cpu=False, **NONE)
class Float16Mixed16(Linear):
    settings = {"precision": 16}


@planted("policy", mps="fails", **NONE)
class DistributedDataParallel(Linear):
    settings = {"strategy": "ddp"}


@planted("policy", mps="fails", cpu="any", on_cpu=False, **NONE)
class FullyShardedDataParallel(Linear):
    """On one CPU Lightning refuses it, and the project's policy takes it for auto."""

    settings = {"strategy": "fsdp"}


@planted("policy", mps="fails", on_cpu=False, **NONE)
class TwoDevices(Linear):
    """On the CPU these are two processes, which are not started here."""

    settings = {"devices": 2, "strategy": "ddp"}


class Wide(Task):
    """10 million parameters: 40 MB, and as much for the gradients, twice for AdamW."""

    def __init__(self, width: int = 2230) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(16, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 4),
        )

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


TOO_MUCH = on(mps="fails", cuda="fails", cpu="fails", line=None, stage="", real="fails")


@planted("memory", **TOO_MUCH)
class TooManyParameters(Wide):
    memory = "120MB"


@sound()
class ParametersThatFit(Wide):
    memory = "400MB"


@planted("memory", **TOO_MUCH)
class AdamWhereSGDWouldFit(Wide):
    """40 MB of weights and 40 of gradients would do for SGD; AdamW keeps 80 more."""

    memory = "150MB"


@sound()
class SGDThatFits(Wide):
    memory = "150MB"

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


ROWS = 16384


class Deep(Task):
    """Few parameters, and 64 activations of 4 MB each: 16,384 rows of 64 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 64), nn.Linear(64, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(64))

    def training_step(self, batch):
        x = self.first(batch[0])
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(x), batch[1])

    @staticmethod
    def data():
        return batches(torch.randn(ROWS, 16), torch.randint(0, 4, (ROWS,)), batch_size=ROWS)


@planted("memory", **TOO_MUCH)
class TooManyActivations(Deep):
    memory = "128MB"


@sound()
class CheckpointedActivations(Deep):
    """Saved one in eight, computed again in the backward pass."""

    memory = "200MB"

    def training_step(self, batch):
        x = self.first(batch[0])
        for start in range(0, 64, 8):
            x = checkpoint(nn.Sequential(*self.layers[start : start + 8]), x, use_reentrant=False)
        return F.cross_entropy(self.head(x), batch[1])


@planted("memory", **TOO_MUCH)
class AttentionOfLongTexts(Task):
    """Scores of 1,024 by 1,024, four heads, four texts: 64 MB, more than once."""

    memory = "100MB"

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 4)

    def training_step(self, batch):
        q, k, v = (x.unflatten(-1, (4, 4)).transpose(1, 2) for x in self.qkv(batch[0]).chunk(3, -1))
        mixed = (q @ k.mT / 2).softmax(-1) @ v
        return F.cross_entropy(self.head(mixed.transpose(1, 2).flatten(2)).mean(1), batch[1])

    @staticmethod
    def data():
        return batches(torch.randn(8, 1024, 16), torch.randint(0, 4, (8,)))
