"""sample.txt: what a language model has to say."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from .storage import write_whole


class Sample(Callback):
    """Writes sample.txt to `folder` when a test ends: the weights are the best ones then.

    Args:
        folder: of the run.
        prompt: what the text goes on from.
        settings: those of `generate` in models/gpt.py.
    """

    def __init__(self, folder: str, prompt: str, settings: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self.prompt = prompt
        self.settings = settings

    def on_test_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        # A model of another kind may write nothing.
        if not hasattr(pl_module.model, "generate") or not trainer.is_global_zero:
            return
        tokenizer = trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        text = self.prompt + pl_module.generate(self.prompt, tokenizer, self.settings)
        write_whole(self.folder / "sample.txt", lambda file: file.write(text.encode()))
