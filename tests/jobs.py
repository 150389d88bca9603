"""Jobs as users of Lightning write them, for faults.py: `data._target_=jobs.DigitsInWorkers`."""

import importlib
import os
from typing import Any

from torch.utils.data import DataLoader


def __getattr__(name: str) -> Any:
    """Make a class on top of the project's own, whose package PACKAGE names."""
    package = os.environ["PACKAGE"]
    if name == "DigitsInWorkers":
        return in_workers(importlib.import_module(f"{package}.data.digits").DigitsDataModule)
    if name == "TextInWorkers":
        return in_workers(importlib.import_module(f"{package}.data.text").TextDataModule)
    raise AttributeError(name)


def in_workers(base: Any) -> Any:
    class InWorkers(base):
        """The same data, loaded by two processes."""

        def train_dataloader(self) -> DataLoader[Any]:
            dataset = super().train_dataloader().dataset
            return DataLoader(dataset, self.batch_size, shuffle=True, drop_last=True, num_workers=2)

    return InWorkers
