"""Sound: parts of PyTorch that are easily taken for faults by whoever watches operators."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from cases import Linear, Task, images, sequences, sound, tokens
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@sound()
class GeneratorOfTheDevice(Linear):
    """Noise from a generator of one's own, made where it is used."""

    def training_step(self, batch):
        x, y = batch
        source = torch.Generator(device=x.device).manual_seed(self.global_step)
        noise = torch.randn(x.shape, generator=source, device=x.device)
        return F.cross_entropy(self.net(x + 0.1 * noise), y)


@sound()
class DeviceAsAContext(Linear):
    def training_step(self, batch):
        x, y = batch
        with x.device:
            scale = torch.linspace(0.5, 1.0, x.shape[1])
        return F.cross_entropy(self.net(x * scale), y)


@sound()
class AutocastForWhateverDevice(Linear):
    """Autocast asks the batch for its device; what must be exact leaves it."""

    def training_step(self, batch):
        x, y = batch
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            logits = self.net(x)
            with torch.autocast(x.device.type, enabled=False):
                loss = F.cross_entropy(logits.float(), y)
        return loss


@torch.compile(backend="eager")
def gated(x: Tensor, gate: Tensor) -> Tensor:
    return F.silu(gate) * x


@sound()
class FunctionCompiledByADecorator(Linear):
    def training_step(self, batch):
        hidden = self.net(batch[0])
        return F.cross_entropy(gated(hidden, hidden), batch[1])


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@sound()
class FunctionScripted(Linear):
    def training_step(self, batch):
        return F.cross_entropy(scripted(self.net(batch[0])), batch[1])


@sound()
class GradientsOfEachSample(Linear):
    """torch.func: vmap over grad."""

    def training_step(self, batch):
        x, y = batch
        weights = dict(self.net.named_parameters())

        def loss_of(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            logits = torch.func.functional_call(self.net, weights, (x[None],))
            return F.cross_entropy(logits, y[None])

        grads = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0, 0))(weights, x, y)
        sizes = grads["weight"].flatten(1).norm(dim=1)
        return F.cross_entropy(self.net(x), y, reduction="none") @ (1 / (1 + sizes.detach()))


@sound()
class ReentrantCheckpoint(Linear):
    def training_step(self, batch):
        x = batch[0].requires_grad_(True)
        hidden = checkpoint(self.net, x, use_reentrant=True)
        return F.cross_entropy(hidden, batch[1])


@sound(mps="may warn")
class ScalarThroughAMask(Linear):
    """A number written where a mask is true: on CUDA a masked_fill, and no shape depends on it."""

    def training_step(self, batch):
        x, y = batch
        x = x.clone()
        x[x > 2] = 2.0
        x[x.isnan()] = 0
        return F.cross_entropy(self.net(x), y)


@sound()
class ShapesAreNoTensors(Linear):
    """Decisions by shapes, strides and types cost nothing."""

    def training_step(self, batch):
        x, y = batch
        if x.shape[0] > 2 and x.is_contiguous() and not x.requires_grad and x.numel():
            x = x.reshape(len(x), *map(int, x.shape[1:]))
        rows = [row for row in x]  # noqa: C416
        halves = x.split([8, 8], dim=1)
        scale = x.size(1) ** -0.5 * (2 if x.dtype == torch.float32 else 1)
        return (
            F.cross_entropy(self.net(torch.cat(halves, 1) * scale), y)
            + 0 * torch.stack(rows).mean()
        )


@functools.lru_cache
def sinusoids(length: int, width: int, device: torch.device) -> Tensor:
    places = torch.arange(length, device=device)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, device=device) * -0.5)
    return torch.cat([(places * rates).sin(), (places * rates).cos()], -1)


@sound()
class CachedOnTheDevice(Task):
    """A cache whose key has the device."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)

    def training_step(self, batch):
        x, y = batch
        return F.cross_entropy(
            self.head((x + sinusoids(x.shape[1], x.shape[2], x.device)).mean(1)), y
        )

    data = staticmethod(sequences)


@sound()
class DecoderWithACache(Task):
    """Keys and values kept from step to step in predict, under inference_mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 16), nn.Linear(16, 32)
        self.qkv = nn.Linear(16, 48)

    def attend(self, x: Tensor, cache: list[Tensor] | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1)
            cache[:] = [k, v]
        return F.scaled_dot_product_attention(
            q[:, None], k[:, None], v[:, None], is_causal=cache is None
        )[:, 0]

    def training_step(self, batch):
        hidden = self.attend(self.embed(batch[0]))
        return F.cross_entropy(self.head(hidden).transpose(1, 2), batch[1])

    @torch.inference_mode()
    def predict_step(self, batch):
        text, cache = batch[0][:, :1], []
        for _ in range(4):
            hidden = self.attend(self.embed(text[:, -1:]), cache)
            text = torch.cat([text, self.head(hidden[:, -1]).argmax(-1, keepdim=True)], 1)
        return {"text": text, "length": text.shape[1]}

    data = staticmethod(tokens)


@sound()
class AttentionWithABooleanMask(Task):
    """SDPA with a padding mask of which no row is empty, grouped queries by repeat_interleave."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.head = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def training_step(self, batch):
        x, y = batch
        q = self.q(x).unflatten(-1, (4, 4)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, 8)).transpose(1, 2).chunk(2, -1)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        keep = (x[..., 0] > -1) | (torch.arange(x.shape[1], device=x.device) == 0)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep[:, None, None, :])
        return F.cross_entropy(self.head(out.transpose(1, 2).flatten(2).mean(1)), y)

    data = staticmethod(sequences)


@sound()
class TransformerDecoderLayers(Task):
    """nn.TransformerDecoder with the causal hint, evaluated too, where PyTorch takes a fused path."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.decoder, self.head = nn.TransformerDecoder(layer, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.head(self.decoder(x, x, tgt_mask=mask, tgt_is_causal=True).mean(1))

    def training_step(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val/loss", self.training_step(batch))

    data = staticmethod(sequences)


@sound(mps="any")
class ComplexWeights(Task):
    """A Fourier layer: complex64 parameters, irfft, einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8, 4, dtype=torch.cfloat) * 0.1)
        self.head = nn.Linear(8, 4)

    def training_step(self, batch):
        x, y = batch
        modes = torch.fft.rfft(x, dim=1)[:, :4]
        mixed = torch.einsum("bmi,iom->bmo", modes, self.weight)
        return F.cross_entropy(self.head(torch.fft.irfft(mixed, n=x.shape[1], dim=1).mean(1)), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    data = staticmethod(sequences)


@sound()
class ParametersInListsAndDictionaries(Task):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(16)) for _ in range(2))
        self.heads = nn.ModuleDict({"a": nn.Linear(16, 4), "b": nn.Linear(16, 4)})
        self.shared = self.heads["a"]

    def training_step(self, batch):
        x, y = batch
        for scale in self.scales:
            x = x * scale
        return F.cross_entropy(sum(head(x) for head in self.heads.values()) + self.shared(x), y)


@sound()
class MixedPrecisionByHand(Task):
    """Half-precision weights with float32 copies of one's own."""

    settings = {"precision": "bf16-true"}

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        logits = self.net(batch[0].to(self.net.weight.dtype))
        return F.cross_entropy(logits.float(), batch[1])


@sound(mps="may warn", cuda="may warn")
class NoiseMovedByTypeAs(Task):
    """Made on the CPU and moved: it works, and the copy waits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 16)

    def training_step(self, batch):
        x = batch[0]
        noise = torch.randn(x.shape).type_as(x)
        weights = torch.tensor([0.5, 2.0], device=self.device)
        return F.mse_loss(self.net(x + noise), x) * weights.mean()


@sound(mps="may warn", cuda="may warn")
class PermutedByIndicesOfTheCPU(Linear):
    """An index may be on the CPU; it is copied, which waits."""

    def training_step(self, batch):
        x, y = batch
        order = torch.randperm(len(x))
        return F.cross_entropy(self.net(x[order]), y[order])


class Quantize(torch.autograd.Function):
    """With setup_context, an output that has no gradient, and a number among the inputs."""

    @staticmethod
    def forward(x: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        codes = (x * levels).round()
        return codes / levels, codes.long()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None]:
        return grad, None


@sound()
class FunctionWithSetupContext(Linear):
    def training_step(self, batch):
        values, codes = Quantize.apply(self.net(batch[0]), 8)
        return F.cross_entropy(values, batch[1]) + 0 * codes.float().mean()


@sound()
class ChannelsLastNotAsked(Task):
    """permute, contiguous and view as they come; a depthwise and a dilated convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(3, 3, 3, padding=2, dilation=2, groups=3)
        self.norm, self.head = nn.LayerNorm(3), nn.Linear(3, 4)

    def training_step(self, batch):
        x = self.depthwise(batch[0]).permute(0, 2, 3, 1).contiguous()
        x = self.norm(x).view(len(x), -1, 3).movedim(1, 2)
        return F.cross_entropy(self.head(x.amax(-1)), batch[1])

    data = staticmethod(images)


@sound()
class SubsetByTopK(Task):
    """Hard negatives of a fixed number, and a margin ranking over all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 8)

    def training_step(self, batch):
        h = F.normalize(self.net(batch[0]), dim=-1)
        same = batch[1][:, None] == batch[1]
        likeness = (h @ h.T).masked_fill(same, -1.0)
        hard = likeness.topk(2, dim=1).values
        rows, columns = torch.triu_indices(len(h), len(h), offset=1, device=h.device)
        return F.relu(0.2 + hard).mean() + (1 - (h[rows] * h[columns]).sum(-1)).square().mean()


@sound()
class LongTailOfLosses(Task):
    """Losses and activations of torch.nn that MPS has."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(16, 4)

    def training_step(self, batch):
        x, y = batch
        z = self.net(x)
        hot = F.one_hot(y, 4).float()
        return (
            F.binary_cross_entropy(z.sigmoid(), hot)
            + F.soft_margin_loss(z, 2 * hot - 1)
            + F.multilabel_soft_margin_loss(z, hot)
            + F.hinge_embedding_loss(z, 2 * hot - 1)
            + F.poisson_nll_loss(z, hot)
            + F.margin_ranking_loss(z[:, 0], z[:, 1], torch.ones_like(z[:, 0]))
            + (F.hardswish(z) + F.softsign(z) + F.celu(z) + F.selu(z) + F.relu6(z) + F.glu(z).repeat(1, 2)).mean()
            + F.log_softmax(F.logsigmoid(z) + F.hardtanh(z) + F.softshrink(z) + F.threshold(z, 0, 0), 1).mean()
        )  # fmt: skip
