"""What the models are fed suits every device and every operating system."""

import pickle

import lightning as L
import pytest
import torch
from conftest import EXPERIMENTS, chosen, compose_config, names, settled
from hydra.utils import instantiate
from omegaconf.errors import InterpolationResolutionError
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

CASES = [(name, chosen(name)) for name in EXPERIMENTS]
CASES += [(f"data={name}", [f"data={name}"]) for name in names("data")]


@pytest.mark.parametrize("overrides", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_its_batches_suit_every_device_and_its_loaders_pickle(overrides: list[str]) -> None:
    cfg = compose_config("train", *overrides)
    if cfg.tests.skip:
        pytest.skip(cfg.tests.skip)
    try:
        datamodule = instantiate(settled(cfg).data, _convert_="all")
    except InterpolationResolutionError:
        pytest.skip("it takes settings of a model that an experiment chooses")
    if datamodule is None:
        pytest.skip("the task has loaders of its own")
    datamodule.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    datamodule.prepare_data()
    datamodule.setup("fit")
    for loader in tree_leaves([datamodule.train_dataloader(), datamodule.val_dataloader()]):
        for value in tree_leaves(next(iter(loader))):
            if isinstance(value, torch.Tensor):  # MPS has no float64
                assert value.dtype not in (torch.float64, torch.complex128)
        if isinstance(loader, DataLoader):  # workers on macOS and Windows get these by pickle
            pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn)))
