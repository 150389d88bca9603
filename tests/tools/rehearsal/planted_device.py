"""Planted, kind 1: a tensor on the CPU meets those of the device.

The line at fault is that of the operator that meets both.
"""

from typing import Any

import torch
import torch.nn.functional as F
import torchmetrics
from cases import Linear, Task, batches, on, planted, sequences, tokens
from torch import Tensor, nn

BOTH = on(mps="fails", cuda="fails", real="fails")


@planted("device", **BOTH)
class RecurrentStateOnTheCPU(Task):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def training_step(self, batch):
        x, y = batch
        state = (torch.zeros(1, len(x), 16), torch.zeros(1, len(x), 16))
        # fault: RecurrentStateOnTheCPU
        out, _ = self.rnn(x, state)
        return F.cross_entropy(self.head(out[:, -1]), y)

    data = staticmethod(sequences)


@planted("device", **BOTH)
class PositionsOnTheCPU(Task):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(32, 8), nn.Embedding(64, 8)
        self.head = nn.Linear(8, 32)

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1])
        x = self.embed(text)
        # fault: PositionsOnTheCPU
        x = x + self.positions(places)
        return self.head(x)

    def training_step(self, batch):
        return F.cross_entropy(self(batch[0]).transpose(1, 2), batch[1])

    data = staticmethod(tokens)


class Attention(nn.Module):
    """A mask as a plain attribute, which .to() does not move."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(8, 8)
        self.mask = torch.ones(12, 12).tril()

    def forward(self, x: Tensor) -> Tensor:
        scores = self.lin(x) @ x.transpose(1, 2)
        # fault: MaskThatIsNoBuffer
        scores = scores.masked_fill(self.mask == 0, -1e9)
        return scores.softmax(-1) @ x


@planted("device", **BOTH)
class MaskThatIsNoBuffer(Task):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.head = nn.Linear(8, 4)

    def training_step(self, batch):
        return F.cross_entropy(self.head(self.attention(batch[0]).mean(1)), batch[1])

    data = staticmethod(sequences)


@planted("device", **BOTH)
class ClassWeightsOnTheCPU(Linear):
    def training_step(self, batch):
        weights = torch.tensor([1.0, 2.0, 1.0, 0.5])
        # fault: ClassWeightsOnTheCPU
        return F.cross_entropy(self.net(batch[0]), batch[1], weight=weights)


@planted("device", **BOTH)
class NoiseOnTheCPU(Task):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 8), nn.Linear(4, 16)

    def training_step(self, batch):
        mean, log_variance = self.encoder(batch[0]).chunk(2, -1)
        noise = torch.randn(mean.shape)
        # fault: NoiseOnTheCPU
        z = mean + (0.5 * log_variance).exp() * noise
        return F.mse_loss(self.decoder(z), batch[0])


@planted("device", **BOTH)
class EyeIndexedByLabels(Linear):
    def training_step(self, batch):
        # fault: EyeIndexedByLabels
        targets = torch.eye(4)[batch[1]]
        return F.binary_cross_entropy_with_logits(self.net(batch[0]), targets)


@planted("device", **BOTH)
class HeadsInAPlainList(Task):
    """A list of modules is not registered, so the heads stay behind."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(16, 8)
        self.heads = [nn.Linear(8, 2), nn.Linear(8, 2)]

    def training_step(self, batch):
        hidden = self.trunk(batch[0])
        # fault: HeadsInAPlainList
        logits = torch.cat([head(hidden) for head in self.heads], -1)
        return F.cross_entropy(logits, batch[1])


class FocalLoss:
    """A loss that is no module, with a tensor inside."""

    def __init__(self) -> None:
        self.alpha = torch.tensor([0.25, 0.25, 0.25, 0.25])

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        probabilities = logits.softmax(-1)
        # fault: LossObjectWithATensor
        weighted = self.alpha * probabilities.log()
        return -weighted.gather(1, targets[:, None]).mean()


@planted("device", **BOTH)
class LossObjectWithATensor(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = FocalLoss()

    def training_step(self, batch):
        return self.criterion(self.net(batch[0]), batch[1])


@planted("device", stage="val", **BOTH)
class ConfusionCountedOnTheCPU(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.confusion = torch.zeros(4, 4)

    def validation_step(self, batch):
        preds = F.one_hot(self.net(batch[0]).argmax(-1), 4).float()
        truth = F.one_hot(batch[1], 4).float()
        # fault: ConfusionCountedOnTheCPU
        self.confusion += truth.t() @ preds


@planted("device", stage="test", **BOTH)
class ThresholdsOfTheTest(Linear):
    def test_step(self, batch):
        best = self.net(batch[0]).softmax(-1).amax(-1)
        thresholds = torch.linspace(0, 1, 5)
        # fault: ThresholdsOfTheTest
        self.log("above", (best[:, None] > thresholds).float().mean())


@planted("device", stage="predict", **BOTH)
class SamplingFromNoiseOfTheCPU(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 16)

    def training_step(self, batch):
        return F.mse_loss(self.net(batch[0]), batch[0])

    def predict_step(self, batch):
        x = torch.randn(4, 16)
        for _ in range(3):
            # fault: SamplingFromNoiseOfTheCPU
            x = x - 0.1 * self.net(x)
        return x


@planted("device", **BOTH)
class MetricsInAPlainDictionary(Linear):
    """A ModuleDict would move them."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = {"acc": torchmetrics.classification.MulticlassAccuracy(4)}

    def training_step(self, batch):
        logits = self.net(batch[0])
        for metric in self.metrics.values():
            # fault: MetricsInAPlainDictionary
            metric.update(logits, batch[1])
        return F.cross_entropy(logits, batch[1])


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        fade = torch.linspace(1, 0.5, grad.shape[-1])
        # fault: BackwardWithATensorOfTheCPU
        return grad * fade


@planted("device", backward=True, **BOTH)
class BackwardWithATensorOfTheCPU(Linear):
    def training_step(self, batch):
        return F.cross_entropy(Straight.apply(self.net(batch[0])), batch[1])


class Momentum(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "speed" not in state:
                    state["speed"] = torch.zeros(p.shape)
                speed = state["speed"].mul_(0.9)
                # fault: OptimizerWithStateOnTheCPU
                p.sub_(group["lr"] * speed.add_(p.grad))
        return loss


@planted("device", **BOTH)
class OptimizerWithStateOnTheCPU(Linear):
    def configure_optimizers(self):
        return Momentum(self.parameters())


@planted("device", **BOTH)
class GradientPenaltyOnTheCPU(Task):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Linear(16, 1)

    def training_step(self, batch, batch_idx):
        real = batch[0]
        fake = torch.randn_like(real)
        share = torch.rand(len(real), 1)
        # fault: GradientPenaltyOnTheCPU
        between = share * real + (1 - share) * fake
        loss = self.critic(between).mean() - self.critic(real).mean()
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()


@planted("device", **BOTH)
class ShadowWeightsOnTheCPU(Linear):
    """Cloned while the model was on the CPU, updated when it is on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.shadow = [p.detach().clone() for p in self.net.parameters()]

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(self.shadow, self.net.parameters(), strict=True):
                # fault: ShadowWeightsOnTheCPU
                slow.lerp_(fast, 0.01)


@planted("device", **BOTH)
class PaddedWithATensorOfTheCPU(Task):
    """torch.cat of a start token that nobody moved."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 8), nn.Linear(8, 32)

    def training_step(self, batch):
        text, following = batch
        start = torch.zeros(len(text), 1, dtype=torch.long)
        # fault: PaddedWithATensorOfTheCPU
        shifted = torch.cat([start, text[:, :-1]], 1)
        return F.cross_entropy(self.head(self.embed(shifted)).transpose(1, 2), following)

    data = staticmethod(tokens)


@planted("device", **BOTH)
class DeviceOfTheNumpyPrior(Linear):
    """From numpy, as float32, and still on the CPU."""

    def training_step(self, batch):
        import numpy as np

        prior = torch.from_numpy(np.full((4,), 0.25, dtype=np.float32))
        # fault: DeviceOfTheNumpyPrior
        logits = self.net(batch[0]) + prior.log()
        return F.cross_entropy(logits, batch[1])


@planted("device", **BOTH)
class MaskOfTheLengths(Task):
    """An arange on the CPU is compared with lengths on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def training_step(self, batch):
        x, lengths, y = batch
        # fault: MaskOfTheLengths
        keep = torch.arange(x.shape[1])[None] < lengths[:, None]
        return F.cross_entropy(self.head((x * keep[..., None]).sum(1)), y)

    @staticmethod
    def data():
        return batches(torch.randn(8, 12, 8), torch.randint(1, 12, (8,)), torch.randint(0, 4, (8,)))
