"""Planted, kind 6: what does not come back from a checkpoint that is loaded with weights_only=True."""

import datetime
import enum
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases import Linear, on, planted
from torch import nn

ALL = on(mps="fails", cuda="fails", cpu="fails", line=None, stage="")


@planted("checkpoint", **ALL)
class NetInTheHyperparameters(Linear):
    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        net = net or nn.Linear(16, 4)
        # fault: NetInTheHyperparameters
        self.save_hyperparameters({"net": net})
        self.net = net


@planted("checkpoint", **ALL)
class PartialOptimizer(Linear):
    """As Hydra's _partial_ makes it."""

    def __init__(self, optimizer: Any = partial(torch.optim.Adam, lr=0.01)) -> None:
        super().__init__()
        # fault: PartialOptimizer
        self.save_hyperparameters()

    def configure_optimizers(self):
        return self.hparams.optimizer(self.parameters())


@planted("checkpoint", **ALL)
class PathInTheHyperparameters(Linear):
    def __init__(self, root: Path = Path("data")) -> None:
        super().__init__()
        # fault: PathInTheHyperparameters
        self.save_hyperparameters()


@planted("checkpoint", **ALL)
class NumpyScalarInTheHyperparameters(Linear):
    def __init__(self, lr: Any = None) -> None:
        super().__init__()
        # fault: NumpyScalarInTheHyperparameters
        self.save_hyperparameters({"lr": np.logspace(-3, -1, 3)[0]})


if find_spec("omegaconf"):

    @planted("checkpoint", **ALL)
    class ConfigObjectInTheHyperparameters(Linear):
        def __init__(self) -> None:
            super().__init__()
            from omegaconf import OmegaConf

            cfg = OmegaConf.create({"width": 16, "rates": [0.1, 0.2]})
            # fault: ConfigObjectInTheHyperparameters
            self.save_hyperparameters({"cfg": cfg})


@dataclass
class Settings:
    width: int = 16


@planted("checkpoint", **ALL)
class DataclassInTheHyperparameters(Linear):
    def __init__(self, settings: Settings = Settings()) -> None:
        super().__init__()
        # fault: DataclassInTheHyperparameters
        self.save_hyperparameters()


class Mode(enum.Enum):
    SMALL = "small"


@planted("checkpoint", **ALL)
class EnumInTheHyperparameters(Linear):
    def __init__(self, mode: Mode = Mode.SMALL) -> None:
        super().__init__()
        # fault: EnumInTheHyperparameters
        self.save_hyperparameters()


@planted("checkpoint", **ALL)
class FunctionInTheHyperparameters(Linear):
    def __init__(self, activation: Any = F.relu) -> None:
        super().__init__()
        # fault: FunctionInTheHyperparameters
        self.save_hyperparameters()


@planted("checkpoint", **ALL)
class DateOnSaving(Linear):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # fault: DateOnSaving
        checkpoint["when"] = datetime.datetime(2026, 1, 1)


@planted("checkpoint", **ALL)
class ArrayOnSaving(Linear):
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # fault: ArrayOnSaving
        checkpoint["best"] = {"index": [np.int64(3)]}


@planted("checkpoint", **ALL)
class CompiledByAssignment(Linear):
    """The keys get a prefix, _orig_mod, that a model without torch.compile does not have."""

    def __init__(self) -> None:
        super().__init__()
        # fault: CompiledByAssignment
        self.net = torch.compile(nn.Linear(16, 4), backend="eager")


class Schedule(torch.optim.lr_scheduler.LRScheduler):
    """Keeps an array among its state, which is saved with it."""

    def __init__(self, optimizer: Any) -> None:
        # fault: SchedulerWithAnArray
        self.table = np.linspace(1, 0.1, 10)
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [float(base * self.table[min(self.last_epoch, 9)]) for base in self.base_lrs]


@planted("checkpoint", **ALL)
class SchedulerWithAnArray(Linear):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [Schedule(optimizer)]
