"""sample.txt: what a language model writes."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from ..models.gpt import refuse_impossible

log = logging.getLogger(__name__)


class Sample(Callback):
    """Writes sample.txt to `folder` when a test ends: the weights are the best ones then.

    Args:
        folder: of the run.
        prompt: the text to continue.
        settings: those of `generate` in models/gpt.py.
    """

    def __init__(self, folder: str, prompt: str, settings: dict[str, Any]) -> None:
        refuse_impossible(**settings)  # now, and not after the training
        self.folder = Path(folder)
        self.prompt = prompt
        self.settings = settings

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        model, datamodule = pl_module.model, trainer.datamodule  # type: ignore[attr-defined]
        # With FSDP each process has a part of the weights; a model of another kind writes nothing.
        sharded = pl_module.device_mesh is not None
        if sharded or not trainer.is_global_zero or not hasattr(model, "generate"):
            return
        tokenizer = datamodule.tokenizer
        prompt = tokenizer.encode(self.prompt).tolist()
        if not prompt:
            log.warning("No sample.txt: show.sample.prompt has no token.")
            return
        new = model.generate(prompt, num_tokens=tokenizer.num_tokens, **self.settings)
        text = self.prompt + tokenizer.decode(new)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "sample.txt").write_text(text, encoding="utf-8")
