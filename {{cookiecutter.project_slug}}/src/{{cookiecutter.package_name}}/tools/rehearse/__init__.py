"""Will it train on the Mac, on CUDA, on the CPU? Answered on any machine.

`python -m <package> rehearse` answers for an experiment; `rehearse_task` for a task in a notebook.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .findings import Finding, Verdict

if TYPE_CHECKING:
    from lightning import LightningDataModule, LightningModule
    from torch.utils.data import DataLoader

__all__ = ["TARGETS", "Finding", "Verdict", "rehearse_task"]

TARGETS = ("mps", "cuda", "cpu")


def rehearse_task(
    task: "LightningModule | Callable[[], LightningModule]",
    data: "LightningDataModule | DataLoader[Any] | None" = None,
    *,
    targets: Sequence[str] = TARGETS,
    trainer: Mapping[str, Any] | None = None,
    memory: str | int | None = None,
    accept: Mapping[str, str] | None = None,
    sources: Sequence[Path] | None = None,
) -> list[Verdict]:
    """Return whether a task would train on each target.

    Args:
        task: it stays as it is; or a function that builds it, which allocates nothing.
        data: a DataLoader is used for every step; without data the task has its own loaders.
        trainer: settings of the Trainer that differ from auto: precision, strategy, devices,
            gradient_clip_val.
        memory: what a device has, as in 16GB.
        accept: operators that the CPU may compute for MPS in a training step, with reasons.
        sources: the files to read for literals; None: those of the project that are loaded.
    """
    from .policy import requested  # imports PyTorch, which --help need not wait for
    from .rehearsal import Rehearser

    settings = trainer or {}
    rehearser = Rehearser(
        task, data, trainer=settings, accept=accept or {}, memory=memory, sources=sources
    )
    return [rehearser.on(target, requested(target, settings)) for target in targets]
