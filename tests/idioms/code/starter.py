"""A task on top of the starter's."""

from typing import Any

import torch

from ..tasks.classification import ClassificationTask


class OwnOptimizer(ClassificationTask):
    """With an optimizer of its own."""

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.001, weight_decay=0.01)
