"""Let all ranks act on what one of them wants (save, stop), before the same batch."""

import time

import torch
import torch.distributed as dist
from lightning import Trainer

AGREE_EVERY_SECONDS = 1.0  # between two agreements, since the devices wait for each other
MAX_BATCHES = 100  # batches, should they get slower


class Agreement:
    """Ranks agree after the same number of batches: these are the same on all, clocks are not."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.batches, self.every, self.at = 0, 1, time.monotonic()

    def is_time(self) -> bool:
        """Return whether to call `any` now: the same on every rank, if called once a batch."""
        self.batches += 1
        return self.batches >= self.every

    def any(self, *wants: bool) -> list[bool]:
        """Return for each wish whether any rank has it. Every rank must call this."""
        pace = (time.monotonic() - self.at) / max(1, self.batches)
        device = self.trainer.strategy.root_device
        numbers = torch.tensor([*map(float, wants), pace], device=device)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        *wanted, pace = numbers.tolist()
        self.every = min(MAX_BATCHES, max(1, int(AGREE_EVERY_SECONDS / max(pace, 1e-9))))
        self.batches, self.at = 0, time.monotonic()
        return [wish > 0 for wish in wanted]
