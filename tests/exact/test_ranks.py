"""Two ranks with gloo, started as torchrun does; one is killed, and both start again."""

import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset
from torchmetrics.classification import MulticlassAccuracy

from .harness import Fault, Place, Scenario, differences, fork, joined, train
from .tasks import Augmented, Task, loaders, samples, trained_on
from .test_data import Drawn, Stream

pytestmark = pytest.mark.slow
RANKS = 2
DDP = {"strategy": "ddp", "devices": RANKS}
# The rank that is killed, besides.
PLACES = [
    (Place("on_train_batch_start", 1, 0), 1),
    (Place("on_before_optimizer_step", 1, 2), 0),
    (Place("on_train_batch_end", 1, 2), 1),
    (Place("on_validation_batch_end", 1, None), 1),
    (Place("on_train_epoch_end", 1, None), 0),
    (Place("on_train_batch_end", 2, -1), 1),
]


class RankTask(Task):
    def __init__(self, schedule: str = "plateau") -> None:
        super().__init__(schedule)
        self.accuracy = MulticlassAccuracy(2)
        self.local = MulticlassAccuracy(2, sync_on_compute=False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        logits = self.model(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.accuracy(logits, batch[1])
        self.log("train/acc", self.accuracy, on_step=False, on_epoch=True)
        self.local.update(logits, batch[1])
        self.log("mean", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("own", loss, on_epoch=True, on_step=False)
        self.log("max", loss, on_epoch=True, on_step=False, reduce_fx="max", sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("local", self.local.compute())
        self.local.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch[0]) + torch.rand(()), sync_dist=True)


def keep(folder: Path) -> list[Callback]:
    keeper = ModelCheckpoint(folder / "kept", monitor="val/loss", save_top_k=2)
    return [keeper, EarlyStopping("val/loss", patience=3)]


def augmented(**options: Any) -> Callable[[], dict[str, Any]]:
    order = {} if "sampler" in options else {"shuffle": True}
    return lambda: trained_on(DataLoader(Augmented(), 4, **order, **options))


SCENARIOS = {
    "shuffled": Scenario(RankTask, loaders, trainer=DDP),
    "persistent workers, the best": Scenario(
        RankTask, augmented(num_workers=2, persistent_workers=True), keep, DDP
    ),
    "accumulated": Scenario(
        lambda: RankTask("step"),
        augmented(),
        trainer=DDP | {"accumulate_grad_batches": 2, "val_check_interval": 2},
    ),
    "own sampler": Scenario(lambda: RankTask("one cycle"), augmented(sampler=Drawn()), trainer=DDP),
    "stream": Scenario(
        lambda: RankTask("step"), lambda: trained_on(DataLoader(Stream(), 8)), trainer=DDP
    ),
    "steps": Scenario(
        lambda: RankTask("step"),
        augmented(generator=torch.Generator(), num_workers=2),
        trainer=DDP | {"max_steps": 17, "max_epochs": -1, "gradient_clip_val": 0.5},
    ),
}


def both(run: Path, do: Callable[[int], Any]) -> tuple[list[int], list[Any]]:
    """Call `do` with its rank in each of two ranks; when one ends badly, the other is ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def as_rank(rank: int) -> Any:
        os.environ.update(RANK=f"{rank}", LOCAL_RANK=f"{rank}", GROUP_RANK="0", ROLE_RANK=f"{rank}")
        os.environ.update(WORLD_SIZE=f"{RANKS}", LOCAL_WORLD_SIZE=f"{RANKS}")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}", TORCHELASTIC_RUN_ID="x")
        return do(rank)

    outs = [run / f"out {rank}" for rank in range(RANKS)]
    processes = [fork(partial(as_rank, rank), out) for rank, out in enumerate(outs)]
    left = dict(zip(processes, range(RANKS), strict=True))
    results: list[Any] = [None] * RANKS
    while left:
        process, status = os.wait()
        if process not in left:
            continue
        rank = left.pop(process)
        results[rank] = joined(os.waitstatus_to_exitcode(status), outs[rank])
        if results[rank][0] != 0:
            for other in left:
                os.kill(other, signal.SIGKILL)
    return [status for status, _ in results], [result for _, result in results]


@pytest.mark.parametrize("name", SCENARIOS)
def test_resumes_exactly(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    (path := tmp_path / "undisturbed").mkdir()
    statuses, wanted = both(path, lambda rank: train(path, scenario, every=None))
    assert statuses == [0, 0], wanted
    for number, (place, killed) in enumerate(PLACES):
        (run := tmp_path / str(number)).mkdir()
        fault = Fault(place, run / "note", kill=True)
        every = (1, 2)[number % 2]

        def disturbed(rank: int, fault=fault, killed=killed, run=run, every=every) -> Any:
            return train(run, scenario, *[fault][: rank == killed], every=every)

        statuses, text = both(run, disturbed)
        if not fault.note.exists():
            assert statuses == [0, 0], text
            continue
        statuses, found = both(run, lambda rank, run=run, e=every: train(run, scenario, every=e))
        assert statuses == [0, 0], f"{place}: {found}"
        assert not (wrong := differences(wanted, found)), f"{place}: {wrong[:5]}"


class Signal(Callback):
    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_to_one_rank_ends_both(tmp_path: Path) -> None:
    scenario = SCENARIOS["accumulated"]
    statuses, text = both(
        tmp_path, lambda rank: train(tmp_path, scenario, *[Signal()][:rank], every=10**6)
    )
    # The one without a signal exits by itself, or is ended by this test as torchrun would.
    assert statuses[1] == 128 + signal.SIGTERM, text
    assert statuses[0] in (128 + signal.SIGTERM, -signal.SIGKILL), text
    assert [*tmp_path.glob("checkpoints/step_*")]


def test_another_number_of_devices_is_refused(tmp_path: Path) -> None:
    scenario = SCENARIOS["shuffled"]
    assert both(tmp_path, lambda rank: train(tmp_path, scenario, every=1))[0] == [0, 0]
    process = fork(lambda: train(tmp_path, scenario, devices=1, strategy="auto"), tmp_path / "out")
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    status, text = joined(status, tmp_path / "out")
    assert status == 1
    assert "This run has 2 devices, not 1" in text


class Shares(Task):
    """Keeps the samples that it has seen, by epoch."""

    def __init__(self) -> None:
        super().__init__(None)
        self.seen: list[list[float]] = [[], []]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen[self.current_epoch] += batch[0][:, 0].tolist()
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("drop_last", [False, True])
def test_each_rank_gets_its_own_part(tmp_path: Path, drop_last: bool) -> None:
    def data() -> dict[str, Any]:
        odd = Subset(samples(), range(51))
        return trained_on(DataLoader(odd, 3, shuffle=True, drop_last=drop_last))

    scenario = Scenario(Shares, data, trainer=DDP | {"max_epochs": 2})
    statuses, found = both(tmp_path, lambda rank: train(tmp_path, scenario, every=None))
    assert statuses == [0, 0], found
    first, second = ([one["seen"][epoch] for one in found] for epoch in (0, 1))
    assert first != second
    for parts in (first, second):
        assert len(parts[0]) == len(parts[1]) == (24 if drop_last else 26)
        # Without drop_last one sample of 51 is in both parts, so that they are as long.
        assert len(set(parts[0]) & set(parts[1])) == (0 if drop_last else 1)
