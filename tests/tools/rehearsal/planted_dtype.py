"""Planted, kind 2: float64 and complex128, which MPS does not have."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases import Task, batches, on, planted
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

MPS = on(mps="fails")


class Regression(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        return F.mse_loss(self.net(batch[0]), batch[1])

    @staticmethod
    def data():
        return batches(torch.randn(8, 16), torch.randn(8, 4))


@planted("dtype", line=False, **MPS)
class TargetsFromNumpy(Regression):
    """numpy's default is float64, and the loss promotes without a word."""

    @staticmethod
    def data():
        targets = np.random.default_rng(0).normal(size=(8, 4))
        return batches(torch.randn(8, 16), torch.from_numpy(targets))


class Records(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": torch.ones(16) * index, "y": torch.ones(4), "time": 0.5 * index}


@planted("dtype", line=False, **MPS)
class PythonFloatsInTheBatch(Regression):
    """default_collate makes float64 of Python's floats."""

    def training_step(self, batch):
        return F.mse_loss(self.net(batch["x"]), batch["y"])

    @staticmethod
    def data():
        return DataLoader(Records(), 4)


def collate(rows: list[tuple[np.ndarray, int]]) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(np.stack([x for x, _ in rows]))
    return x, torch.tensor([y for _, y in rows])


class Rows(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.linspace(0, index, 16), index % 4


@planted("dtype", line=False, **MPS)
class CollatedByNumpy(Regression):
    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0].float()), batch[1])

    @staticmethod
    def data():
        return DataLoader(Rows(), 4, collate_fn=collate)


@planted("dtype", **MPS)
class ClassWeightsOfNumpy(Regression):
    def training_step(self, batch):
        scale = np.array([1.0, 2.0, 1.0, 0.5])
        # fault: ClassWeightsOfNumpy
        weights = torch.as_tensor(scale, device=self.device)
        return ((self.net(batch[0]) - batch[1]).square() * weights.float()).mean()


@planted("dtype", **MPS)
class DoubleForTheSum(Regression):
    def training_step(self, batch):
        error = (self.net(batch[0]) - batch[1]).square()
        # fault: DoubleForTheSum
        return error.double().mean().float()


@planted("dtype", **MPS)
class Float64Steps(Regression):
    def training_step(self, batch):
        x = batch[0]
        # fault: Float64Steps
        steps = torch.linspace(0, 1, 16, dtype=torch.float64, device=x.device)
        return F.mse_loss(self.net(x * steps.to(x.dtype)), batch[1])


@planted("dtype", **MPS)
class TensorOfANumpyScalar(Regression):
    """torch.tensor keeps the type of a numpy scalar."""

    def training_step(self, batch):
        loss = F.mse_loss(self.net(batch[0]), batch[1])
        # fault: TensorOfANumpyScalar
        factor = torch.tensor(np.float64(0.5), device=self.device)
        return loss * factor


@planted("dtype", line=None, **MPS)
class BufferOfNumpy(Regression):
    """It fails already when the model is moved."""

    def __init__(self) -> None:
        super().__init__()
        # fault: BufferOfNumpy
        self.register_buffer("sigmas", torch.from_numpy(np.linspace(0.1, 1, 16)))

    def training_step(self, batch):
        return F.mse_loss(self.net(batch[0] * self.sigmas.float()), batch[1])


@planted("dtype", **MPS)
class SpectrumInDouble(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(9, 4)

    def training_step(self, batch):
        # fault: SpectrumInDouble
        spectrum = torch.fft.rfft(batch[0].to(torch.float64))
        return F.cross_entropy(self.net(spectrum.abs().float()), batch[1])


@planted("dtype", **MPS)
class RotationsAsComplex128(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        x, y = batch
        # fault: RotationsAsComplex128
        turns = torch.ones(8, dtype=torch.complex128, device=x.device)
        turned = torch.view_as_complex(x.unflatten(-1, (8, 2))) * turns.to(torch.complex64)
        return F.cross_entropy(self.net(torch.view_as_real(turned).flatten(1)), y)


@planted("dtype", stage="val", **MPS)
class ExactMeanInValidation(Regression):
    def validation_step(self, batch):
        error = self.net(batch[0]) - batch[1]
        # fault: ExactMeanInValidation
        self.log("val/exact", error.to(torch.double).abs().mean().float())


@planted("dtype", stage="predict", **MPS)
class ProbabilitiesInDouble(Regression):
    def predict_step(self, batch):
        # fault: ProbabilitiesInDouble
        return self.net(batch[0]).softmax(-1, dtype=torch.float64)


class Exact(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # fault: DoubleInTheBackward
        return (grad.double() * 2).float()


@planted("dtype", backward=True, **MPS)
class DoubleInTheBackward(Regression):
    def training_step(self, batch):
        return F.mse_loss(Exact.apply(self.net(batch[0])), batch[1])


class Kahan(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "sum" not in state:
                    # fault: OptimizerInFloat64
                    state["sum"] = torch.zeros_like(p, dtype=torch.float64)
                state["sum"] += p.grad
                p.sub_((group["lr"] * state["sum"]).to(p.dtype))
        return loss


@planted("dtype", **MPS)
class OptimizerInFloat64(Regression):
    def configure_optimizers(self):
        return Kahan(self.parameters())


@planted("dtype", line=None, **MPS)
class ModelInDouble(Regression):
    """The whole network, and its inputs, by .double()."""

    def __init__(self) -> None:
        super().__init__()
        # fault: ModelInDouble
        self.net = nn.Linear(16, 4).double()

    def training_step(self, batch):
        return F.mse_loss(
            self.net(batch[0].to(self.net.weight.dtype)), batch[1].to(self.net.weight.dtype)
        )
