"""Planted, kind 3: operators that the target does not have, in the forward or the backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from cases import Linear, Task, batches, images, on, planted
from torch import Tensor, nn

# In a training step the CPU computes it each time while the GPU waits: that is a failure unless the
# user accepts it. On CUDA, linear algebra may warn: its checks for errors read a value.
FALLBACK = on(mps="fails")


class Square(Task):
    """Its batches are square matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 4)

    @staticmethod
    def data():
        return batches(torch.randn(8, 4, 4) + 3 * torch.eye(4))


@planted("fallback", cuda="may warn", mps_since="2.14", **FALLBACK)
class Eigenvalues(Square):
    def training_step(self, batch):
        h = self.net(batch[0])
        # fault: Eigenvalues
        values = torch.linalg.eigvalsh(h + h.mT)
        return values.square().mean()


@planted("fallback", cuda="may warn", mps_since="2.14", **FALLBACK)
class Eigenvectors(Square):
    def training_step(self, batch):
        h = self.net(batch[0])
        # fault: Eigenvectors
        values, vectors = torch.linalg.eigh(h @ h.mT)
        return values.mean() + vectors.abs().mean()


@planted("fallback", cuda="may warn", mps_since="2.14", **FALLBACK)
class NuclearNorm(Square):
    def training_step(self, batch):
        # fault: NuclearNorm
        return torch.linalg.svdvals(self.net(batch[0])).sum()


@planted("fallback", cuda="may warn", mps_since="2.14", **FALLBACK)
class LeastSquares(Square):
    def training_step(self, batch):
        with torch.no_grad():
            # fault: LeastSquares
            solved = torch.linalg.lstsq(batch[0], batch[0].sum(-1, keepdim=True)).solution
        return (self.net(batch[0]) @ solved).square().mean()


@planted("fallback", mps_since="2.14", **FALLBACK)
class MatrixExponential(Square):
    def training_step(self, batch):
        # fault: MatrixExponential
        return torch.matrix_exp(0.1 * self.net(batch[0])).mean()


@planted("fallback", **FALLBACK)
class MarginLoss(Linear):
    def training_step(self, batch):
        # fault: MarginLoss
        return F.multi_margin_loss(self.net(batch[0]), batch[1])


@planted("fallback", **FALLBACK)
class RandomizedReLU(Linear):
    def training_step(self, batch):
        # fault: RandomizedReLU
        hidden = F.rrelu(self.net(batch[0]), training=True)
        return F.cross_entropy(hidden, batch[1])


@planted("fallback", **FALLBACK)
class FractionalPooling(Task):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 49, 4)

    def training_step(self, batch):
        # fault: FractionalPooling
        pooled = F.fractional_max_pool2d(self.conv(batch[0]), 2, output_size=7)
        return F.cross_entropy(self.head(pooled.flatten(1)), batch[1])

    data = staticmethod(images)


@planted("fallback", **FALLBACK)
class PairwiseDistances(Linear):
    def training_step(self, batch):
        # fault: PairwiseDistances
        spread = F.pdist(self.net(batch[0]))
        return (1 / (1 + spread)).mean()


@planted("fallback", **FALLBACK)
class FlatTake(Linear):
    def training_step(self, batch):
        logits = self.net(batch[0])
        places = torch.arange(len(logits), device=logits.device) * 4 + batch[1]
        # fault: FlatTake
        return -torch.take(logits.log_softmax(-1), places).mean()


@planted("fallback", mps_since="2.14", **FALLBACK)
class PoissonNoise(Linear):
    def training_step(self, batch):
        # fault: PoissonNoise
        noisy = torch.poisson(batch[0].abs())
        return F.cross_entropy(self.net(noisy), batch[1])


@planted("fallback", **FALLBACK)
class MajorityVote(Linear):
    def training_step(self, batch):
        logits = self.net(batch[0])
        votes = torch.stack([logits.argmax(-1), logits.argmin(-1), batch[1]])
        # fault: MajorityVote
        agreed = votes.mode(0).values
        return F.cross_entropy(logits, agreed)


@planted("fallback", backward=True, mps_since="2.14", **FALLBACK)
class AntialiasedResize(Task):
    """MPS has the forward, and not the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 4)

    def training_step(self, batch):
        # fault: AntialiasedResize
        small = F.interpolate(self.conv(batch[0]), (6, 6), mode="bilinear", antialias=True)
        return F.cross_entropy(self.head(small.flatten(1)), batch[1])

    data = staticmethod(images)


@planted("fallback", mps="warning", cuda="may warn", stage="val", mps_since="2.14")
class ConditionInValidation(Square):
    """Outside of training it costs little: a warning."""

    def training_step(self, batch):
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch):
        # fault: ConditionInValidation
        self.log("condition", torch.linalg.svdvals(batch[0]).amax())


@planted("fallback", mps="warning", cuda="may warn", mps_since="2.14")
class AcceptedEigenvalues(Square):
    """Accepted by the user, with a reason."""

    accept = {"linalg_eigh": "once a step on 4 by 4 matrices"}

    def training_step(self, batch):
        h = self.net(batch[0])
        # fault: AcceptedEigenvalues
        return torch.linalg.eigvalsh(h + h.mT).square().mean()


class StepFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # fault: HeavisideInTheBackward
        return grad * torch.heaviside(x, torch.zeros_like(x))


@planted("fallback", backward=True, **FALLBACK)
class HeavisideInTheBackward(Linear):
    def training_step(self, batch):
        return F.cross_entropy(StepFunction.apply(self.net(batch[0])), batch[1])


class Whitened(torch.optim.Optimizer):
    """A second-order step: the root of each gradient's covariance."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim == 2:
                    # fault: OptimizerWithEigenvectors
                    values, vectors = torch.linalg.eigh(p.grad @ p.grad.T)
                    root = vectors @ torch.diag(values.clamp(min=1e-6).rsqrt()) @ vectors.T
                    p.sub_(group["lr"] * root @ p.grad)
        return loss


@planted("fallback", cuda="may warn", mps_since="2.14", **FALLBACK)
class OptimizerWithEigenvectors(Linear):
    def configure_optimizers(self):
        return Whitened(self.parameters())


@planted("operator", mps="fails", also=("fallback",))
class UnevenAdaptivePooling(Task):
    """MPS has it for sizes that divide only: 16 into 7 is an error there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 49, 4)

    def training_step(self, batch):
        # fault: UnevenAdaptivePooling
        pooled = F.adaptive_avg_pool2d(self.conv(batch[0]), 7)
        return F.cross_entropy(self.head(pooled.flatten(1)), batch[1])

    data = staticmethod(images)


@planted("operator", cuda="fails", real="fails")
class HistogramOfTheOutputs(Linear):
    """CUDA lacks it (MPS and the CPU have it)."""

    def training_step(self, batch):
        logits = self.net(batch[0])
        edges = torch.linspace(-3, 3, 8, device=logits.device)
        # fault: HistogramOfTheOutputs
        counts, _ = torch.histogram(logits.detach(), edges)
        return F.cross_entropy(logits, batch[1]) + 0 * counts.sum()


@planted("operator", cuda="fails", stage="test", real="fails")
class HistogramOfTheTest(Linear):
    def test_step(self, batch):
        logits = self.net(batch[0])
        # fault: HistogramOfTheTest
        counts = torch.histogram(logits, bins=8, range=(-3.0, 3.0)).hist
        self.log("test/most", counts.amax())
