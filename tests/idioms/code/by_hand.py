"""Manual optimization."""

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .regression import Regression


class GAN(L.LightningModule):
    def __init__(self, lr: float = 0.005) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8))
        self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def adversarial(self, x: Tensor, real: bool) -> Tensor:
        logits = self.discriminator(x)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        real, _ = batch
        g_opt, d_opt = self.optimizers()
        z = torch.randn(len(real), 4, device=self.device)

        self.toggle_optimizer(g_opt)
        g_loss = self.adversarial(self(z), True)
        self.log("g_loss", g_loss, prog_bar=True)
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        self.untoggle_optimizer(g_opt)

        self.toggle_optimizer(d_opt)
        d_loss = self.adversarial(real, True) + self.adversarial(self(z).detach(), False)
        self.log("d_loss", d_loss, prog_bar=True)
        d_opt.zero_grad()
        self.manual_backward(d_loss)
        self.clip_gradients(d_opt, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        d_opt.step()
        self.untoggle_optimizer(d_opt)
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.adversarial(self(torch.randn(8, 4, device=self.device)), True))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.adversarial(batch[0], True))

    def configure_optimizers(self) -> Any:
        g = torch.optim.Adam(self.generator.parameters(), self.hparams.lr, betas=(0.5, 0.999))
        d = torch.optim.Adam(self.discriminator.parameters(), self.hparams.lr, betas=(0.5, 0.999))
        return [g, d], [torch.optim.lr_scheduler.ExponentialLR(one, 0.9) for one in (g, d)]


class Accumulates(Regression):
    """Accumulation by hand, over three batches."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        loss = self.loss(batch) / 3
        self.manual_backward(loss)
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        if (batch_idx + 1) % 3 == 0:
            optimizer.step()
            optimizer.zero_grad()


class Truncated(L.LightningModule):
    """Truncated back-propagation through time."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.truncated_bptt_steps = 4
        self.lstm = nn.LSTM(2, 8, batch_first=True)
        self.head = nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        hidden = None
        splits = (part.split(self.truncated_bptt_steps, dim=1) for part in batch)
        for x, y in zip(*splits, strict=True):
            out, hidden = self.lstm(x, hidden)
            loss = F.mse_loss(self.head(out), y)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            hidden = tuple(state.detach() for state in hidden)
            self.log("train/loss", loss)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val/loss", F.mse_loss(self.head(self.lstm(x)[0]), y))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test/loss", F.mse_loss(self.head(self.lstm(x)[0]), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)
