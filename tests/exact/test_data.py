"""Kinds of data: samplers, workers, streams, several loaders, loaders of one's own."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
    get_worker_info,
)

from .harness import Place, Scenario, by_scenario, check, differences, whole
from .tasks import (
    INPUTS,
    NUM_SAMPLES,
    TARGETS,
    Augmented,
    NoBatchNorm,
    Task,
    samples,
    trained_on,
)

TWO = {"num_workers": 2}
PERSISTENT = {"num_workers": 2, "persistent_workers": True}


class AugmentedBatches(Augmented):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        noise = torch.randn(len(indices), 4) * random.random() + np.random.rand()
        return list(zip(INPUTS[indices] + noise, TARGETS[indices], strict=True))


def random_collate(items: list[Any]) -> list[Tensor]:
    inputs, targets = default_collate(items)
    return [inputs + torch.randn_like(inputs), targets]


class Shuffled(Sampler[int]):
    """Draws all at once, from Python's and NumPy's generators."""

    def __iter__(self) -> Iterator[int]:
        order = list(range(NUM_SAMPLES))
        random.shuffle(order)
        np.random.shuffle(order)
        return iter(order)

    def __len__(self) -> int:
        return NUM_SAMPLES


class Drawn(Shuffled):
    """Draws one after the other."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(NUM_SAMPLES):
            half = np.random.rand() < 0.5
            yield random.randrange(NUM_SAMPLES) if half else int(torch.randint(NUM_SAMPLES, ()))


class OwnGenerators(Shuffled):
    def __init__(self) -> None:
        self.numpy = np.random.default_rng(3)
        self.torch = torch.Generator().manual_seed(5)
        self.python = random.Random(4)

    def __iter__(self) -> Iterator[int]:
        order = self.numpy.permutation(NUM_SAMPLES)
        order = order[torch.randperm(NUM_SAMPLES, generator=self.torch).numpy()].tolist()
        self.python.shuffle(order)
        return iter(order)


class WithSetEpoch(Shuffled):
    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.epoch)
        return iter(torch.randperm(NUM_SAMPLES, generator=generator).tolist())


class Buckets(Sampler[list[int]]):
    """Batches that differ in size."""

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(NUM_SAMPLES).tolist()
        while order:
            size = random.randint(5, 9)
            yield order[:size]
            order = order[size:]

    def __len__(self) -> int:
        return 6


class Unsized(Sampler[list[int]]):
    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(NUM_SAMPLES).tolist()
        for start in range(0, NUM_SAMPLES, 8):
            yield order[start : start + 8]


class Stream(IterableDataset[Any]):
    def __init__(self, length: int = NUM_SAMPLES) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for index in range(worker, self.length, workers):
            noise = torch.randn(4) * random.random() + np.random.rand()
            yield INPUTS[index] + noise, TARGETS[index]


class SizedStream(Stream):
    def __len__(self) -> int:
        return NUM_SAMPLES


class OwnLoader:
    """Nothing of PyTorch's."""

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(NUM_SAMPLES)
        for start in range(0, NUM_SAMPLES, 8):
            chosen = order[start : start + 8]
            yield [INPUTS[chosen] + random.random(), TARGETS[chosen]]

    def __len__(self) -> int:
        return 7


class Stateful(DataLoader[Any]):
    """Stands for torchdata's: it has a state, and continues after what it has given."""

    given = skip = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        skip, self.skip, self.given = self.skip, 0, 0
        for number, batch in enumerate(super().__iter__()):
            self.given = number + 1
            if number >= skip:
                yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skip = state["given"]


class Subclassed(DataLoader[Any]):
    def __init__(self, *args: Any, extra: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.extra = extra


class PairTask(Task):
    """Trains with two loaders, of which one may have ended."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        other = batch["a"] if batch["b"] is None else batch["b"]
        loss = self.loss(batch["a"][0]) + self.loss(other[0])
        self.log("loss", loss, on_epoch=True, batch_size=8)
        return loss


def pair(mode: str | None = None, **of_each: Any) -> Callable[[], dict[str, Any]]:
    def data() -> dict[str, Any]:
        few = Subset(Augmented(), range(20))
        options = {"batch_size": 8, "shuffle": True} | of_each
        both: Any = {"a": DataLoader(Augmented(), **options), "b": DataLoader(few, **options)}
        return trained_on(CombinedLoader(both, mode) if mode else both)

    return data


def stream_pair(mode: str) -> dict[str, Any]:
    both = {
        "a": DataLoader(Stream(), 8),
        "b": DataLoader(Stream(20), 8),
        "c": DataLoader(samples(), 16, shuffle=True),
    }
    return trained_on(CombinedLoader(both, mode))


class Reloaded(lightning.LightningDataModule):
    """Makes new loaders in some epochs."""

    def __init__(self, dataset: Any = None, **options: Any) -> None:
        super().__init__()
        self.dataset, self.options = dataset or Augmented(), options

    def train_dataloader(self) -> Any:
        return DataLoader(self.dataset, 8, **self.options)

    def val_dataloader(self) -> Any:
        return DataLoader(Augmented(), 16)


def of(make: Callable[[], Any], **trainer: Any) -> Scenario:
    return Scenario(Task, lambda: trained_on(make()), trainer=trainer)


def shuffled(dataset: Any, **options: Any) -> Scenario:
    return of(lambda: DataLoader(dataset, 8, shuffle=True, **options))


def sampled(make: Callable[[], Any], dataset: Any = None, **options: Any) -> Scenario:
    return of(lambda: DataLoader(dataset or samples(), 8, sampler=make(), **options))


def batched(make: Callable[[], Any], **options: Any) -> Scenario:
    return of(lambda: DataLoader(Augmented(), batch_sampler=make(), **options))


def streamed(dataset: Any, **options: Any) -> Scenario:
    return of(lambda: DataLoader(dataset, 8, **options))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def weighted() -> Any:
    return WeightedRandomSampler(torch.arange(NUM_SAMPLES) + 1.0, NUM_SAMPLES)


def validated(**options: Any) -> dict[str, Any]:
    train = DataLoader(samples(), 8, shuffle=True)
    val = DataLoader(Augmented(), 16, shuffle=True, **options)
    return {"train_dataloaders": train, "val_dataloaders": val}


def one_by_one(**options: Any) -> Scenario:
    def data() -> dict[str, Any]:
        return trained_on(DataLoader(Augmented(), batch_size=None, shuffle=True, **options))

    return Scenario(NoBatchNorm, data, trainer={"limit_train_batches": 7})


SCENARIOS = {
    "augmented": shuffled(Augmented()),
    "augmented, 2 workers": shuffled(Augmented(), **TWO),
    "augmented, persistent workers": shuffled(Augmented(), **PERSISTENT),
    "augmented, 3 workers": shuffled(Augmented(), num_workers=3, prefetch_factor=4),
    "augmented, a spawned worker": shuffled(
        Augmented(), num_workers=1, persistent_workers=True, multiprocessing_context="spawn"
    ),
    "augmented batches, 2 workers": shuffled(AugmentedBatches(), **TWO),
    "random collate": shuffled(samples(), collate_fn=random_collate),
    "random collate, 2 workers": shuffled(samples(), collate_fn=random_collate, **TWO),
    "part of the samples": shuffled(Subset(samples(), [*range(3, 50, 2), 1, 2])),
    "generator": of(lambda: DataLoader(samples(), 8, shuffle=True, generator=seeded())),
    "generator, 2 workers": of(
        lambda: DataLoader(Augmented(), 8, shuffle=True, generator=seeded(), **TWO)
    ),
    "weighted": sampled(weighted),
    "weighted, 2 workers": sampled(weighted, Augmented(), **TWO),
    "with replacement": sampled(lambda: RandomSampler(samples(), replacement=True, num_samples=50)),
    "subset sampler": sampled(lambda: SubsetRandomSampler(range(3, 50))),
    "own sampler": sampled(Shuffled),
    "own sampler, 2 workers": sampled(Shuffled, Augmented(), **TWO),
    "own sampler, drawn": sampled(Drawn, Augmented()),
    "own sampler, drawn, 2 workers": sampled(Drawn, Augmented(), **TWO),
    "own generators": sampled(OwnGenerators),
    "own generators, 2 workers": sampled(OwnGenerators, Augmented(), **TWO),
    "set_epoch": sampled(WithSetEpoch),
    "set_epoch, 2 workers": sampled(WithSetEpoch, Augmented(), **TWO),
    "buckets": Scenario(
        Task,
        lambda: trained_on(DataLoader(samples(), batch_sampler=Buckets())),
        trainer={"limit_train_batches": 5},
    ),
    "unsized batch sampler": batched(Unsized),
    "unsized batch sampler, 2 workers": batched(Unsized, **TWO),
    "one by one": one_by_one(),
    "one by one, 2 workers": one_by_one(**TWO),
    "a subclass": of(lambda: Subclassed(Augmented(), 8, shuffle=True, extra=3)),
    "a stateful loader": of(lambda: Stateful(Augmented(), 8, shuffle=True)),
    "an own loader": of(OwnLoader),
    "stream": streamed(Stream()),
    "stream, 2 workers": streamed(Stream(), drop_last=True, **TWO),
    "stream, persistent workers": streamed(Stream(), drop_last=True, **PERSISTENT),
    "stream, validated": of(lambda: DataLoader(Stream(), 8), val_check_interval=3),
    "stream, by steps": of(lambda: DataLoader(Stream(), 8), max_steps=17, max_epochs=-1),
    "sized stream": streamed(SizedStream()),
    "sized stream, 2 workers": streamed(SizedStream(), drop_last=True, **TWO),
    "two loaders": Scenario(PairTask, pair()),
    "two loaders, 2 workers": Scenario(PairTask, pair(**PERSISTENT)),
    "two loaders, min_size": Scenario(PairTask, pair("min_size")),
    "two loaders, max_size": Scenario(PairTask, pair("max_size")),
    "two streams": Scenario(PairTask, lambda: stream_pair("max_size_cycle")),
    "two streams, max_size": Scenario(PairTask, lambda: stream_pair("max_size")),
    "reloaded": Scenario(
        Task, lambda: {"datamodule": Reloaded()}, trainer={"reload_dataloaders_every_n_epochs": 1}
    ),
    "reloaded, 2 workers": Scenario(
        Task,
        lambda: {"datamodule": Reloaded(shuffle=True, **PERSISTENT)},
        trainer={"reload_dataloaders_every_n_epochs": 1},
    ),
    "reloaded in every second epoch": Scenario(
        Task,
        lambda: {"datamodule": Reloaded(shuffle=True)},
        trainer={"reload_dataloaders_every_n_epochs": 2, "max_epochs": 4},
    ),
    "reloaded stream": Scenario(
        Task,
        lambda: {"datamodule": Reloaded(Stream())},
        trainer={"reload_dataloaders_every_n_epochs": 1},
    ),
    "validated on augmented data": Scenario(
        Task, lambda: validated(**PERSISTENT), trainer={"num_sanity_val_steps": 2}
    ),
}
QUICK = {
    "augmented, 2 workers",
    "own sampler, drawn",
    "buckets",
    "stream",
    "two loaders, max_size",
    "two streams",
    "reloaded in every second epoch",
}


@by_scenario(SCENARIOS, QUICK)
def test_resumes_exactly(tmp_path: Path, name: str, places: list[Place], fast: bool) -> None:
    check(tmp_path, SCENARIOS[name], places, fast=fast)


@pytest.mark.parametrize("sampler", [None, Drawn, OwnGenerators])
def test_the_number_of_workers_changes_nothing(tmp_path: Path, sampler: Any) -> None:
    def data(num_workers: int) -> dict[str, Any]:
        order = {"sampler": sampler()} if sampler else {"shuffle": True}
        return trained_on(DataLoader(Augmented(), 8, num_workers=num_workers, **order))

    outcomes = []
    for workers in (0, 1, 3):
        (path := tmp_path / str(workers)).mkdir()
        scenario = Scenario(Task, lambda workers=workers: data(workers), trainer={"max_epochs": 2})
        outcomes.append(whole(path, scenario))
    assert not differences(outcomes[0], outcomes[1])
    assert not differences(outcomes[0], outcomes[2])
