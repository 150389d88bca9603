"""sample.txt: what a language model has to say."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from .errors import UserError
from .storage import write_whole

log = logging.getLogger(__name__)


class Sample(Callback):
    """Writes sample.txt to `folder` when a test ends: the weights are the best ones then.

    Args:
        folder: of the run.
        prompt: what the text goes on from.
        settings: those of `generate` in models/gpt.py.
    """

    def __init__(self, folder: str, prompt: str, settings: dict[str, Any]) -> None:
        refuse_impossible(settings)  # now, and not after the training
        self.folder = Path(folder)
        self.prompt = prompt
        self.settings = settings

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        # A model of another kind may write nothing.
        if not hasattr(pl_module.model, "generate") or not trainer.is_global_zero:
            return
        if pl_module.device_mesh is not None:  # a process alone has a part of the weights only
            log.info("No sample.txt with fsdp: `predict` writes text, on one device.")
            return
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        try:
            text = self.prompt + pl_module.generate(self.prompt, tokenizer, self.settings)
        except UserError as error:  # of the prompt: no reason to end without results
            log.warning(f"No sample.txt: {error}")
            return
        write_whole(self.folder / "sample.txt", lambda file: file.write(text.encode()))


def refuse_impossible(settings: Mapping[str, Any]) -> None:
    """Of `generate` in models/gpt.py."""
    top_k, temperature = settings["top_k"], settings["temperature"]
    least = min(settings["max_new_tokens"], 1 if top_k is None else top_k)
    if least < 1 or not 0 <= temperature < math.inf:
        raise UserError("max_new_tokens and top_k are 1 or more, temperature is 0 or more.")
    if not 0 <= settings["seed"] < 2**63:
        raise UserError("The seed of what is drawn is a whole number from 0 on.")
