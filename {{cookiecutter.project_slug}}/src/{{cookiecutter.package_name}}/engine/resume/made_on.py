"""What a checkpoint was made on: with other devices or versions the bits differ."""

import logging
from typing import Any

import torch
from lightning import Trainer

from ..errors import UserError

log = logging.getLogger(__name__)


def made_on(trainer: Trainer, device_name: str) -> dict[str, Any]:
    return {
        "devices": trainer.world_size,
        "strategy": type(trainer.strategy).__name__,
        "accelerator": trainer.strategy.root_device.type,
        "device": device_name,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def warn_if_not_exact(saved: dict[str, Any], here: dict[str, Any], *, same_run: bool) -> None:
    """Warn if a resume cannot give the same bits.

    Raises:
        UserError: the same run has another number of devices, so other batches.
    """
    if saved["devices"] != here["devices"] and same_run:
        raise UserError(
            f"This run has {saved['devices']} devices, not {here['devices']}. Use"
            f" trainer.devices={saved['devices']}, or resume=never to start a new run, or"
            " ckpt_path=CHECKPOINT to resume all the same."
        )
    # On a GPU, CPU threads do not change the bits.
    ignored = {"threads"} if here["accelerator"] != "cpu" else set()
    other = [what for what in here if what not in ignored and saved.get(what) != here[what]]
    if other:
        was, now = (", ".join(f"{what} {of[what]}" for what in other) for of in (saved, here))
        hint = f" (OMP_NUM_THREADS={saved['threads']} would)" if other == ["threads"] else ""
        log.warning(f"Saved with {was}; with {now} it resumes, but not bit for bit{hint}.")
