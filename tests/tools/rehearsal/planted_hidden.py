"""Planted, kinds 1 to 4 and 6 again, where the fault hides: in caches, hooks, libraries, conversions."""

import functools
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
import torchmetrics
from cases import Linear, Task, batches, on, planted, sequences
from torch import Tensor, nn

BOTH = on(mps="fails", cuda="fails", real="fails")
MPS = on(mps="fails")
WAITS = on(mps="warning", cuda="warning", real="stalls")
ALL = on(mps="fails", cuda="fails", cpu="fails", line=None, stage="")


@functools.lru_cache
def positions(length: int, width: int) -> Tensor:
    return torch.linspace(0, 1, length * width).view(length, width)


@planted("device", **BOTH)
class CachedOnTheCPU(Task):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def training_step(self, batch):
        x, y = batch
        # fault: CachedOnTheCPU
        x = x + positions(x.shape[1], x.shape[2])
        return F.cross_entropy(self.head(x.mean(1)), y)

    data = staticmethod(sequences)


@planted("device", **BOTH)
class LayerMadeInTheStep(Linear):
    """A new layer is on the CPU, and is not trained either."""

    def training_step(self, batch):
        head = nn.Linear(4, 4)
        # fault: LayerMadeInTheStep
        return F.cross_entropy(head(self.net(batch[0])), batch[1])


@planted("device", **BOTH)
class NoiseOfADistribution(Linear):
    """torch.distributions samples where its parameters are: Python's numbers are on the CPU."""

    def training_step(self, batch):
        x, y = batch
        noise = torch.distributions.Normal(0.0, 0.1).sample(x.shape)
        # fault: NoiseOfADistribution
        return F.cross_entropy(self.net(x + noise), y)


@planted("device", **BOTH)
class WeightsInsideALossThatIsNoChild(Linear):
    """The loss is a module, but stands in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = {"ce": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0, 0.5]))}

    def training_step(self, batch):
        # fault: WeightsInsideALossThatIsNoChild
        return self.losses["ce"](self.net(batch[0]), batch[1])


@planted("device", **BOTH)
class BufferReplacedOnTheCPU(Linear):
    """A buffer, until a step puts another tensor in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(4))

    def training_step(self, batch):
        self.scale = torch.full((4,), 0.5)
        # fault: BufferReplacedOnTheCPU
        return F.cross_entropy(self.net(batch[0]) * self.scale, batch[1])


@planted("device", **BOTH)
class ScatteredIntoTheCPU(Linear):
    def training_step(self, batch):
        x, y = batch
        hot = torch.zeros(len(x), 4)
        # fault: ScatteredIntoTheCPU
        hot.scatter_(1, y[:, None], 1.0)
        return F.cross_entropy(self.net(x), hot)


@planted("device", **BOTH)
class NoiseAfterTheTransfer(Linear):
    """In a hook that runs on the device."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        # fault: NoiseAfterTheTransfer
        return [x + 0.1 * torch.randn(x.shape), y]


@planted("device", stage="", **BOTH)
class PrototypesOfTheEpochEnd(Linear):
    """Met when the validation epoch ends."""

    def on_validation_epoch_start(self) -> None:
        self.outputs: list[Tensor] = []

    def validation_step(self, batch):
        self.outputs.append(self.net(batch[0]))

    def on_validation_epoch_end(self) -> None:
        prototypes = torch.eye(4)
        # fault: PrototypesOfTheEpochEnd
        self.log("val/near", (torch.cat(self.outputs) @ prototypes).mean())


@planted("device", **BOTH)
class GradientsScaledOnTheCPU(Linear):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        scale = torch.linspace(0.5, 1, 16)
        # fault: GradientsScaledOnTheCPU
        self.net.weight.grad.mul_(scale)


@planted("dtype", **MPS)
class SumInFloat64(Linear):
    def training_step(self, batch):
        losses = F.cross_entropy(self.net(batch[0]), batch[1], reduction="none")
        # fault: SumInFloat64
        return (losses.sum(dtype=torch.float64) / len(losses)).float()


@planted("dtype", **MPS)
class NumpyMovedToTheDevice(Linear):
    def training_step(self, batch):
        x, y = batch
        table = torch.from_numpy(np.hanning(16))
        # fault: NumpyMovedToTheDevice
        table = table.to(x.device)
        return F.cross_entropy(self.net(x * table.float()), y)


@planted("dtype", **MPS)
class DistancesOfTorchmetrics(Linear):
    """A function of torchmetrics that computes in float64."""

    def training_step(self, batch):
        hidden = self.net(batch[0])
        # fault: DistancesOfTorchmetrics
        spread = torchmetrics.functional.pairwise_euclidean_distance(hidden.detach())
        return F.cross_entropy(hidden, batch[1]) + 0 * spread.mean()


@planted("fallback", **MPS)
class LogSpacedOnTheDevice(Linear):
    def training_step(self, batch):
        x, y = batch
        # fault: LogSpacedOnTheDevice
        rates = torch.logspace(-1, 0, 16, device=x.device)
        return F.cross_entropy(self.net(x * rates), y)


@planted("fallback", cuda="may warn", **MPS)
class SegmentsReduced(Linear):
    def training_step(self, batch):
        x, y = batch
        lengths = torch.full((2,), 2, device=x.device)
        # fault: SegmentsReduced
        pooled = torch.segment_reduce(self.net(x), "mean", lengths=lengths)
        return F.cross_entropy(pooled, y[:2])


@planted("fallback", **MPS)
class MultilabelMargin(Linear):
    def training_step(self, batch):
        targets = F.pad(batch[1][:, None], (0, 3), value=-1)
        # fault: MultilabelMargin
        return F.multilabel_margin_loss(self.net(batch[0]), targets)


@planted("fallback", cuda="may warn", mps_since="2.14", **MPS)
class LowRankApproximation(Linear):
    """svd_lowrank is Python of PyTorch's; what it calls in the end is not on MPS."""

    def training_step(self, batch):
        hidden = self.net(batch[0])
        # fault: LowRankApproximation
        _, values, _ = torch.svd_lowrank(hidden.detach(), q=2)
        return F.cross_entropy(hidden, batch[1]) + 0 * values.sum()


@planted("sync", **WAITS)
class LargestOfAPythonList(Linear):
    """Python's max() compares tensors, and must know which is larger."""

    def training_step(self, batch):
        logits = self.net(batch[0])
        # fault: LargestOfAPythonList
        worst = max(logits.square().mean(0))
        return F.cross_entropy(logits, batch[1]) + 0 * worst


@planted("sync", **WAITS)
class ExponentOfMath(Linear):
    def training_step(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        # fault: ExponentOfMath
        self.perplexity = math.exp(loss)
        return loss


@planted("sync", **WAITS)
class RangeOfATensor(Linear):
    def training_step(self, batch):
        x, y = batch
        # fault: RangeOfATensor
        for _ in range(y.max() + 1):
            x = x * 0.9
        return F.cross_entropy(self.net(x), y)


@planted("sync", **WAITS)
class MovedByTheStringCpu(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []

    def training_step(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        # fault: MovedByTheStringCpu
        self.history.append(loss.detach().to("cpu"))
        return loss


@planted("sync", **WAITS)
class SplitByLengthsOfATensor(Linear):
    def training_step(self, batch):
        x, y = batch
        # fault: SplitByLengthsOfATensor
        parts = self.net(x).split((y * 0 + 1).tolist())
        return torch.stack([part.square().mean() for part in parts]).mean()


@planted("sync", **WAITS)
class GaussianLossThatChecks(Linear):
    """The function looks whether a variance is negative."""

    def training_step(self, batch):
        z = self.net(batch[0])
        # fault: GaussianLossThatChecks
        return F.gaussian_nll_loss(z, torch.zeros_like(z), torch.ones_like(z))


@planted("sync", **WAITS)
class DistributionThatValidates(Linear):
    """Asked to check its arguments, which is the default too until torch._dynamo is loaded."""

    def training_step(self, batch):
        logits = self.net(batch[0])
        # fault: DistributionThatValidates
        choice = torch.distributions.Categorical(logits=logits, validate_args=True)
        return choice.entropy().mean() + F.cross_entropy(logits, batch[1])


@planted("sync", **WAITS)
class WhileNotConverged(Linear):
    def training_step(self, batch):
        x, y = batch
        # fault: WhileNotConverged
        while x.norm() > 30:
            x = x * 0.9
        return F.cross_entropy(self.net(x), y)


class Scaled(L.LightningDataModule):
    def __init__(self, transform: Any) -> None:
        super().__init__()
        # fault: TransformInTheHyperparametersOfTheData
        self.save_hyperparameters()

    def train_dataloader(self):
        return batches(torch.randn(8, 16), torch.randint(0, 4, (8,)))


@planted("checkpoint", **ALL)
class TransformInTheHyperparametersOfTheData(Linear):
    """A datamodule's hyper-parameters are saved, too."""

    @staticmethod
    def data():
        return Scaled(nn.Identity())


class Remembering(nn.Linear):
    def get_extra_state(self) -> Any:
        # fault: PathInTheExtraState
        return {"origin": Path("weights.pt")}

    def set_extra_state(self, state: Any) -> None:
        self.origin = state["origin"]


@planted("checkpoint", **ALL)
class PathInTheExtraState(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.net = Remembering(16, 4)


@planted("checkpoint", **ALL)
class NumpyInTheStateOfTheOptimizer(Linear):
    def configure_optimizers(self):
        # fault: NumpyInTheStateOfTheOptimizer
        return torch.optim.SGD(self.parameters(), lr=np.logspace(-3, -1, 3)[1])
