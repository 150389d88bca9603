"""The first batch of each of the user's loaders, taken once and given to every target."""

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

STAGES = {"train": "fit", "val": "validate", "test": "test", "predict": "predict"}


class Repeated:
    """The first batch of a loader, as often as the loader has batches."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.batch = _first(loader)
        try:
            self.length = len(loader)
        except TypeError:  # an iterable dataset
            self.length = 1000

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.length):
            yield self.batch


class OneLoader(LightningDataModule):
    """One DataLoader for every split."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class LoadersOfTask(LightningDataModule):
    """The loaders that a task has itself."""

    def __init__(self, task: LightningModule) -> None:
        super().__init__()
        for name in ("prepare_data", "setup", *(f"{split}_dataloader" for split in STAGES)):
            if is_overridden(name, task):
                setattr(self, name, getattr(task, name))


def take(datamodule: LightningDataModule) -> dict[str, Any]:
    """Return the loaders of each split as `Repeated`, in the structure of the datamodule."""
    datamodule.prepare_data()
    taken = {}
    for split, stage in STAGES.items():
        datamodule.setup(stage)
        if is_overridden(f"{split}_dataloader", datamodule, LightningDataModule):
            with warnings.catch_warnings():
                # The number of workers is that of the target, which may have more cores than this.
                warnings.filterwarnings("ignore", message="This DataLoader will create")
                loaders = getattr(datamodule, f"{split}_dataloader")()
            if isinstance(loaders, CombinedLoader):
                loaders = loaders.iterables  # which Lightning combines again
            if loaders is not None and tree_leaves(loaders):
                taken[split] = tree_map(Repeated, loaders)
    return taken


def _first(loader: Any) -> Any:
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        # Without workers, an error of the dataset has its line.
        loader.num_workers, loader.pin_memory, loader.timeout = 0, False, 0
        loader.prefetch_factor = None
    return next(iter(loader))


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stand in for a hook that has been called already."""


@contextlib.contextmanager
def given(datamodule: LightningDataModule, taken: dict[str, Any]) -> Iterator[None]:
    """Give these batches in place of the datamodule's own, and leave its other hooks alone."""
    with contextlib.ExitStack() as stack:
        for split in STAGES:
            loaders = taken.get(split)
            name = f"{split}_dataloader"
            stack.enter_context(mock.patch.object(datamodule, name, lambda it=loaders: it))
        for name in ("prepare_data", "setup", "teardown"):
            stack.enter_context(mock.patch.object(datamodule, name, _nothing))
        yield


def fewer(taken: dict[str, Any], samples: int) -> dict[str, Any]:
    """Cut the batches to `samples`, if all tensors agree on how many samples there are."""
    size = batch_size(taken)
    if size <= samples:
        return taken

    def cut(repeated: Repeated) -> Repeated:
        less = copy.copy(repeated)
        less.batch = tree_map(
            lambda x: x[:samples] if isinstance(x, torch.Tensor) and len(x) == size else x,
            repeated.batch,
        )
        return less

    return {split: tree_map(cut, loaders) for split, loaders in taken.items()}


def batch_size(taken: dict[str, Any]) -> int:
    """Return the samples in a training batch, by the first dimensions of its tensors, or 1."""
    leaves = tree_leaves([loader.batch for loader in tree_leaves(taken.get("train", []))])
    sizes = {leaf.shape[0] for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim() > 0}
    return sizes.pop() if len(sizes) == 1 else 1
