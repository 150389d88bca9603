"""What the models are fed."""

import itertools
import pickle

import pytest
import torch
import torch.distributed as dist
from conftest import PROBE, Compose, names
from hydra.utils import instantiate
from torch.utils.data import BatchSampler

from {{ cookiecutter.package_name }}.data.tensors import ReplayableSampler
from {{ cookiecutter.package_name }}.device import choose, request, settle


@pytest.mark.parametrize("name", names("data"))
def test_every_datamodule_gives_float32_and_pickles(config: Compose, name: str) -> None:
    cfg = config(f"data={name}")
    datamodule = instantiate(settle(cfg, choose(request(cfg), PROBE)).data)
    datamodule.setup("fit")
    for dataloader in (datamodule.train_dataloader(), datamodule.val_dataloader()):
        for tensor in next(iter(dataloader)):
            assert tensor.dtype in (torch.float32, torch.int64)
        # Workers on macOS and Windows get both by pickle.
        pickle.loads(pickle.dumps((dataloader.dataset, dataloader.collate_fn)))


def test_workers_give_the_same_batches(config: Compose) -> None:
    cfg = config("data.num_workers=0")
    datamodule = instantiate(settle(cfg, choose(request(cfg), PROBE)).data)
    datamodule.setup("fit")
    alone = list(itertools.islice(datamodule.val_dataloader(), 4))
    datamodule.num_workers = 2
    with_two = list(itertools.islice(datamodule.val_dataloader(), 4))
    for ours, theirs in zip(alone, with_two, strict=True):
        assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("samples", [63, 64, 1000])
def test_a_global_batch_is_the_same_samples_on_any_number_of_devices(
    monkeypatch: pytest.MonkeyPatch, samples: int
) -> None:
    def batches(devices: int) -> list[set[int]]:
        """Each batch of an epoch, of all devices together: 16 samples."""
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: devices)
        of_rank = []
        for rank in range(devices):
            monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
            sampler = ReplayableSampler(range(samples), seed=1)
            sampler.set_epoch(3)
            of_rank.append(list(BatchSampler(sampler, 16 // devices, drop_last=True)))
        return [{i for part in parts for i in part} for parts in zip(*of_rank, strict=True)]

    assert batches(1) == batches(2) == batches(8)
    assert len(batches(1)) == samples // 16
