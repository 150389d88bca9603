"""The loader that stands for a user's: the same batches, and what a user sees of it."""

import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Subset, TensorDataset, default_collate

from .harness import Scenario, engine, forked, quiet, train
from .tasks import INPUTS, TARGETS, Augmented, Task, samples, trained_on

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def trainer_on(device: str) -> Trainer:
    quiet()
    return Trainer(accelerator=device, devices=1, logger=False, enable_checkpointing=False)


IMAGES = torch.randn(52, 1, 5, 5)
DATA = [
    (INPUTS, TARGETS),
    (INPUTS,),
    (IMAGES, TARGETS, INPUTS.double(), TARGETS.float()),
    (IMAGES.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last), TARGETS),
    (INPUTS.t().contiguous().t(), TARGETS),
    (TARGETS.bool(), INPUTS.half(), INPUTS.bfloat16()),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("number", range(len(DATA)))
@pytest.mark.parametrize("part", [None, [*range(40, 3, -1)], np.arange(3, 50, 3), "nested"])
def test_rows_of_tensors_are_the_batches_of_a_tensor_dataset(
    device: str, number: int, part: Any, tmp_path: Path
) -> None:
    status, found = forked(lambda: compare(device, number, part), tmp_path / "out")
    assert status == 0, found


def compare(device: str, number: int, part: Any) -> None:
    data: Any = TensorDataset(*DATA[number])
    if isinstance(part, str):
        data = Subset(Subset(data, [*range(1, 50, 2)]), [3, 1, 7, 7, 20, 0, 9, 4, 5])
    elif part is not None:
        data = Subset(data, part)
    trainer = trainer_on(device)
    rows = engine("resume.tensor_rows").tensor_rows(DataLoader(data, 8), trainer)
    if rows is None:
        assert not all(tensor.is_contiguous() for tensor in DATA[number])
        return
    for indices in torch.randperm(len(data)).split(8):
        batch = default_collate([data[index] for index in indices.tolist()])
        fetched = rows.fetch(indices.tolist())
        assert type(batch) is type(fetched) is list
        for one, other in zip(batch, fetched, strict=True):
            assert other.device.type == device
            assert one.dtype == other.dtype
            assert one.stride() == other.stride()
            assert torch.equal(one, other.cpu())


class LooksAtItsLoader(Task):
    """What a user may ask of `trainer.train_dataloader`."""

    given: DataLoader[Any]

    def on_train_start(self) -> None:
        loader = self.trainer.train_dataloader
        assert isinstance(loader, DataLoader)
        assert loader == self.given
        assert {loader: 1}[self.given] == 1
        assert (len(loader), loader.batch_size, loader.num_workers) == (7, 8, 0)
        assert loader.dataset.extra == 3
        assert loader.collate_fn is default_collate
        assert len(loader.sampler) == 52
        assert isinstance(loader.loader, DataLoader)
        assert not hasattr(loader, "of_nobody")
        assert len(self.trainer.val_dataloaders) == 4

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        assert isinstance(batch, list)


def test_a_user_sees_the_loader_that_was_given_and_no_warning_of_its_state(tmp_path: Path) -> None:
    def look() -> list[str]:
        data = samples()
        data.extra = 3
        LooksAtItsLoader.given = DataLoader(data, 8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scenario = Scenario(LooksAtItsLoader, lambda: trained_on(LooksAtItsLoader.given))
            train(tmp_path / "run", scenario, every=3, max_epochs=1)
            train(tmp_path / "run", scenario, every=3, max_epochs=2)
        return [str(one.message) for one in caught]

    status, messages = forked(look, tmp_path / "out")
    assert status == 0, messages
    unwanted = ("not resumable", "stateful")
    assert not [message for message in messages if any(word in message for word in unwanted)]


class Records(Task):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append([batch["a"][0].clone(), batch["b"][0].clone()])
        return self.loss(batch["a"][0])


def test_two_loaders_have_orders_and_noise_of_their_own(tmp_path: Path) -> None:
    def data() -> dict[str, Any]:
        both = {name: DataLoader(Augmented(), 8, shuffle=True) for name in "ab"}
        return trained_on(both)

    scenario = Scenario(Records, data, trainer={"max_epochs": 1})
    status, found = forked(lambda: train(tmp_path, scenario), tmp_path / "out")
    assert status == 0, found
    assert not any(torch.equal(a, b) for a, b in found["seen"])
    assert len({round(float(a[0, 0]), 6) for a, _ in found["seen"]}) == 7


def test_a_worker_ends_whose_process_was_killed_as_it_started() -> None:
    read, write = os.pipe()
    if not (process := os.fork()):
        started: list[int] = []
        start = engine("resume.loaders").WorkerStart(started.append)
        if not os.fork():
            while os.getppid() == start.parent:
                time.sleep(0.01)
            start(3)
            os.write(write, b"lives")  # with PyTorch's own start it would live for ever
        os._exit(0)
    os.waitpid(process, 0)
    os.close(write)
    assert os.read(read, 10) == b""


def test_a_worker_is_started_as_the_user_wants(tmp_path: Path) -> None:
    def data() -> dict[str, Any]:
        started = lambda worker: (tmp_path / str(worker)).touch()  # noqa: E731
        return trained_on(DataLoader(Augmented(), 8, num_workers=2, worker_init_fn=started))

    scenario = Scenario(Task, data, trainer={"max_epochs": 1})
    status, found = forked(lambda: train(tmp_path, scenario), tmp_path / "out")
    assert status == 0, found
    assert (tmp_path / "0").exists()
    assert (tmp_path / "1").exists()


def test_persistent_workers_end_with_the_training(tmp_path: Path) -> None:
    def left() -> list[Any]:
        loaders = DataLoader(Augmented(), 8, num_workers=1, persistent_workers=True)
        train(tmp_path, Scenario(Task, lambda: trained_on(loaders), trainer={"max_epochs": 2}))
        return multiprocessing.active_children()

    status, found = forked(left, tmp_path / "out")
    assert status == 0, found
    assert not found


class OwnState:
    """A stream that knows where it is, in Lightning's way."""

    def __init__(self) -> None:
        self.index = 0

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.index, 7):
            self.index = index
            yield [INPUTS[self.index :][:8], TARGETS[self.index :][:8]]

    def __len__(self) -> int:
        return 7

    def state_dict(self) -> dict[str, Any]:
        return {"index": self.index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.index = state["index"] + 1


class Seen(Task):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append(batch_idx)
        return super().training_step(batch, batch_idx)


def test_a_loader_with_a_state_resumes_a_users_own_checkpoint_by_it(tmp_path: Path) -> None:
    own = tmp_path / "own.ckpt"

    def first() -> Any:
        keeper = ModelCheckpoint(own.parent, own.stem, every_n_train_steps=3, save_top_k=1)
        scenario = Scenario(Seen, lambda: trained_on(OwnState()), lambda _: [keeper])
        train(tmp_path / "one", scenario, every=None, max_steps=3)
        states = torch.load(own, weights_only=False)["loops"]["fit_loop"]["state_dict"]
        loaders = OwnState()
        scenario = Scenario(Seen, lambda: trained_on(loaders))
        train(tmp_path / "two", scenario, every=None, ckpt_path=own, max_steps=5)
        return states["combined_loader"], loaders.index

    status, found = forked(first, tmp_path / "out")
    assert status == 0, found
    assert found == ([{"index": 2}], 4)


class OnTheGPU(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        return INPUTS[index].cuda(), TARGETS[index]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_for_a_gpu_are_pinned(num_workers: int) -> None:
    def batches(dataset: Any, workers: int) -> Iterator[Any]:
        loader = engine("resume.loaders").ResumableLoader(
            DataLoader(dataset, 8, num_workers=workers),
            trainer_on("cuda"),
            engine("resume.position").Position(0),
        )
        return iter(loader)

    assert all(x.is_pinned() for x, _ in batches(Augmented(), num_workers))
    # A data set that is on the GPU by itself works as it does without the engine.
    assert all(x.is_cuda for x, _ in batches(OnTheGPU(), 0))
