"""Planted, kind 4: lines of a step that make the CPU wait for the GPU. They run, and cost time."""

from typing import Any

import torch
import torch.nn.functional as F
from cases import Linear, Task, batches, on, planted, tokens
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

WAITS = on(mps="warning", cuda="warning", real="stalls")


@planted("sync", **WAITS)
class ItemToLog(Linear):
    def training_step(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        # fault: ItemToLog
        self.log("train/loss", loss.item())
        return loss


@planted("sync", **WAITS)
class LossesToNumpy(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.history = []

    def training_step(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        # fault: LossesToNumpy
        self.history.append(loss.detach().cpu().numpy())
        return loss


@planted("sync", **WAITS)
class IfTheLossIsNaN(Linear):
    def training_step(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        # fault: IfTheLossIsNaN
        if torch.isnan(loss):
            return None
        return loss


@planted("sync", **WAITS)
class BooleanMask(Linear):
    def training_step(self, batch):
        logits = self.net(batch[0])
        sure = logits.softmax(-1).amax(-1) > 0.1
        # fault: BooleanMask
        return logits[sure].logsumexp(-1).sum()


@planted("sync", **WAITS)
class WhereAreThey(Linear):
    def training_step(self, batch):
        logits = self.net(batch[0])
        # fault: WhereAreThey
        rows = torch.nonzero(batch[1] >= 0).squeeze(1)
        return logits.index_select(0, rows).square().mean()


@planted("sync", **WAITS)
class WhereWithOneArgument(Linear):
    def training_step(self, batch):
        logits = self.net(batch[0])
        # fault: WhereWithOneArgument
        rows, columns = torch.where(logits > -100)
        return logits[rows, columns].square().mean()


@planted("sync", **WAITS)
class MaskedSelect(Linear):
    def training_step(self, batch):
        logits = self.net(batch[0])
        # fault: MaskedSelect
        return torch.masked_select(logits, logits > -100).square().mean()


@planted("sync", **WAITS)
class PrintedLoss(Linear):
    def training_step(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        # fault: PrintedLoss
        print("loss:", loss)
        return loss


@planted("sync", **WAITS)
class FormattedLoss(Linear):
    def training_step(self, batch):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        # fault: FormattedLoss
        self.message = f"{loss:.3f}"
        return loss


@planted("sync", **WAITS)
class FloatOfTheNorm(Linear):
    """Clipping by hand, with a Python number."""

    def on_after_backward(self):
        # fault: FloatOfTheNorm
        norm = float(self.net.weight.grad.norm())
        if norm > 1:
            self.net.weight.grad.mul_(1 / norm)


@planted("sync", **WAITS)
class ListOfTheLabels(Linear):
    def training_step(self, batch):
        x, y = batch
        # fault: ListOfTheLabels
        names = [("a", "b", "c", "d")[label] for label in y.tolist()]
        return F.cross_entropy(self.net(x), y) * (1.0 if names else 0.0)


@planted("sync", **WAITS)
class SlicedByATensor(Linear):
    """A slice needs a number, so each length is read."""

    def training_step(self, batch):
        x, y = batch
        longest = y.max() + 12
        # fault: SlicedByATensor
        return F.cross_entropy(self.net(F.pad(x[:, :longest], (0, 16))[:, :16]), y)


@planted("sync", **WAITS)
class OneHotWithoutItsClasses(Linear):
    """The number of classes is read from the largest label."""

    def training_step(self, batch):
        x, y = batch
        y = torch.cat([y, torch.full_like(y[:1], 3)])
        # fault: OneHotWithoutItsClasses
        hot = F.one_hot(y)
        return F.cross_entropy(self.net(x), hot[:-1].float())


@planted("sync", **WAITS)
class RepeatedByCounts(Linear):
    def training_step(self, batch):
        x, y = batch
        # fault: RepeatedByCounts
        rows = self.net(x).repeat_interleave(y + 1, dim=0)
        return rows.square().mean()


@planted("sync", **WAITS)
class UniqueLabels(Linear):
    def training_step(self, batch):
        x, y = batch
        # fault: UniqueLabels
        present = torch.unique(y)
        return F.cross_entropy(self.net(x), y) * present.shape[0]


@planted("sync", **WAITS)
class AssertedFinite(Linear):
    def training_step(self, batch):
        logits = self.net(batch[0])
        # fault: AssertedFinite
        assert torch.isfinite(logits).all(), "diverged"
        return F.cross_entropy(logits, batch[1])


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        # fault: DecidedInTheForward
        if x.abs().mean() > 10:
            x = x / 10
        return self.lin(x)


@planted("sync", **WAITS)
class DecidedInTheForward(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()

    def training_step(self, batch):
        return F.cross_entropy(self.net(self.gate(batch[0])), batch[1])


class Explore(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # fault: ItemInTheBackward
        scale = grad.abs().max().item()
        return grad / max(scale, 1.0)


@planted("sync", backward=True, **WAITS)
class ItemInTheBackward(Linear):
    def training_step(self, batch):
        return F.cross_entropy(Explore.apply(self.net(batch[0])), batch[1])


@planted("sync", stage="val", **WAITS)
class ItemInValidation(Linear):
    def validation_step(self, batch):
        # fault: ItemInValidation
        self.right = (self.net(batch[0]).argmax(-1) == batch[1]).sum().item()


@planted("sync", stage="test", **WAITS)
class NumpyInTheTest(Linear):
    def test_step(self, batch):
        # fault: NumpyInTheTest
        self.preds = self.net(batch[0]).argmax(-1).cpu().numpy()


@planted("sync", mps="may warn", cuda="may warn", stage="predict", real="stalls")
class StoppedWhenAllEnded(Task):
    """A sampling loop that asks after each token whether all are done. Predictions may wait."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 8), nn.Linear(8, 32)

    def training_step(self, batch):
        return F.cross_entropy(self.head(self.embed(batch[0])).transpose(1, 2), batch[1])

    def predict_step(self, batch):
        text = batch[0]
        for _ in range(4):
            following = self.head(self.embed(text[:, -1])).argmax(-1, keepdim=True)
            text = torch.cat([text, following], 1)
            # fault: StoppedWhenAllEnded
            if (following == 0).all():
                break
        return text

    data = staticmethod(tokens)


@planted("sync", **WAITS)
class PackedByLengths(Task):
    """pack_padded_sequence wants them on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 4)

    def training_step(self, batch):
        x, lengths, y = batch
        # fault: PackedByLengths
        lengths = lengths.cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return F.cross_entropy(self.head(self.rnn(packed)[1][-1]), y)

    @staticmethod
    def data():
        return batches(torch.randn(8, 12, 8), torch.randint(1, 12, (8,)), torch.randint(0, 4, (8,)))


@planted("sync", **WAITS)
class ComparedByEqual(Linear):
    def training_step(self, batch):
        x, y = batch
        # fault: ComparedByEqual
        same = torch.equal(x, x.abs())
        return F.cross_entropy(self.net(x), y) * (2.0 if same else 1.0)


@planted("sync", **WAITS)
class IntOfATensor(Linear):
    def training_step(self, batch):
        x, y = batch
        # fault: IntOfATensor
        shift = int(y[0])
        return F.cross_entropy(self.net(x.roll(shift, 1)), y)


@planted("sync", **WAITS)
class AssignedThroughAMask(Linear):
    """Values of another shape are written where a mask is true."""

    def training_step(self, batch):
        x, y = batch
        logits = self.net(x)
        large = logits.detach() > 0
        kept = logits.new_zeros(logits.shape)
        # fault: AssignedThroughAMask
        kept[large] = logits.detach()[large]
        return F.cross_entropy(logits + kept, y)
