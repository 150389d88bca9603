"""Ordinary loaders made resumable from outside: any batch of an epoch can be the next one.

The order of the data, random augmentation and the random numbers of a step follow from the
position, for any number of workers. A DataLoader reads nothing to get into the middle of an epoch.
"""

import copy
import itertools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities import CombinedLoader
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)
from torch.utils.data.distributed import DistributedSampler

from .position import GENERATORS, Position, seed_all, seed_from, seed_one
from .tensor_rows import TensorBatches, tensor_rows

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


class ResumableLoader:
    """Stands for a user's loader while `fit` runs.

    The user's own object is not changed (but for a DistributedSampler, which is seeded).

    `trainer.train_dataloader` is one of these. It has the batches, the length and the attributes
    (dataset, batch_size, sampler, ...) of the user's loader, which is its `loader`. It is equal to
    that, and an instance of the same class.

    Args:
        loader: a DataLoader, or anything else that can be iterated.
        trainer: the one that fits.
        position: where training stands.
    """

    def __init__(self, loader: Any, trainer: Trainer, position: Position) -> None:
        self.loader, self.trainer, self.position = loader, trainer, position
        self.num_workers: int = getattr(loader, "num_workers", 0)
        self.on_cuda = trainer.strategy.root_device.type == "cuda"
        # Of the current pass: seed place, batches to skip, and (once it has ended) its length.
        self.place: tuple[Any, ...] = ()
        self.skip = self.length = 0
        # When the last pass has ended: the epoch, the batches that were given in it, and how many
        # the next pass must skip because of a resume.
        self.epoch = -1
        self.given: int | None = None
        self.rest: int | None = None
        samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
        held = [v for owner in (loader, *samplers) for v in getattr(owner, "__dict__", {}).values()]
        self.generators = [value for value in held if isinstance(value, GENERATORS)]
        # A subclass with an __iter__ of its own is iterated as it is.
        plain = isinstance(loader, DataLoader) and type(loader).__iter__ is DataLoader.__iter__
        self.by_index = plain and not isinstance(loader.dataset, IterableDataset)
        self.warned = False
        self.in_memory = False  # then nothing random happens when a batch is made
        self.batches = self._seeded_copy(loader) if plain else loader

    def _seeded_copy(self, loader: "DataLoader[Any]") -> Any:
        seeded = copy.copy(loader)
        changed = vars(seeded)  # since a DataLoader refuses to set most of its attributes
        if self.by_index:
            name = "sampler" if loader.batch_sampler is None else "batch_sampler"
            sampler = getattr(loader, name)
            if isinstance(loader.sampler, DistributedSampler):
                self._seed_distributed_sampler(loader.sampler)
                if type(loader.sampler) is DistributedSampler and type(sampler) is BatchSampler:
                    sampler = copy.copy(sampler)
                    sampler.sampler = RankShare(loader.sampler)
            changed[name] = SeededSampler(sampler, self)
            if rows := tensor_rows(loader, self.trainer):
                self.in_memory = True
                return TensorBatches(rows, changed[name])
        else:  # The random numbers of a persistent worker would go on from epoch to epoch.
            changed["persistent_workers"] = False
        context: Any = loader.multiprocessing_context or multiprocessing
        if self.num_workers and context.get_start_method() == "fork":
            changed["worker_init_fn"] = WorkerStart(loader.worker_init_fn)
        every = self.trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
        unstable = every and loader.persistent_workers  # pytorch/pytorch issue 91252
        if self.on_cuda and self.num_workers and not unstable:
            changed["pin_memory"] = True
        return seeded

    def _seed_distributed_sampler(self, sampler: "DistributedSampler[Any]") -> None:
        # PyTorch adds the epoch to the seed, so neighbouring seeds would share their orders.
        sampler.seed = seed_from(self.position.seed, "order")
        if self.loader.drop_last:
            # Otherwise PyTorch repeats a few samples, so that all ranks have as many.
            sampler.drop_last = True
            sampler.num_samples = len(sampler.dataset) // sampler.num_replicas  # type: ignore[arg-type]
            sampler.total_size = sampler.num_samples * sampler.num_replicas

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # of a copy that has no attributes yet
            raise AttributeError(name)
        if name in ("state_dict", "load_state_dict") and self.position.resume_at:
            return dict  # Lightning warns in mid-epoch of loaders without them
        return getattr(self.loader, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.loader)

    def __reduce__(self) -> Any:
        return _new_loader, (), vars(self)  # pickle's own way trusts __class__

    def __eq__(self, other: object) -> bool:
        return self.loader == getattr(other, "loader", other)

    def __hash__(self) -> int:
        return hash(self.loader)

    @property
    def _iterator(self) -> Any:
        """Where Lightning finds persistent workers, to end them."""
        return getattr(self.batches, "_iterator", None)

    @_iterator.setter
    def _iterator(self, value: Any) -> None:
        if hasattr(self.batches, "_iterator"):
            self.batches._iterator = value

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """A generator, so nothing happens before the first batch: Lightning calls iter() twice."""
        place, begun, skip = self._start()
        if self.given is not None:
            # It had ended before the checkpoint was taken, and CombinedLoader must see it end.
            if skip == self.given:
                device, rank = self.trainer.strategy.root_device, self.trainer.global_rank
                seed_all(device, *place, begun, skip, rank, "step")
            return
        begins_again = begun > 0
        while True:
            for batch, data in self._pass((*place, begun), skip):
                if batch >= skip:
                    yield data
            begun += self.length
            if not 0 < self.length <= skip:
                self.given = begun
                return
            skip -= self.length  # this pass had ended before the checkpoint was taken
            if not begins_again:
                self.given, self.rest = begun, skip
                return

    def _start(self) -> tuple[tuple[Any, ...], int, int]:
        """Return the place of a pass over the data, its first batch, and how many to skip."""
        position, epoch = self.position, self.trainer.current_epoch
        side_by_side = flattened(self.trainer.train_dataloader)
        if (index := index_of(self, side_by_side)) is None:
            index = index_of(self, flattened(self.trainer.val_dataloaders))
            self.given = None
            return (position.seed, "val", epoch, index), position.batch, 0
        given, rest = (self.given, self.rest) if self.epoch == epoch else (None, None)
        self.epoch, self.given, self.rest = epoch, None, None
        place = (position.seed, "train", epoch, index)
        # Lightning fetches one batch ahead if a length is unknown.
        ahead = any(sized_len(one) is None for one in side_by_side)
        if given is not None and (rest is not None or ahead or position.is_within(epoch)):
            return place, given, rest or 0  # of two loaders, the shorter one begins again
        if position.resume_at is None or position.resume_at[0] != epoch:
            return place, 0, 0
        skip = position.resume_at[1]
        length = sized_len(self) if self.by_index else None
        if (ended := position.ended.get(index, skip + 1)) <= skip:
            self.given = ended
        elif length and skip >= length:
            self.given, self.rest = skip // length * length, skip % length
        return place, 0, skip

    def _pass(self, place: tuple[Any, ...], skip: int) -> Iterator[tuple[int, Any]]:
        """Yield each batch and its number: from `skip` on, or from 0 on if none can be skipped."""
        device, rank = self.trainer.strategy.root_device, self.trainer.global_rank
        for index, generator in enumerate(self.generators):
            seed_one(generator, *place, "generator", index)
        seed_all(device, *place, "workers", rank)
        self.place, self.skip = place, skip
        batches = iter(self.batches)
        for batch in itertools.count(skip if self.by_index else 0):
            if not self.by_index:
                seed_all(device, *place, batch, rank, "data")
            data = next(batches, self)
            seed_all(device, *place, batch, rank, "step")
            if data is self:
                self.length = self.length if self.by_index else batch
                self._warn_if_short(batch, place)
                return
            # Lightning copies to the GPU without waiting for it, if the memory is pinned.
            yield batch, pinned(data) if self.on_cuda and not self.num_workers else data

    def _warn_if_short(self, given: int, place: tuple[Any, ...]) -> None:
        """Lightning validates in the last batch of an epoch, which it knows by the length."""
        promised = sized_len(self.loader)
        if not self.warned and "train" in place and promised is not None and given < promised:
            self.warned = True
            log.warning(
                f"The training loader's length is {promised}, and it has given {given} batches:"
                " Lightning skips the validation. Correct the __len__ of its data or sampler."
            )


def _new_loader() -> ResumableLoader:
    return object.__new__(ResumableLoader)


def ended_loaders(trainer: Trainer) -> dict[int, int]:
    """Return how many batches each training loader has given that has ended, by index."""
    loaders = enumerate(flattened(trainer.train_dataloader))
    ended = {i: loader.given for i, loader in loaders if isinstance(loader, ResumableLoader)}
    return {index: given for index, given in ended.items() if given is not None}


def flattened(loaders: Any) -> list[Any]:
    """Return the loaders in whatever collection `trainer.train_dataloader` is."""
    return CombinedLoader(loaders).flattened


def index_of(loader: Any, loaders: list[Any]) -> int | None:
    return next((index for index, one in enumerate(loaders) if one is loader), None)


class RankShare(Sampler[int]):
    """This rank's share of the order that a single device has.

    So a global batch is the same samples on any number of devices; PyTorch's DistributedSampler
    would draw another order.
    """

    def __init__(self, sampler: "DistributedSampler[Any]") -> None:
        self.sampler = sampler
        data: Any = sampler.dataset
        self.order = RandomSampler(data) if sampler.shuffle else SequentialSampler(data)

    def __len__(self) -> int:
        return self.sampler.num_samples

    def __iter__(self) -> Iterator[int]:
        whole = itertools.cycle(list(self.order))  # repeats a few samples, or leaves a few out
        share = itertools.islice(whole, self.sampler.total_size)
        return itertools.islice(share, self.sampler.rank, None, self.sampler.num_replicas)


class SeededSampler:
    """A sampler whose order follows from the place; what was trained is drawn, but not loaded."""

    def __init__(self, sampler: Any, loader: ResumableLoader) -> None:
        self.sampler, self.loader = sampler, loader
        # PyTorch's samplers draw random numbers once a pass, others perhaps before each batch.
        kinds = {type(sampler), type(getattr(loader.loader, "sampler", sampler))}
        self.draws_once = all(kind.__module__.startswith("torch.") for kind in kinds)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        loader, place, skip = self.loader, self.loader.place, self.loader.skip
        device, rank = loader.trainer.strategy.root_device, loader.trainer.global_rank
        seed_all(device, *place, "order")  # without the rank, since all ranks must agree
        indices = iter(self.sampler)
        for batch in itertools.count():
            if not self.draws_once:
                seed_all(device, *place, batch, "order")
            chosen = next(indices, self)
            if chosen is self:
                loader.length = batch
                return
            if batch < skip:
                continue
            if loader.num_workers:
                yield SeededIndices(chosen, (*place, batch, rank, "data"))
            else:
                if not loader.in_memory:
                    seed_all(device, *place, batch, rank, "data")
                yield chosen


class SeededIndices:
    """The indices of a batch on their way to a worker, which is seeded when it unpickles them."""

    def __init__(self, indices: Any, place: tuple[Any, ...]) -> None:
        self.contents = indices, place

    def __reduce__(self) -> Any:
        return unpickle_indices, self.contents


class WorkerStart:
    """The user's worker_init_fn, after which a worker ends if this process has been killed.

    PyTorch 2.13 looks for the death of the parent only from then on. A worker that starts later
    would wait for ever, and hold the lock of the run's folder, which a fork shares.
    """

    def __init__(self, worker_init_fn: Callable[[int], None] | None) -> None:
        self.worker_init_fn, self.parent = worker_init_fn, os.getpid()

    def __call__(self, worker_id: int) -> None:
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)
        if os.getppid() != self.parent:
            os._exit(1)


def unpickle_indices(indices: Any, place: tuple[Any, ...]) -> Any:
    seed_all(CPU, *place)
    return indices


def pinned(batch: Any) -> Any:
    def pin(tensor: Tensor) -> Tensor:
        return tensor.pin_memory() if tensor.device == CPU and not tensor.is_sparse else tensor

    return apply_to_collection(batch, Tensor, pin)
