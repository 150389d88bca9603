"""A dataset of tensors in memory that is read a whole batch at a time.

Fetching and collating sample by sample is most of a small job's time; indexing once a batch is not.
"""

from torch import Tensor
from torch.utils.data import Dataset


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


def take_batch(batch: list[Tensor]) -> list[Tensor]:
    """The collate_fn that goes with it; at module level, so that workers can pickle it."""
    return batch
