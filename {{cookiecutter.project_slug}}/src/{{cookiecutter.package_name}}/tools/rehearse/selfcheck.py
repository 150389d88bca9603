"""One step that is known to be sound and one that is known to be faulty, before anything is judged.

A rehearsal uses private parts of PyTorch, which a new version or another build can change. If
either step comes out wrong, nothing that a rehearsal says can be trusted.
"""

import functools

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from . import batches
from .findings import Finding
from .steps import rehearse_steps


class Sound(LightningModule):
    """Trains on every device."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        loss = F.cross_entropy(self.net(self.prepared(inputs)), targets)
        self.log("train/loss", loss)
        return loss

    def prepared(self, inputs: Tensor) -> Tensor:
        return inputs

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class Faulty(Sound):
    """Adds a tensor on the CPU, or on the CPU one of a wrong shape."""

    def prepared(self, inputs: Tensor) -> Tensor:
        return inputs + torch.ones(7 if inputs.device.type == "cpu" else 8, dtype=inputs.dtype)


@functools.cache
def untrusted(target: str, precision: str) -> Finding | None:
    """Return why no rehearsal for `target` can be trusted here, or None if both come out right."""
    for task in (Sound, Faulty):
        expected = [] if task is Sound else ["error" if target == "cpu" else "device"]
        try:
            found = _findings(task, target, precision)
        except Exception as error:
            found = [Finding("error", "fails", f"{type(error).__name__}: {error}", "")]
        if sorted({one.kind for one in found if one.severity == "fails"}) != expected or (
            task is Sound and found
        ):
            said = " ".join(found[0].message.split())[:200] if found else "nothing was found"
            return Finding(
                "undecided",
                "unknown",
                f"rehearse does not work with PyTorch {torch.__version__} here: of a step known to"
                f" be {task.__name__.lower()} it says: {said}",
                "train on the device itself, and report this",
            )
    return None


def _findings(task: type[LightningModule], target: str, precision: str) -> list[Finding]:
    with torch.random.fork_rng(devices=[]):
        data = TensorDataset(torch.randn(8, 8), torch.randint(0, 4, (8,)))
        datamodule = batches.OneLoader(DataLoader(data, batch_size=8))
        taken = batches.take(datamodule)
        rehearsal = rehearse_steps(task, datamodule, taken, target, precision=precision)
    if rehearsal.meter.optimizer == 0 and not rehearsal.findings:
        return [Finding("error", "fails", "the optimizer made no step", "")]
    return rehearsal.findings
