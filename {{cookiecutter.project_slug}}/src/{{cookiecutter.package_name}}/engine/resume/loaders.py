"""Ordinary loaders, made resumable from outside: any batch of an epoch can be the next one.

The order, the random augmentation and the random numbers of a step follow from the position, for
any number of workers. A DataLoader loads nothing to get to a batch in the middle of an epoch.
"""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from .position import GENERATORS, Position, number, seed_all, seed_one

CPU = torch.device("cpu")


class ResumableLoader:
    """The loader of a stage of `fit`, in place of the user's, which is left as it is.

    `trainer.train_dataloader` is one of these. It has the attributes of the user's loader (dataset,
    batch_size, sampler, ...), its length and its batches; `isinstance(..., DataLoader)` is False,
    and `.loader` is the user's own.

    Args:
        loader: a DataLoader or anything else that can be iterated.
        trainer: fits with it.
        position: where training stands.
    """

    def __init__(self, loader: Any, trainer: Trainer, position: Position) -> None:
        self.loader, self.trainer, self.position = loader, trainer, position
        self.training = bool(trainer.training)
        self.num_given: int | None = None  # in this epoch, when the last pass over it ended
        self.place: tuple[Any, ...] = ()  # of the pass over the data that goes on
        self.skip = 0
        batch_sampler = getattr(loader, "batch_sampler", None)
        self.samplers = [getattr(loader, "sampler", None), batch_sampler]
        held = [v for one in (loader, *self.samplers) for v in getattr(one, "__dict__", {}).values()]
        self.generators = [value for value in held if isinstance(value, GENERATORS)]
        self.indexed = False
        self.copy = loader
        if isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__:
            self.indexed = not isinstance(loader.dataset, IterableDataset)
            # DataLoader refuses to set most attributes of a loader, but not in a copy's __dict__.
            self.copy = copy.copy(loader)
            changed = vars(self.copy)
            if self.indexed:
                name = "sampler" if batch_sampler is None else "batch_sampler"
                changed[name] = SeededSampler(getattr(loader, name), self)
                if rows := tensor_rows(loader, trainer):
                    changed["dataset"], changed["collate_fn"] = rows, identity_collate
                if isinstance(loader.sampler, DistributedSampler):
                    self._share_out(loader.sampler)
            else:  # or the random numbers of a worker would go on from epoch to epoch
                changed["persistent_workers"] = False
        self.workers = getattr(loader, "num_workers", 0)
        self.draws = not isinstance(getattr(self.copy, "dataset", None), TensorRows)
        # Lightning copies without waiting for the GPU, which works for pinned memory only.
        self.pins = trainer.strategy.root_device.type == "cuda" and not self.workers
        if self.copy is not loader and self.workers and trainer.strategy.root_device.type == "cuda":
            # https://github.com/pytorch/pytorch/issues/91252
            reloads = loader.persistent_workers and trainer.reload_dataloaders_every_n_epochs
            self.copy.pin_memory = loader.pin_memory or not reloads

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __len__(self) -> int:
        return len(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """Nothing, since the position says it all; Lightning warns of a loader without a state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def _share_out(self, sampler: "DistributedSampler[Any]") -> None:
        # PyTorch adds the epoch to the seed: neighbouring seeds would share their orders.
        sampler.seed = number(self.position.seed, "order")
        if self.training and self.loader.drop_last:
            # Else PyTorch repeats samples, so that every rank has the same number of batches.
            sampler.drop_last = True
            sampler.num_samples = len(sampler.dataset) // sampler.num_replicas  # type: ignore[arg-type]
            sampler.total_size = sampler.num_samples * sampler.num_replicas

    def __iter__(self) -> Iterator[Any]:
        """A generator, so nothing happens before the first batch: Lightning calls iter() twice."""
        position, epoch = self.position, self.trainer.current_epoch
        loaders = self.trainer.train_dataloader if self.training else self.trainer.val_dataloaders
        index = [id(one) for one in CombinedLoader(loaders).flattened].index(id(self))
        stage, begun, skip = ("train", 0, 0) if self.training else ("val", position.batch, 0)
        if self.training and position.resume_at and position.resume_at[0] == epoch:
            skip = position.resume_at[1]
            ended = position.ended[index] if index < len(position.ended) else None
            if ended is not None and skip >= ended:
                self.num_given = ended
                return
            length = sized_len(self) if self.indexed else None
            if length:  # the shorter of two loaders has begun again
                begun, skip = skip // length * length, skip % length
        elif self.training and position.epoch == epoch and position.batch >= 0:
            begun = self.num_given or 0
        self.num_given = None
        number_given = 0
        while True:
            place = (position.seed, stage, epoch, index, begun)
            for number_given, data in self._pass(place, skip):
                if number_given > skip:
                    yield data
            if not 0 < number_given <= skip:
                break
            begun, skip = begun + number_given, skip - number_given
        self.num_given = begun + number_given
