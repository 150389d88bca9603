"""Planted, kind 5: what spawn workers cannot be given, and loader options that a target refuses.

With fork, the default of Linux, all of these run.
"""

import multiprocessing
import sqlite3
import tempfile
import threading
from functools import partial
from typing import Any

import lightning as L
import torch
from cases import Linear, on, planted
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

# A Mac spawns its workers; Linux forks them up to Python 3.13, and what is forked is not pickled.
ALL = on(mps="fails", cuda="flagged", cpu="flagged", line=None, stage="")
LATER = on(mps="warning", cuda="warning", cpu="warning", line=None, stage="")


class Predicts(Linear):
    def predict_step(self, batch):
        return self.net(batch[0])


class Rows(Dataset):
    """Rows of numbers, each changed by a function."""

    def __init__(self, transform: Any = None) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = torch.full((16,), float(index))
        return (self.transform(x) if self.transform else x), index % 4


def workers(dataset: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, 4, num_workers=1, **options)


@planted("workers", **ALL)
class LambdaTransform(Predicts):
    @staticmethod
    def data():
        # fault: LambdaTransform
        return workers(Rows(lambda x: x / 255))


@planted("workers", **LATER)
class LambdaTransformWithoutWorkers(Predicts):
    """It will fail on the day that somebody sets num_workers=4."""

    @staticmethod
    def data():
        # fault: LambdaTransformWithoutWorkers
        return batches_of(Rows(lambda x: x / 255))


def batches_of(dataset: Any) -> DataLoader[Any]:
    return DataLoader(dataset, 4)


@planted("workers", **ALL)
class LambdaCollate(Predicts):
    @staticmethod
    def data():
        # fault: LambdaCollate
        return workers(
            Rows(),
            collate_fn=lambda rows: (
                torch.stack([x for x, _ in rows]),
                torch.tensor([y for _, y in rows]),
            ),
        )


@planted("workers", **ALL)
class LocalCollateFunction(Predicts):
    @staticmethod
    def data():
        scale = 2.0

        # fault: LocalCollateFunction
        def collate(rows: Any) -> Any:
            return torch.stack([x for x, _ in rows]) * scale, torch.tensor([y for _, y in rows])

        return workers(Rows(), collate_fn=collate)


class Database(Rows):
    def __init__(self) -> None:
        super().__init__()
        # fault: OpenDatabase
        self.connection = sqlite3.connect(":memory:")


@planted("workers", **ALL)
class OpenDatabase(Predicts):
    @staticmethod
    def data():
        return workers(Database())


class Lines(Rows):
    def __init__(self) -> None:
        super().__init__()
        # fault: OpenFile
        self.file = tempfile.TemporaryFile("w+")  # noqa: SIM115


@planted("workers", **ALL)
class OpenFile(Predicts):
    @staticmethod
    def data():
        return workers(Lines())


class Cached(Rows):
    def __init__(self) -> None:
        super().__init__()
        # fault: LockInTheDataset
        self.lock = threading.Lock()


@planted("workers", **ALL)
class LockInTheDataset(Predicts):
    @staticmethod
    def data():
        return workers(Cached())


class Streamed(Rows):
    def __init__(self) -> None:
        super().__init__()
        # fault: GeneratorInTheDataset
        self.numbers = (float(n) for n in range(100))


@planted("workers", **ALL)
class GeneratorInTheDataset(Predicts):
    @staticmethod
    def data():
        return workers(Streamed())


@planted("workers", **ALL)
class DatasetDefinedInAFunction(Predicts):
    @staticmethod
    def data():
        # fault: DatasetDefinedInAFunction
        class Local(Rows):
            pass

        return workers(Local())


@planted("workers", **ALL)
class LambdaToSeedWorkers(Predicts):
    @staticmethod
    def data():
        # fault: LambdaToSeedWorkers
        return workers(Rows(), worker_init_fn=lambda n: torch.manual_seed(n))


def scaled(by: Any, x: Tensor) -> Tensor:
    return x * by()


@planted("workers", **ALL)
class LambdaInAPartial(Predicts):
    @staticmethod
    def data():
        # fault: LambdaInAPartial
        return workers(Rows(partial(scaled, lambda: 0.5)))


class Lazy(L.LightningDataModule):
    def train_dataloader(self):
        return workers(Rows())

    def val_dataloader(self):
        # fault: LambdaOfTheValidationLoader
        return workers(Rows(lambda x: x + 1))


@planted("workers", **ALL)
class LambdaOfTheValidationLoader(Predicts):
    def validation_step(self, batch):
        self.log("val/loss", self.training_step(batch))

    data = staticmethod(Lazy)


class Reversed(RandomSampler):
    def __init__(self, source: Any) -> None:
        super().__init__(source)
        # fault: LambdaInTheSampler
        self.key = lambda index: -index


@planted("workers", mps="any", cuda="any", cpu="any", line=None, stage="")
class LambdaInTheSampler(Predicts):
    """Samplers stay in the trainer's process: a spawned worker is not given one."""

    @staticmethod
    def data():
        return workers(Rows(), sampler=Reversed(Rows()))


@planted("loader", mps="warning", cpu="warning", line=None, stage="")
class PinnedMemory(Predicts):
    """Without CUDA it is ignored, with a warning at each epoch."""

    @staticmethod
    def data():
        return DataLoader(Rows(), 4, pin_memory=True)


@planted("loader", mps="fails", line=None, stage="", also=("workers",))
class ForkedWorkers(Predicts):
    """fork after Metal is loaded hangs or crashes."""

    @staticmethod
    def data():
        return workers(Rows(), multiprocessing_context="fork")


@planted("loader", mps="fails", line=None, stage="", also=("workers",))
class ForkedWorkersByContext(Predicts):
    @staticmethod
    def data():
        return workers(Rows(), multiprocessing_context=multiprocessing.get_context("fork"))
