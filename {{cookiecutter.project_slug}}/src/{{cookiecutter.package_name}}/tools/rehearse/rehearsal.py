"""One task, rehearsed for one target after the other."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from ...engine.device import Requested
from ...engine.errors import UserError
from . import batches
from .checkpoints import checkpoint_findings
from .findings import Finding, Verdict, merged
from .loaders import loader_findings, worker_findings
from .memory import parse, shown
from .places import of_error
from .policy import settings_for
from .selfcheck import untrusted
from .sources import loaded_beside, vendor_literals
from .steps import Rehearsal, rehearse_steps

REAL = 2 * 2**30  # bytes: a step up to this size is run with real values if it reads some
FEW = 4  # samples of the batch of such a step
FEWEST = 2  # samples of which batch norm can take a variance


class Rehearser:
    """A task, its data and its first batches, which every target shares."""

    def __init__(
        self,
        task: LightningModule | Callable[[], LightningModule],
        data: LightningDataModule | DataLoader[Any] | None,
        *,
        trainer: Mapping[str, Any],
        accept: Mapping[str, str],
        callbacks: Sequence[Callback] = (),
        memory: str | int | None = None,
        sources: Sequence[Path] | None = None,
    ) -> None:
        self.build = (lambda: copy.deepcopy(task)) if isinstance(task, LightningModule) else task
        if data is None:
            data = batches.LoadersOfTask(self.build())
        self.datamodule = batches.OneLoader(data) if isinstance(data, DataLoader) else data
        self.trainer, self.accept = dict(trainer), dict(accept)
        self.callbacks = callbacks
        self.memory = None if memory is None else parse(memory)
        self.sources = sources
        self.taken: dict[str, Any] | None = None
        self.no_data: list[Finding] = []
        try:
            self.taken = batches.take(self.datamodule)
        except UserError:
            raise
        except Exception as error:
            self.no_data = [_of_data(error)]

    def on(self, target: str, want: Requested) -> Verdict:
        """Return what would happen on `target` with the settings that are requested."""
        settings, findings = settings_for(target, want)
        if self.taken is None:
            return Verdict(target, "its data only", findings + self.no_data)
        if (reason := untrusted(target, settings.precision)) is not None:
            return Verdict(target, "not at all", [reason])

        def steps(taken: dict[str, Any], **how: Any) -> Rehearsal:
            return rehearse_steps(
                self.build,
                self.datamodule,
                taken,
                target,
                precision=settings.precision,
                trainer=self.trainer,
                callbacks=self.callbacks,
                accept=self.accept,
                **how,
            )

        done = steps(self.taken)
        how = "every step on stand-ins"
        found = done.findings
        if done.guesses:
            how, found = self._with_values(steps, done)
        loaders = [
            loader.loader
            for loader in tree_leaves(self.taken)
            if isinstance(loader.loader, DataLoader)
        ]
        findings += found
        findings += loader_findings(loaders, target) + worker_findings(loaders, target)
        if done.task is not None:
            findings += checkpoint_findings(done.task, self.datamodule, done.saved)
            findings += vendor_literals(self._files(done.task))
        findings += self._too_large(steps, done)
        return Verdict(target, how, merged(findings), str(done.meter))

    def _with_values(
        self, steps: Callable[..., Rehearsal], first: Rehearsal
    ) -> tuple[str, list[Finding]]:
        """Run the steps with real values: on stand-ins, they had to continue with made-up ones."""
        assert self.taken is not None
        if first.meter.kept > REAL:
            return "every step on stand-ins", first.findings + _guessed(first)
        few = batches.fewer(self.taken, FEW)
        second = steps(few, limit=None)
        if _failed(second) and few is not self.taken and first.meter.peak <= REAL:
            second = steps(self.taken, limit=None)  # it may need the whole batch
        certain = [f for f in first.findings if f.kind not in ("error", "undecided")]
        return "every step on stand-ins, and with values", certain + second.findings

    def _files(self, task: LightningModule) -> list[Path]:
        if self.sources is not None:
            return list(self.sources)
        modules = {type(module).__module__ for module in task.modules()}
        return loaded_beside(modules | {type(self.datamodule).__module__})

    def _too_large(self, steps: Callable[..., Rehearsal], done: Rehearsal) -> list[Finding]:
        """Return whether a step needs more than the given memory, and the batch size that fits."""
        if self.memory is None or self.taken is None or done.meter.peak <= self.memory:
            return []
        size = batches.batch_size(self.taken)
        least = steps(batches.fewer(self.taken, FEWEST)).meter.peak
        fix = "a smaller model, or fsdp: its parameters, gradients and optimizer do not fit"
        if size > FEWEST and least <= self.memory:
            # From the fewest samples to all, memory grows linearly or slower.
            each = (done.meter.peak - least) / (size - FEWEST)
            fits = FEWEST + int((self.memory - least) / each)
            fix = f"data.batch_size={fits}, and a larger trainer.accumulate_grad_batches"
        message = f"a step needs {done.meter}; there are {shown(self.memory)}"
        return [Finding("memory", "fails", message, fix)]


def _failed(rehearsal: Rehearsal) -> bool:
    return any(finding.kind in ("error", "undecided") for finding in rehearsal.findings)


def _guessed(rehearsal: Rehearsal) -> list[Finding]:
    """Return the lines that read an unknown value, in a model that is too large to compute."""
    return [
        Finding(
            "undecided",
            "unknown",
            f"what follows depends on a value that is not known here ({what}), and a step is too"
            " large to be done for real",
            "rehearse a smaller model, or keep values out of the step",
            *place,
        )
        for place, what in dict.fromkeys(rehearsal.guesses)
        if place is not None
    ]


def _of_data(error: Exception) -> Finding:
    place = of_error(error.__traceback__) or (None, None)
    message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    raised_by_loader = "dataloader.py" in _last_file(error)
    kind = "loader" if raised_by_loader else "error"
    return Finding(kind, "fails", message, "fix the datamodule first", *place)


def _last_file(error: Exception) -> str:
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else traceback.tb_frame.f_code.co_filename
