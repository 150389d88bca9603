"""Datamodules: the loaders of Lightning's documentation."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split


def points(size: int = 80) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 8, generator=generator)
    targets = inputs.sum(1, keepdim=True) + 0.1 * torch.randn(size, 1, generator=generator)
    return TensorDataset(inputs, targets)


class Points(L.LightningDataModule):
    def __init__(self, batch_size: int = 8, num_workers: int = 0, seed: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(self.hparams.seed)
        self.train, self.val, self.test = random_split(points(), [56, 12, 12], generator)

    def loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        workers = self.hparams.num_workers
        size = self.hparams.batch_size
        return DataLoader(dataset, batch_size=size, num_workers=workers, **options)

    def train_dataloader(self) -> Any:
        return self.loader(self.train, shuffle=True)

    def val_dataloader(self) -> Any:
        return self.loader(self.val)

    def test_dataloader(self) -> Any:
        return self.loader(self.test)

    def predict_dataloader(self) -> Any:
        return self.loader(self.test)


class SplitAnew(Points):
    def setup(self, stage: str) -> None:
        self.train, self.val, self.test = random_split(points(), [56, 12, 12])


class OnlyTrain(L.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(points(), 8, shuffle=True)


class Augmented(Dataset[dict[str, Tensor]]):
    """Dict samples with noise, as a random transform adds it."""

    def __init__(self, dataset: Dataset[Any], noise: float = 0.1) -> None:
        self.dataset, self.noise = dataset, noise

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = self.dataset[index]
        return {"x": x + self.noise * torch.randn(8), "y": y}


class DictPoints(Points):
    def train_dataloader(self) -> Any:
        return self.loader(Augmented(self.train), shuffle=True)

    def val_dataloader(self) -> Any:
        return self.loader(Augmented(self.val))

    def test_dataloader(self) -> Any:
        return self.loader(Augmented(self.test, noise=0))


class Lines(IterableDataset[Any]):
    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self.dataset)):  # type: ignore[arg-type]
            yield self.dataset[index]


class Stream(Points):
    def train_dataloader(self) -> Any:
        return self.loader(Lines(self.train))


class TwoValidations(Points):
    def val_dataloader(self) -> Any:
        return [self.loader(self.val), self.loader(self.test)]

    def test_dataloader(self) -> Any:
        return [self.loader(self.val), self.loader(self.test)]


class Named(Points):
    """A dict of loaders: Lightning zips them, and the shorter one begins again."""

    mode = "max_size_cycle"

    def train_dataloader(self) -> Any:
        loaders = {
            "a": self.loader(self.train, shuffle=True),
            "b": self.loader(points(24), shuffle=True),
        }
        return CombinedLoader(loaders, self.mode)


class MaxSize(Named):
    mode = "max_size"


class MinSize(Named):
    mode = "min_size"


class Sequential(Points):
    """In validation, one loader after the other."""

    def val_dataloader(self) -> Any:
        return CombinedLoader([self.loader(self.val), self.loader(self.test)], "sequential")


class Reloaded(Points):
    """Harder samples in later epochs: Trainer(reload_dataloaders_every_n_epochs=1)."""

    def train_dataloader(self) -> Any:
        epoch = self.trainer.current_epoch if self.trainer else 0
        x, y = points().tensors
        return self.loader(TensorDataset(x * (1 + epoch), y * (1 + epoch)), shuffle=True)


class Stateful(Points):
    """State of the datamodule in the checkpoint, and the hooks for data."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen = 0

    def prepare_data(self) -> None:
        """Where one downloads."""

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [part * 1.0 for part in batch]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        x, y = batch
        noise = torch.randn_like(x) if self.trainer and self.trainer.training else 0
        return x + 0.1 * noise, y

    def teardown(self, stage: str) -> None:
        self.seen += 1


class Parts:
    """A batch of a class of its own, with the method by which Lightning moves it."""

    def __init__(self, samples: list[Any]) -> None:
        self.x, self.y = (torch.stack(part) for part in zip(*samples, strict=True))

    def to(self, device: torch.device, **_: Any) -> "Parts":
        self.x, self.y = self.x.to(device), self.y.to(device)
        return self


class OwnBatches(Points):
    def loader(self, dataset: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return super().loader(dataset, collate_fn=Parts, **options)

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        return batch.to(device)


class Sequences(Points):
    """For truncated back-propagation: (batch, time, features)."""

    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(80, 12, 2, generator=generator)
        data = TensorDataset(x, x.cumsum(1)[..., :1])
        self.train, self.val, self.test = random_split(data, [56, 12, 12], generator)


class SameValAndTest(Points):
    def test_dataloader(self) -> Any:
        return self.val_dataloader()
