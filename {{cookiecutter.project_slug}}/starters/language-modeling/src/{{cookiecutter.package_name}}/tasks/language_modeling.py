"""Language modeling: cross-entropy of the next token."""

from collections.abc import Callable
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer


class NextTokenLoss(nn.Module):
    """Mean cross-entropy in nats, from logits (batch, time, vocab_size) and targets (batch, time).

    A module of its own, because the engine compiles only modules outside torch.nn, and the loss
    reads the largest tensor.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class LanguageModelingTask(L.LightningModule):
    """
    Args:
        model: takes tokens (batch, time) to logits (batch, time, vocab_size).
        optimizer: takes groups of parameters to an optimizer, `_partial_: true` in its YAML.
        scheduler: the `lr_scheduler` dict of Lightning, with a `_partial_` under `scheduler`, which
            gets the optimizer; with `interval: step` also `total_steps`.
        generation: how `predict` continues a text, as `generate` in models/gpt.py takes it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Callable[[list[dict[str, Any]]], Optimizer],
        scheduler: dict[str, Any],
        *,
        generation: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.generation = generation or {"max_new_tokens": 300}
        self.criterion = NextTokenLoss()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/loss", self._loss(batch), prog_bar=True, sync_dist=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("test/loss", self._loss(batch), prog_bar=True, sync_dist=True)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> list[list[int]]:
        """Return the tokens that the model writes after each prompt.

        Args:
            batch: prompts (batch, time), and for each the tokenizer's number of tokens, since
                `vocab_size` of the model may be larger.
            batch_idx: not used.
        """
        generate: Any = self.model.generate
        return [
            generate(prompt, num_tokens=num_tokens, **self.generation)
            for prompt, num_tokens in zip(batch[0].tolist(), batch[1].tolist(), strict=True)
        ]

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(parameter_groups(self.model))
        options = {}
        if self.scheduler["interval"] == "step":
            options = {"total_steps": int(self.trainer.estimated_stepping_batches)}
        scheduler = self.scheduler["scheduler"](optimizer, **options)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {**self.scheduler, "scheduler": scheduler},
        }

    def _loss(self, batch: list[Tensor]) -> Tensor:
        inputs, targets = batch
        return self.criterion(self(inputs), targets)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Return the parameters in two groups: matrices, and the rest, which do not decay."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
