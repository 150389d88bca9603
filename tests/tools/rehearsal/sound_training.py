"""Sound: several optimizers, manual optimization, EMA, checkpointing, compiled parts, odd batches."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from cases import Task, batches, images, sequences, sound
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset


def mlp(width_in: int = 16, width_out: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, 32), nn.ReLU(), nn.Linear(32, width_out))


@sound()
class GANByHand(Task):
    """Two optimizers, toggled, with a gradient penalty (a second derivative)."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.critic = mlp(8, 16), mlp(16, 1)

    def training_step(self, batch, batch_idx):
        real, _ = batch
        first, second = self.optimizers()
        noise = torch.randn(len(real), 8, device=self.device)
        self.toggle_optimizer(second)
        fake = self.generator(noise).detach()
        share = torch.rand(len(real), 1, device=real.device)
        between = (share * real + (1 - share) * fake).requires_grad_(True)
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        penalty = (slope.norm(2, dim=1) - 1).square().mean()
        loss = self.critic(fake).mean() - self.critic(real).mean() + 10 * penalty
        second.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(second, 1.0, "norm")
        second.step()
        self.untoggle_optimizer(second)
        self.toggle_optimizer(first)
        fooled = -self.critic(self.generator(noise)).mean()
        first.zero_grad()
        self.manual_backward(fooled)
        first.step()
        self.untoggle_optimizer(first)
        self.log_dict({"critic": loss, "generator": fooled}, prog_bar=True)

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.generator.parameters(), 1e-4, betas=(0.0, 0.9)),
            torch.optim.Adam(self.critic.parameters(), 1e-4, betas=(0.0, 0.9)),
        )

    def predict_step(self, batch):
        return self.generator(torch.randn(len(batch[0]), 8, device=self.device))


@sound()
class DCGANWithSpectralNorm(Task):
    """Spectral normalisation and labels made like the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.ConvTranspose2d(8, 3, 16), nn.Tanh())
        norm = parametrizations.spectral_norm
        self.critic = nn.Sequential(
            norm(nn.Conv2d(3, 8, 4, 2, 1)), nn.LeakyReLU(0.2), nn.Flatten(), norm(nn.Linear(512, 1))
        )

    def training_step(self, batch, batch_idx):
        real, _ = batch
        opt_g, opt_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), 8, 1, 1).type_as(real))
        yes, no = self.critic(real), self.critic(fake.detach())
        loss_d = F.binary_cross_entropy_with_logits(
            yes, torch.ones_like(yes)
        ) + F.binary_cross_entropy_with_logits(no, torch.zeros_like(no))
        opt_d.zero_grad()
        self.manual_backward(loss_d)
        opt_d.step()
        fooled = self.critic(fake)
        loss_g = F.softplus(-fooled).mean()
        opt_g.zero_grad()
        self.manual_backward(loss_g)
        opt_g.step()

    def configure_optimizers(self):
        return torch.optim.Adam(self.generator.parameters()), torch.optim.NAdam(
            self.critic.parameters()
        )

    data = staticmethod(images)


@sound()
class VAE(Task):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(16, 8), mlp(4, 16)

    def training_step(self, batch):
        x, _ = batch
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        prior = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1).mean()
        self.log_dict({"kl": prior})
        return F.mse_loss(self.decoder(z), x) + prior

    def predict_step(self, batch):
        return self.decoder(torch.randn(8, 4, device=self.device))


@sound()
class VAEByDistributions(Task):
    """torch.distributions on the device of their parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(16, 8), mlp(4, 16)

    def training_step(self, batch):
        x, _ = batch
        mean, raw = self.encoder(x).chunk(2, -1)
        posterior = torch.distributions.Normal(mean, F.softplus(raw) + 1e-3, validate_args=False)
        prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0, validate_args=False)
        z = posterior.rsample()
        gap = torch.distributions.kl_divergence(posterior, prior).sum(-1).mean()
        return F.mse_loss(self.decoder(z), x) + gap


@sound()
class VectorQuantized(Task):
    """Nearest codes by cdist and argmin, a straight-through gradient, a moving codebook buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = mlp(16, 4), mlp(4, 16)
        self.register_buffer("codes", torch.randn(8, 4))
        self.register_buffer("counts", torch.ones(8))

    def training_step(self, batch):
        x, _ = batch
        z = self.encoder(x)
        nearest = torch.cdist(z, self.codes).argmin(-1)
        with torch.no_grad():
            hits = F.one_hot(nearest, 8).type_as(z)
            self.counts.mul_(0.99).add_(hits.sum(0), alpha=0.01)
            self.codes.lerp_(hits.t() @ z / self.counts[:, None], 0.01)
        quantized = F.embedding(nearest, self.codes)
        straight = z + (quantized - z).detach()
        return F.mse_loss(self.decoder(straight), x) + F.mse_loss(z, quantized.detach())


@sound()
class DiffusionStep(Task):
    """Noise schedule as a buffer, random times made on the device, sampling in predict."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(17, 16)
        betas = torch.linspace(1e-4, 0.02, 20)
        self.register_buffer("kept", torch.cumprod(1 - betas, 0))

    def training_step(self, batch):
        x, _ = batch
        times = torch.randint(0, 20, (len(x),), device=self.device)
        noise = torch.randn_like(x)
        kept = self.kept[times][:, None]
        noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
        return F.mse_loss(self.net(torch.cat([noisy, times[:, None] / 20], 1)), noise)

    @torch.no_grad()
    def predict_step(self, batch):
        x = torch.randn_like(batch[0])
        for time in reversed(range(20)):
            when = torch.full((len(x), 1), time / 20, device=x.device)
            x = x - 0.05 * self.net(torch.cat([x, when], 1))
            if time > 0:
                x = x + 0.01 * torch.randn_like(x)
        return x


@sound()
class FlowMatching(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(16 + 8, 16)
        self.register_buffer("rates", torch.exp(-math.log(1e4) * torch.arange(4) / 4))

    def training_step(self, batch):
        data, _ = batch
        t = torch.rand(len(data), 1, device=data.device)
        noise = torch.randn(data.shape, device=data.device, dtype=data.dtype)
        when = torch.cat([(t * self.rates).sin(), (t * self.rates).cos()], -1)
        flow = self.net(torch.cat([torch.lerp(noise, data, t), when], -1))
        return (flow - (data - noise)).pow(2).mean()


@sound()
class ContrastivePairs(Task):
    """CLIP's symmetric loss with a learned temperature, and a triplet loss."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = mlp(16, 8), mlp(16, 8)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def training_step(self, batch):
        x, _ = batch
        a, b = F.normalize(self.one(x), dim=-1), F.normalize(self.two(x), dim=-1)
        logits = self.scale.exp().clamp(max=100) * a @ b.t()
        same = torch.arange(len(x), device=x.device)
        loss = (F.cross_entropy(logits, same) + F.cross_entropy(logits.t(), same)) / 2
        return (
            loss
            + F.triplet_margin_loss(a, b, b.roll(1, 0))
            + F.cosine_embedding_loss(a, b, torch.ones_like(same))
        )


@sound()
class SelfDistillationWithEMA(Task):
    """BYOL: the target network is a module and follows by lerp after each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.online = mlp(16, 8)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = nn.Sequential(
            nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8)
        )

    def training_step(self, batch):
        x, _ = batch
        with torch.no_grad():
            wanted = self.target(x + 0.1 * torch.randn_like(x))
        return 2 - 2 * F.cosine_similarity(self.predictor(self.online(x)), wanted).mean()

    def on_train_batch_end(self, outputs, batch, batch_idx):
        with torch.no_grad():
            for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
                slow.lerp_(fast, 0.01)


@sound()
class AveragedWeights(Task):
    """torch's own AveragedModel, updated by a foreach kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.averaged = torch.optim.swa_utils.AveragedModel(
            self.net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99)
        )

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.averaged.update_parameters(self.net)

    def validation_step(self, batch):
        self.log("val/loss", F.cross_entropy(self.averaged(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters())


@sound()
class GradientCheckpointing(Task):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1), nn.GELU()) for _ in range(3)
        )
        self.head = nn.Linear(16, 4)

    def training_step(self, batch):
        x, y = batch
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return F.cross_entropy(self.head(x), y)


@sound()
class WeightNormAndOrthogonalInit(Task):
    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(16, 32))
        self.second = nn.Linear(32, 4)
        nn.init.orthogonal_(self.second.weight)

    def training_step(self, batch):
        return F.cross_entropy(self.second(F.elu(self.first(batch[0]))), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.Adagrad(self.parameters(), lr=0.01)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss"},
        }

    def validation_step(self, batch):
        self.log("val/loss", F.cross_entropy(self.second(self.first(batch[0])), batch[1]))


@sound()
class PartCompiledInPlace(Task):
    """Module.compile() in place keeps the names of the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.net.compile(backend="eager")

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])


class Clamp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() <= 1, grad, torch.zeros_like(grad))


@sound()
class OwnAutogradFunction(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def training_step(self, batch):
        return F.cross_entropy(Clamp.apply(self.net(batch[0])), batch[1])


@sound()
class NumbersFromThePython(Task):
    """Scalars on the CPU are legal beside tensors of a device, and Python decides by Python's values."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()
        self.temperature = torch.tensor(0.7)  # a tensor of no dimension is taken as a number

    def training_step(self, batch, batch_idx):
        x, y = batch
        if self.current_epoch == 0 and batch_idx % 2 == 0 and x.shape[0] > 1 and self.training:
            x = x * 0.5
        logits = self.net(x) / self.temperature
        weight = 0.1 if self.global_step < 100 else 1.0
        loss = F.cross_entropy(logits, y, reduction="none")
        return (loss * (loss < 100)).mean() * weight

    def on_before_optimizer_step(self, optimizer):
        norms = torch._foreach_norm([p.grad for p in self.parameters() if p.grad is not None])
        self.log("grad_norm", torch.stack(norms).norm())


@sound()
class NanGuardWithoutWaiting(Task):
    """What depends on data is chosen by torch.where, not by if."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def training_step(self, batch):
        x, y = batch
        x = torch.nan_to_num(x)
        losses = F.cross_entropy(self.net(x), y, reduction="none")
        finite = torch.isfinite(losses)
        kept = torch.where(finite, losses, torch.zeros_like(losses))
        hardest, _ = kept.sort(descending=True)
        return hardest[:3].sum() / finite.sum().clamp(min=1)


@dataclass
class Sample:
    inputs: Tensor
    targets: Tensor
    name: str


class Samples(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        return Sample(torch.full((16,), float(index)), torch.tensor(index % 4), f"number {index}")


def collate(samples: list[Sample]) -> Sample:
    inputs = torch.stack([sample.inputs for sample in samples])
    return Sample(
        inputs, torch.stack([s.targets for s in samples]), ", ".join(s.name for s in samples)
    )


@sound()
class BatchesOfADataclass(Task):
    """Lightning moves dataclasses, and leaves their strings alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def training_step(self, batch: Sample):
        return F.cross_entropy(self.net(batch.inputs), batch.targets)

    @staticmethod
    def data():
        return DataLoader(Samples(), 4, collate_fn=collate)


class Records(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        extra = {"weight": torch.tensor(1.0), "path": f"/data/{index}.png"}
        return {"x": torch.ones(16) * index, "y": index % 4, "extra": extra, "mask": None}


def collate_records(records: list[dict[str, Any]]) -> dict[str, Any]:
    batch = torch.utils.data.default_collate(
        [{k: v for k, v in r.items() if v is not None} for r in records]
    )
    return {**batch, "mask": None}


@sound()
class NestedDictionariesWithNone(Task):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def training_step(self, batch):
        losses = F.cross_entropy(self.net(batch["x"]), batch["y"], reduction="none")
        if batch["mask"] is not None:
            losses = losses * batch["mask"]
        return {"loss": (losses * batch["extra"]["weight"]).mean(), "paths": batch["extra"]["path"]}

    @staticmethod
    def data():
        return DataLoader(Records(), 4, collate_fn=collate_records)


class TwoLoaders(L.LightningDataModule):
    def setup(self, stage: str) -> None:
        self.x, self.y = torch.randn(8, 16), torch.randint(0, 4, (8,))

    def train_dataloader(self):
        return {"labelled": batches(self.x, self.y), "unlabelled": batches(self.x)}

    def val_dataloader(self):
        return [batches(self.x, self.y), batches(self.x, self.y, batch_size=2)]


@sound()
class SemiSupervisedFromTwoLoaders(Task):
    """A dictionary of loaders to train on, a list of them to validate on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def training_step(self, batch):
        x, y = batch["labelled"]
        (free,) = batch["unlabelled"]
        with torch.no_grad():
            sure, guessed = self.net(free).softmax(-1).max(-1)
        consistency = F.cross_entropy(
            self.net(free + 0.1 * torch.randn_like(free)), guessed, reduction="none"
        )
        return F.cross_entropy(self.net(x), y) + (consistency * (sure > 0.9)).mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.log(
            f"val/{dataloader_idx}",
            F.cross_entropy(self.net(batch[0]), batch[1]),
            add_dataloader_idx=False,
        )

    data = staticmethod(TwoLoaders)


@sound(mps="may warn", cuda="may warn")
class ClosuresOfLBFGS(Task):
    """An optimizer that calls its closure several times, and reads values to choose its step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 1)

    def training_step(self, batch):
        return F.mse_loss(self.net(batch[0]).squeeze(-1), batch[1].float())

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


@sound()
class ReinforceWithCategorical(Task):
    """A policy gradient: sampling an action, its log probability, an entropy bonus."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.value = mlp(16, 4), mlp(16, 1)

    def training_step(self, batch):
        states, _ = batch
        choice = torch.distributions.Categorical(logits=self.policy(states), validate_args=False)
        actions = choice.sample()
        rewards = (actions % 2 == 0).float()
        advantage = rewards - self.value(states).squeeze(-1)
        loss = -(choice.log_prob(actions) * advantage.detach()).mean()
        return loss + advantage.square().mean() - 0.01 * choice.entropy().mean()


@sound()
class NeuralFieldWithPositions(Task):
    """Fourier features and a Hessian-vector product; a hook on gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 8))
        self.net = mlp(16, 1)
        self.net[0].weight.register_hook(lambda grad: grad.clamp(-1, 1))

    def training_step(self, batch):
        (places,) = batch
        places = places.clone().requires_grad_(True)
        angles = 2 * torch.pi * places @ self.frequencies
        field = self.net(torch.cat([angles.sin(), angles.cos()], -1))
        (slope,) = torch.autograd.grad(field.sum(), places, create_graph=True)
        return (slope.square().sum(-1) - 1).square().mean()

    @staticmethod
    def data():
        return batches(torch.rand(8, 2))


@sound()
class ManySmallOperators(Task):
    """Pieces of everyday code that MPS has: quantiles of nothing, ranges, rolls, trig, bits, einsums."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(16, 16)

    def training_step(self, batch):
        x, y = batch
        h = self.net(x)
        steps = torch.linspace(0, 1, h.shape[1], device=h.device)
        parts = [
            torch.cumsum(h, 1), h.flip(1), h.roll(1, 1), torch.outer(h[0], h[0])[:4], h.atan(), h.tanh(),
            torch.logaddexp(h, -h), h.std(1, keepdim=True).expand_as(h), h.var(0).expand_as(h), h.sign() * h.abs().sqrt().clamp(max=9),
            torch.minimum(h, steps), h.erf(), h.exp().log1p(), h.remainder(1.0), torch.bucketize(h.detach(), steps).float() * h,
        ]  # fmt: skip
        order = (y << 1) ^ 1
        scaled = torch.stack(parts).mean() * order.float().mean()
        return (
            scaled
            + torch.baddbmm(
                h[:, None], h[:, :, None].mT, torch.eye(16, device=h.device).expand(len(h), -1, -1)
            ).mean()
        )


@sound()
class CheckpointWithPlainState(Task):
    """Plain hyper-parameters, and a counter of one's own in the checkpoint."""

    def __init__(
        self, width: int = 16, rates: tuple[float, ...] = (0.1, 0.2), name: str = "a"
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = mlp(width)
        self.seen = 0

    def training_step(self, batch):
        self.seen += len(batch[0])
        return F.cross_entropy(
            F.dropout(self.net(batch[0]), self.hparams.rates[0], self.training), batch[1]
        )

    def on_save_checkpoint(self, checkpoint):
        checkpoint["seen"] = self.seen

    def on_load_checkpoint(self, checkpoint):
        self.seen = checkpoint["seen"]


class Scaled(Dataset):
    """Holds numpy, gives float32: what a datamodule should do with float64."""

    def __init__(self) -> None:
        import numpy as np

        self.values = np.random.default_rng(0).normal(size=(8, 16))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.values[index]).float(), index % 4


@sound()
class NumpyCastAtTheBorder(Task):
    settings = {"gradient_clip_val": 1.0}

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def training_step(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    @staticmethod
    def data():
        return DataLoader(Scaled(), 4, num_workers=2, persistent_workers=True, drop_last=True)


@sound()
class WeightsOfFloat64OnTheCPUOnly(Task):
    """float64 that never leaves the CPU: a schedule in numpy, turned into Python's numbers."""

    def __init__(self) -> None:
        super().__init__()
        import numpy as np

        self.net = mlp()
        self.schedule = np.cos(np.linspace(0, np.pi, 100))

    def training_step(self, batch):
        weight = float(self.schedule[min(self.global_step, 99)])
        exact = torch.tensor([1.0, 2.0], dtype=torch.float64).sum()  # on the CPU, for the log
        self.log("exact", exact.float())
        return F.cross_entropy(self.net(batch[0]), batch[1]) * (1.1 + weight)


@sound()
class SequenceLabelsIgnored(Task):
    """LayerDrop decided by Python's random, ignore_index, label weights by new_tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def training_step(self, batch):
        x, y = batch
        for index, layer in enumerate(self.layers):
            x = F.mish(layer(x)) + x if index != self.global_step % 3 else x
        labels = y[:, None].expand(-1, x.shape[1]).clone()
        labels[:, ::2] = -100
        weights = x.new_ones(4)
        return F.cross_entropy(
            self.head(x).transpose(1, 2), labels, weight=weights, ignore_index=-100
        )

    data = staticmethod(sequences)
