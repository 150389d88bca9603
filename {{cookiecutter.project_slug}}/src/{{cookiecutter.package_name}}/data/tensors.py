"""Tensors in memory, read a whole batch at a time, in an order that a resumed run finds again.

Fetching and collating sample by sample is most of a small job's time; indexing once a batch is not.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler


class TensorBatches(Dataset[tuple[Tensor, ...]]):
    """Tensors of the same length; DataLoader asks `__getitems__` for all indices of a batch."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [tensor[indices] for tensor in self.tensors]


class EpochShuffle(Sampler[int]):
    """A new order for each epoch, which is the same whenever that epoch comes: after a resume, too.

    Args:
        length: of the dataset.
        seed: of all orders.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        # A generator, which starts with the first batch: Lightning calls iter() before set_epoch().
        source = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        yield from torch.randperm(self.length, generator=source).tolist()


def take_batch(batch: list[Tensor]) -> list[Tensor]:
    """The collate_fn that goes with it; at module level, so that workers can pickle it."""
    return batch
