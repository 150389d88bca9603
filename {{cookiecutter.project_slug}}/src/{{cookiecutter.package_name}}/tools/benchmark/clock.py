"""The same clock for both loops. It starts and stops between two steps of the optimizer."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from . import hardware


class Over(Exception):
    """Enough steps have been timed."""


@dataclass(frozen=True)
class Timing:
    """What one loop took for some optimizer steps."""

    steps: int
    seconds: float  # of all steps and what is between them, without the validation
    each: list[float]  # seconds of single steps
    first_step: float  # seconds of the very first step, before those
    loss: float  # of the last step
    memory: int | None  # bytes, the peak


class Clock:
    """Counts the steps of any optimizer, and times `steps` of them after the warm-up.

    Args:
        device: waited for at both ends.
        warmup: steps before, 1 or more.
        steps: how many to time.
        patience: seconds after which fewer steps are enough.
        on_batch: called with each batch that is timed.
    """

    def __init__(
        self,
        device: torch.device,
        warmup: int,
        steps: int,
        *,
        patience: float = float("inf"),
        on_batch: Callable[[Any], None] | None = None,
    ) -> None:
        self.device, self.warmup, self.steps = device, warmup, steps
        self.patience, self.on_batch = patience, on_batch
        self.done = 0  # steps
        self.marks: list[Any] = []
        self.interrupted: set[int] = set()  # the marks that follow a validation
        self.seconds_outside = 0.0
        self.batch_started: float | None = None
        self.first_step = self.began = self.ended = 0.0
        self.loss: Tensor | None = None

    def watch(self, task: LightningModule) -> None:
        """Look at each batch and the last loss of a task."""
        training_step = task.training_step

        @functools.wraps(training_step)
        def watched(batch: Any, *args: Any) -> Any:
            if self.batch_started is None:
                self.batch_started = time.perf_counter()
            if self.on_batch is not None and self.done >= self.warmup:
                self.on_batch(batch)
            outputs: Any = training_step(batch, *args)
            if self.done + 1 >= self.warmup + self.steps or self.patience < float("inf"):
                loss = outputs["loss"] if isinstance(outputs, dict) else outputs
                self.loss = None if loss is None else loss.detach()
            return outputs

        task.training_step = watched  # type: ignore[method-assign]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the steps of all optimizers in this context."""
        handle = register_optimizer_step_post_hook(self._after_step)
        try:
            yield
        finally:
            handle.remove()

    def outside(self, other: Callable[[], Any]) -> Callable[[], Any]:
        """Return the same function, whose time does not count."""

        def uncounted() -> Any:
            started = self._now()
            try:
                return other()
            finally:
                self.seconds_outside += self._now() - started
                self.interrupted.add(len(self.marks))

        return uncounted

    def timing(self) -> Timing:
        """Return what has been timed.

        Raises:
            ValueError: the training ended too early.
        """
        if not self.ended or self.loss is None:
            raise ValueError(f"the training ended after {self.done} steps")
        pairs = zip(self.marks, self.marks[1:], strict=False)
        each = [
            hardware.between(earlier, later)
            for number, (earlier, later) in enumerate(pairs, 1)
            if number not in self.interrupted
        ]
        return Timing(
            steps=len(self.marks) - 1,
            seconds=self.ended - self.began,
            each=each,
            first_step=self.first_step,
            loss=float(self.loss),
            memory=hardware.peak_memory(self.device),
        )

    def _now(self) -> float:
        hardware.wait(self.device)
        return time.perf_counter()

    def _after_step(self, *_: Any) -> None:
        if self.batch_started is None:
            return  # a step before training: the engine tries fused kernels
        self.done += 1
        if self.done == 1:
            self.first_step = self._now() - self.batch_started
        if self.done == self.warmup:
            self.began = self._now()
            self.seconds_outside = 0.0
        if self.done < self.warmup:
            return
        self.marks.append(hardware.mark(self.device))
        enough = self.done == self.warmup + self.steps
        if not enough and len(self.marks) > 1 and self.patience < float("inf"):
            enough = self._now() - self.began > self.patience
        if enough:
            self.ended = self._now() - self.seconds_outside
            raise Over
