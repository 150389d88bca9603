"""The user's own training, validation, test and predict steps, rehearsed."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hydra.errors import InstantiationException
from lightning import Callback, LightningDataModule, LightningModule

from ...engine.errors import UserError
from . import batches
from .calls import DeviceCalls
from .fake_hardware import asked_the_driver, fake_hardware
from .findings import Finding
from .memory import Meter
from .meta_mode import SMALL, MetaMode
from .places import of_error
from .recorder import MADE_ELSEWHERE, Recorder
from .standin import StandIn
from .step_runner import StepRunner, quiet_lightning


@dataclass
class Rehearsal:
    """What happened."""

    findings: list[Finding]
    guesses: list[Any]  # values that were made up on the way
    meter: Meter
    task: LightningModule | None = None  # as the steps left it
    saved: dict[str, Any] = field(default_factory=dict)  # what a checkpoint has beside weights


def rehearse_steps(
    build: Callable[[], LightningModule],
    datamodule: LightningDataModule,
    taken: dict[str, Any],
    target: str,
    *,
    precision: str = "32-true",
    trainer: dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    accept: dict[str, str] | None = None,
    limit: int | None = SMALL,
) -> Rehearsal:
    """Run every step of a task.

    Args:
        build: returns a task, which is of no use afterwards: it has moved to the stand-ins.
        datamodule: whose hooks are called.
        taken: the batches, from `batches.take`.
        target: mps, cuda or cpu.
        precision: of Lightning's Trainer.
        trainer: more settings of it.
        callbacks: that take part.
        accept: operators that the CPU may compute for MPS, with reasons.
        limit: elements of the largest tensor whose values are kept; None: of all.
    """
    device = torch.device("cpu") if target == "cpu" else torch.device(target, 0)
    recorder = Recorder(device, accept or {})
    mode = MetaMode(device, recorder, limit=limit)
    rehearsal = Rehearsal(recorder.findings, recorder.guesses, recorder.meter)

    def perform() -> None:
        task = rehearsal.task = build()
        runner = StepRunner(
            task,
            datamodule,
            recorder,
            mode,
            precision=precision,
            settings=trainer or {},
            callbacks=callbacks,
        )
        for part in runner.parts(taken):
            _try(recorder, part.run, forgive_errors=part.borrows_batch)
        recorder.meter.count(runner.optimizers(), task)
        rehearsal.saved = runner.saved()

    with _pretending(recorder, mode), batches.given(datamodule, taken):
        _try(recorder, perform)
    return rehearsal


@contextlib.contextmanager
def _pretending(recorder: Recorder, mode: MetaMode) -> Iterator[None]:
    """Let everything inside believe that it runs on the target."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet_lightning())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(fake_hardware(mode.target.type, recorder.event, mode.note_autocast))
        # In one thread: modes belong to a thread, and nodes must come in the forward pass's order.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(_parameters_stay_themselves())
        stack.enter_context(_shown_to(recorder))
        stack.enter_context(DeviceCalls(mode.target, recorder))
        stack.enter_context(mode)
        yield


def _try(recorder: Recorder, part: Callable[[], Any], *, forgive_errors: bool = False) -> None:
    """Run a part; what it raises is a finding, unless it follows from one that is there already.

    Args:
        recorder: gets the finding.
        part: what is run.
        forgive_errors: what it raises is no finding, since it may get another batch than it takes.
    """
    before = {finding for finding in recorder.findings if finding.severity == "fails"}
    try:
        part()
    except (UserError, InstantiationException):
        raise  # a mistake in the config, which every command tells in a sentence
    except Exception as error:
        recorder.stage, stage = "", recorder.stage
        if forgive_errors:
            return
        place = of_error(error.__traceback__)
        broken = {f for f in recorder.findings if f.severity == "fails" and f.kind in HIDES}
        if broken - before or (broken and not stage):
            return
        file, line = place or (None, None)
        message = " ".join(str(error).split())[:300] or type(error).__name__
        if "same device" in message:  # checked by PyTorch itself, before an operator is called
            kind, severity, fix = "device", "fails", MADE_ELSEWHERE
            message = message.replace("meta", recorder.target.type)
        elif _undecided(error, recorder):
            kind, severity, fix = "undecided", "unknown", "try it on the device itself"
        else:
            kind, severity, fix = "error", "fails", "run it with trainer.accelerator=cpu debug=fast"
        recorder.findings.append(
            Finding(
                kind, severity, f"{type(error).__name__}: {message}", fix, file, line, None, stage
            )
        )


HIDES = ("device", "vendor")  # an error after one of these may follow from it


def _undecided(error: Exception, recorder: Recorder) -> bool:
    """Return whether it failed because of how it is rehearsed, and not by a fault of its own."""
    said = str(error)
    return (
        bool(recorder.guesses)
        or isinstance(error, NotImplementedError)
        or "meta" in said.lower()
        or asked_the_driver(error)
    )


@contextlib.contextmanager
def _parameters_stay_themselves() -> Iterator[None]:
    """Let `.to()` and `.double()` change a parameter in place: it may be shared, or in a list."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


@contextlib.contextmanager
def _shown_to(recorder: Recorder) -> Iterator[None]:
    before, StandIn.on_show = StandIn.on_show, staticmethod(recorder.shown)
    try:
        yield
    finally:
        StandIn.on_show = before
