"""Schedules, accumulation, the places of validations, and limits of the training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler

from .harness import Place, Scenario, by_scenario, check
from .tasks import Task, loaders


def of(schedule: str | None = "step", *callbacks: Callable[[], Any], **trainer: Any) -> Scenario:
    return Scenario(
        lambda: Task(schedule), loaders, lambda _: [make() for make in callbacks], trainer
    )


SCENARIOS = {
    "step": of(gradient_clip_val=0.5),
    "epoch": of("epoch"),
    "plateau": of("plateau"),
    "one cycle": of("one cycle"),
    "step, accumulated": of(accumulate_grad_batches=4, gradient_clip_val=0.5),
    "epoch, accumulated": of("epoch", accumulate_grad_batches=4),
    "plateau, accumulated": of("plateau", accumulate_grad_batches=4),
    "one cycle, accumulated": of("one cycle", accumulate_grad_batches=4),
    "plateau, validated in every second epoch": Scenario(
        lambda: Task("plateau", frequency=2),
        loaders,
        trainer={"check_val_every_n_epoch": 2, "max_epochs": 4},
    ),
    "plateau in every epoch, validated in every second": Scenario(
        lambda: Task("plateau", strict=False),
        loaders,
        trainer={"check_val_every_n_epoch": 2, "max_epochs": 5},
    ),
    "plateau in every step": Scenario(
        lambda: Task("plateau", interval="step", strict=False),
        loaders,
        trainer={"val_check_interval": 2},
    ),
    "accumulation by a schedule": of(
        "step", lambda: GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})
    ),
    "clipped by value": of(gradient_clip_val=0.1, gradient_clip_algorithm="value"),
    "validated 4 times in an epoch": of(val_check_interval=0.25),
    "validated after every 3 batches": of(val_check_interval=3),
    "validated after every 3 batches, accumulated": of(
        val_check_interval=3, accumulate_grad_batches=4
    ),
    "validated across epochs": of(val_check_interval=5, check_val_every_n_epoch=None),
    "validated across epochs, accumulated": of(
        val_check_interval=10, check_val_every_n_epoch=None, accumulate_grad_batches=2
    ),
    "4 training batches": of(limit_train_batches=4),
    "half of the training batches": of(limit_train_batches=0.5, limit_val_batches=2),
    "steps that end in an epoch": of("epoch", max_steps=17, max_epochs=-1),
    "steps, plateau, validated every 3": of(
        "plateau", max_steps=17, max_epochs=-1, val_check_interval=3
    ),
    "steps, accumulated": of("epoch", max_steps=5, max_epochs=-1, accumulate_grad_batches=4),
    "steps that end with an epoch": of("plateau", max_steps=14, max_epochs=-1),
    "sanity check": of(num_sanity_val_steps=2),
    "early stopping": of(
        "step", lambda: EarlyStopping("val/loss", patience=1, min_delta=10.0), max_epochs=6
    ),
    "early stopping in an epoch": of(
        "step",
        lambda: EarlyStopping("val/loss", patience=2, min_delta=10.0),
        max_epochs=6,
        val_check_interval=0.5,
    ),
    "early stopping not before an epoch": of(
        "step",
        lambda: EarlyStopping("val/loss", patience=1, min_delta=0.2),
        max_epochs=6,
        val_check_interval=2,
        min_epochs=3,
    ),
    "rows every 3 steps": of(log_every_n_steps=3),
}
QUICK = {
    "one cycle",
    "plateau, accumulated",
    "validated after every 3 batches",
    "early stopping",
    "steps that end in an epoch",
}


@by_scenario(SCENARIOS, QUICK)
def test_resumes_exactly(tmp_path: Path, name: str, places: list[Place], fast: bool) -> None:
    check(tmp_path, SCENARIOS[name], places, fast=fast)
