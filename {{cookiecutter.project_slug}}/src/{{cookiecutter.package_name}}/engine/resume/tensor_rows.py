"""Tensors in memory, fetched a whole batch at a time: the same batches as from a TensorDataset.

Fetching and collating single samples is most of the time of a small job.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

GPU_SHARE = 0.1  # of a GPU's free memory: smaller data are kept there


class TensorRows:
    """Rows of tensors.

    Args:
        tensors: of the same length.
        rows: which of them are the samples; None: all.
    """

    def __init__(self, tensors: list[Tensor], rows: Tensor | None) -> None:
        self.tensors, self.rows = tensors, rows

    def fetch(self, indices: list[int]) -> list[Tensor]:
        chosen = torch.from_numpy(np.array(indices))  # takes a fifth of the time of torch.tensor
        if self.rows is not None:
            chosen = self.rows[chosen]
        chosen = chosen.to(self.tensors[0].device)
        return [tensor.index_select(0, chosen) for tensor in self.tensors]


class TensorBatches:
    """What a DataLoader of these rows gives, without the DataLoader."""

    def __init__(self, rows: TensorRows, batch_sampler: Iterable[list[int]]) -> None:
        self.rows, self.batch_sampler = rows, batch_sampler

    def __iter__(self) -> Iterator[list[Tensor]]:
        return map(self.rows.fetch, self.batch_sampler)


def tensor_rows(loader: "DataLoader[Any]", trainer: Trainer) -> TensorRows | None:
    """Return the rows of a TensorDataset or a Subset of one, or None for all other data."""
    dataset, rows = loader.dataset, None
    while type(dataset) is Subset:
        chosen = torch.as_tensor(list(dataset.indices))
        dataset, rows = dataset.dataset, chosen if rows is None else chosen[rows]
    if type(dataset) is not TensorDataset or loader.collate_fn is not default_collate:
        return None
    tensors = list(dataset.tensors)
    if loader.num_workers or loader.batch_sampler is None:
        return None
    if not all(tensor.is_contiguous() for tensor in tensors):
        return None  # the batches would have another memory format
    rows_of_each = [tensor if rows is None else tensor[rows] for tensor in tensors]
    if keep_on_gpu(rows_of_each, trainer):
        device = trainer.strategy.root_device
        return TensorRows([tensor.to(device) for tensor in rows_of_each], None)
    return TensorRows(tensors, rows)


def keep_on_gpu(tensors: list[Tensor], trainer: Trainer) -> bool:
    device = trainer.strategy.root_device
    if device.type != "cuda" or any(tensor.device.type != "cpu" for tensor in tensors):
        return False
    # These hooks of a user expect a batch in the CPU's memory.
    hooks = ("on_before_batch_transfer", "transfer_batch_to_device")
    owners = (trainer.lightning_module, trainer.datamodule)  # type: ignore[attr-defined]
    for owner in filter(None, owners):
        if any(is_overridden(hook, owner) for hook in hooks):
            return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(tensor.nbytes for tensor in tensors) < GPU_SHARE * free
