"""What the models are fed."""

import itertools
import pickle

import pytest
import torch
from conftest import PROBE, Compose, names
from hydra.utils import instantiate

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
