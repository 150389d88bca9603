"""The position of a run, and random numbers that follow from it.

Every generator is seeded for each batch from (seed, stage, epoch, batch, rank). No generator has a
state to save, and a run that resumes at a batch draws what the undisturbed run drew there.
"""

import hashlib
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


@dataclass
class Position:
    """Where training stands: the batch of `epoch` that was started last (-1: none yet).

    Args:
        resume_at: the epoch and batch at which this process resumes, until that batch ends.
        ended: of the training loaders that had ended before others when the checkpoint was taken
            (`CombinedLoader("max_size")`), the number of batches, by index.
    """

    seed: int
    epoch: int = 0
    batch: int = -1
    resume_at: tuple[int, int] | None = None
    ended: dict[int, int] = field(default_factory=dict)

    def is_within(self, epoch: int) -> bool:
        """Whether a batch of `epoch` has been started."""
        return self.epoch == epoch and self.batch >= 0


def seed_from(*place: Any) -> int:
    """A number below 2**32 that follows from `place`, in every process and on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(place).encode(), digest_size=4).digest(), "little")


def seed_all(device: torch.device, *place: Any) -> None:
    """Seed Python, NumPy, PyTorch and `device` from `place`, in about 12 us.

    `torch.manual_seed` asks every backend that there is, and takes 300 us.
    """
    seed = seed_from(*place)
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def seed_one(generator: Any, *place: Any) -> None:
    """Seed a generator of PyTorch, Python or NumPy that belongs to somebody."""
    seed = seed_from(*place)
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed)
