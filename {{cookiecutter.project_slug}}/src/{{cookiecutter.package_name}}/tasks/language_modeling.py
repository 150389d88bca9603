"""Learning to tell which token comes next."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from .. import optimization
from ..checkpoint import load_task
from ..data.corpus import read_prompt
from ..errors import UserError
from ..sample import refuse_impossible
from ..sharded import shard
from ..storage import write_whole

log = logging.getLogger(__name__)


class NextTokenLoss(nn.Module):
    """Nats a token, from logits (batch, time, vocab_size) and targets (batch, time).

    A module, so that it is compiled, too: it reads more numbers than any layer does. PyTorch's own
    CrossEntropyLoss would not be, since the compiler leaves PyTorch's files alone.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class LanguageModelingTask(LightningModule):
    """
    Args:
        model: takes tokens (batch, time) to logits (batch, time, vocab_size).
        optimizer: takes parameters to an optimizer, `_partial_: true` in its YAML.
        scheduler: Lightning's `lr_scheduler` dict; its `scheduler` takes an optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        scheduler: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.criterion = NextTokenLoss()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    def setup(self, stage: str) -> None:
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        context = getattr(self.model, "context", datamodule.context)
        if datamodule.context > context:
            raise UserError(
                f"data.context={datamodule.context} is more than the model can look at: set"
                " model.context, which data.context follows."
            )
        tokens = datamodule.tokenizer.num_tokens
        vocab_size = getattr(self.model, "vocab_size", tokens)
        if tokens > vocab_size:
            raise UserError(
                f"model.vocab_size={vocab_size} is too small for this tokenizer: use {tokens}."
            )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        # A call costs as much as a layer of a small model, and most steps are not written down.
        if (self.global_step + 1) % max(1, self.trainer.log_every_n_steps) == 0:  # type: ignore[attr-defined]
            self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        # Not in mixed precision: a result is the same on each device, but for float32's rounding.
        with torch.autocast(self.device.type, enabled=False):
            self._evaluate(batch, "test")

    def _loss(self, batch: list[Tensor]) -> Tensor:
        inputs, targets = batch
        loss: Tensor = self.criterion(self(inputs), targets)
        return loss

    def _evaluate(self, batch: list[Tensor], split: str) -> None:
        loss = self._loss(batch)
        bits = loss / math.log(2) / self.trainer.datamodule.bytes_per_token(split)  # type: ignore[attr-defined]
        results = {f"{split}/loss": loss, f"{split}/bits_per_byte": bits}
        self.log_dict(results, batch_size=len(batch[0]), prog_bar=True, sync_dist=True)

    def generate(self, prompt: str, tokenizer: Any, settings: dict[str, Any]) -> str:
        """The text that the model writes after `prompt`; `settings` are those of models/gpt.py."""
        generate = getattr(self.model, "generate", None)
        if generate is None:
            raise UserError(f"{type(self.model).__name__} has no `generate`: take a GPT.")
        tokens = tokenizer.encode(prompt).tolist()
        if not tokens:
            raise UserError("There is no text to go on from: give a word at least.")
        new = generate(tokens, num_tokens=tokenizer.num_tokens, **settings)
        return str(tokenizer.decode(new))

    def answer(self, cfg: DictConfig, trainer: Trainer, datamodule: Any, folder: Path) -> Path:
        """What `predict` does: go on from the text that `input` is, or that stands in the file.

        Args:
            cfg: configs/predict.yaml.
            trainer: has the device.
            datamodule: has the tokenizer.
            folder: for the text, unless `cfg.output` names a file.
        """
        settings = {key: cfg[key] for key in ("max_new_tokens", "temperature", "top_k", "seed")}
        refuse_impossible(settings)
        prompt = read_prompt(str(cfg.input))
        self.to(trainer.strategy.root_device)
        text = prompt + self.generate(prompt, datamodule.tokenizer, settings)
        log.info(f"{text}\n")
        output = Path(cfg.output or folder / "continued.txt")
        write_whole(output, lambda file: file.write(text.encode()))
        return output

    def configure_model(self) -> None:
        shard(self)

    def configure_optimizers(self) -> Any:
        return optimization.configure(self, decaying(self.model))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        optimization.clip(self, optimizer, gradient_clip_val, gradient_clip_algorithm)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Path) -> LightningModule:  # type: ignore[override]
        """The task of a checkpoint; the file has all that it is built from."""
        return load_task(checkpoint_path)


def decaying(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters in two groups: matrices, and the rest, which no weight decay pulls to zero."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
