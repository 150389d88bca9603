"""Sound: recurrent nets, transformers, language models, speech, variable lengths, graphs."""

import math

import torch
import torch.nn.functional as F
from cases import Task, batches, sequences, sound, tokens
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset


@sound()
class LSTMWithStateOfTheDevice(Task):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 16, num_layers=2, batch_first=True, dropout=0.1, bidirectional=True)
        self.head = nn.Linear(32, 4)

    def training_step(self, batch):
        x, y = batch
        state = torch.zeros(4, len(x), 16, device=x.device, dtype=x.dtype)
        out, _ = self.rnn(x, (state, torch.zeros_like(state)))
        return F.cross_entropy(self.head(out[:, -1]), y)

    data = staticmethod(sequences)


@sound()
class GRUCellLoop(Task):
    """A cell called by hand, its outputs stacked."""

    settings = {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 16)
        states = []
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
            states.append(state)
        return self.head(torch.stack(states, 1).amax(1))

    def training_step(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1])

    def predict_step(self, batch):
        return self(batch[0]).argmax(-1)

    data = staticmethod(sequences)


@sound()
class LSTMCellAndPeepholes(Task):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(8, 16)
        self.peep = nn.Parameter(torch.zeros(16))

    def training_step(self, batch):
        x, y = batch
        h = torch.zeros_like(x[:, 0]).repeat(1, 2)
        c = torch.zeros_like(h)
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
            h = h * torch.sigmoid(c * self.peep)
        return F.cross_entropy(h[:, :4], y)

    data = staticmethod(sequences)


class Sentences(Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.arange(1, 3 + index % 5), index % 3


def pad(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    texts, labels = zip(*batch, strict=True)
    lengths = torch.tensor([len(text) for text in texts])
    return pad_sequence(list(texts), batch_first=True), lengths, torch.tensor(labels)


@sound(mps="may warn", cuda="may warn")
class PackedSentences(Task):
    """Lengths are needed on the CPU to pack; they come back from the device, which waits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8, padding_idx=0)
        self.rnn = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def training_step(self, batch):
        texts, lengths, labels = batch
        packed = pack_padded_sequence(
            self.embed(texts), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        out, (last, _) = self.rnn(packed)
        padded, _ = pad_packed_sequence(out, batch_first=True)
        return F.cross_entropy(self.head(last[-1]), labels) + 0.01 * padded.square().mean()

    @staticmethod
    def data():
        return DataLoader(Sentences(), 4, collate_fn=pad)


@sound()
class MaskedMeanOfVariableLengths(Task):
    """The same without packing: a mask from lengths, and masked_fill."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 8, padding_idx=0)
        self.score = nn.Linear(8, 1)
        self.head = nn.Linear(8, 3)

    def training_step(self, batch):
        texts, lengths, labels = batch
        keep = torch.arange(texts.shape[1], device=texts.device) < lengths[:, None]
        embedded = self.embed(texts)
        scores = self.score(embedded).squeeze(-1).masked_fill(~keep, float("-inf"))
        pooled = torch.einsum("bt,btd->bd", scores.softmax(-1), embedded)
        mean = (embedded * keep[..., None]).sum(1) / lengths[:, None]
        return F.cross_entropy(self.head(pooled + mean), labels)

    @staticmethod
    def data():
        return DataLoader(Sentences(), 4, collate_fn=pad)


class CausalAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class DecoderBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalAttention(width, 4)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@sound()
class TinyGPT(Task):
    """SDPA, tied embeddings, weight decay groups, warm-up, and sampling in predict."""

    settings = {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2}

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.positions = nn.Embedding(64, 16)
        self.blocks = nn.ModuleList(DecoderBlock(16) for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1], device=text.device)
        x = self.embed(text) + self.positions(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def training_step(self, batch):
        text, following = batch
        loss = F.cross_entropy(self(text).flatten(0, 1), following.flatten(), ignore_index=-1)
        self.log("train/perplexity", loss.detach().exp())
        return loss

    def predict_step(self, batch):
        text = batch[0][:, :4]
        for _ in range(6):
            logits = self(text)[:, -1] / 0.8
            best, _ = logits.topk(5)
            logits = logits.masked_fill(logits < best[:, -1:], -math.inf)
            chance = -torch.rand_like(logits).clamp_min(1e-9).log()
            text = torch.cat([text, (logits.softmax(-1) / chance).argmax(-1, keepdim=True)], 1)
        return text

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1, (step + 1) / 10)
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    data = staticmethod(tokens)


class RotaryAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        rates = 1.0 / 10000 ** (torch.arange(0, width, 2).float() / width)
        self.register_buffer("rates", rates, persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        angles = (
            torch.arange(x.shape[1], device=x.device, dtype=torch.float32)[:, None] * self.rates
        )
        sin, cos = angles.sin(), angles.cos()
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.rotate(self.q(x)), self.rotate(self.k(x))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(later, -torch.inf).softmax(-1) @ self.v(x)


@sound()
class LlamaLike(Task):
    """Rotary positions, RMSNorm, SwiGLU, bf16 autocast, z-loss."""

    settings = {"precision": "bf16-mixed"}

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.norm = nn.RMSNorm(16)
        self.attention = RotaryAttention(16)
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 32)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text)
        x = x + self.attention(self.norm(x))
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return self.head(x)

    def training_step(self, batch):
        logits = self(batch[0]).float()
        loss = F.cross_entropy(logits.transpose(1, 2), batch[1])
        return loss + 1e-4 * torch.logsumexp(logits, -1).square().mean()

    data = staticmethod(tokens)


@sound()
class EncoderDecoder(Task):
    """nn.Transformer with padding masks, a float causal mask, and teacher forcing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16, padding_idx=0)
        self.net = nn.Transformer(16, 4, 1, 1, 32, batch_first=True, dropout=0.0)
        self.head = nn.Linear(16, 32)

    def training_step(self, batch):
        text, following = batch
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1], device=text.device)
        padding = torch.zeros_like(text, dtype=torch.float32).masked_fill(text == 0, -1e9)
        out = self.net(
            self.embed(text), self.embed(text), tgt_mask=mask, src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )  # fmt: skip
        return F.nll_loss(F.log_softmax(self.head(out), -1).flatten(0, 1), following.flatten())

    data = staticmethod(tokens)


@sound()
class CrossAttentionPooling(Task):
    """nn.MultiheadAttention with need_weights, learned queries, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 2, 8))
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.head = nn.Bilinear(8, 8, 4)

    def training_step(self, batch):
        x, y = batch
        out, weights = self.attention(self.queries.expand(len(x), -1, -1), x, x)
        entropy = -(weights * weights.clamp_min(1e-9).log()).sum(-1).mean()
        return F.cross_entropy(self.head(out[:, 0], out[:, 1]), y) - 0.01 * entropy

    data = staticmethod(sequences)


@sound(mps="fallback", cuda="may warn", mps_since="2.14")
class SpeechWithCTC(Task):
    """CTC has no kernel on MPS; CUDA has one, and reads the lengths, which waits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def training_step(self, batch):
        audio, words = batch
        hidden = F.gelu(self.conv(audio.transpose(1, 2))).transpose(1, 2)
        logs = self.head(hidden).log_softmax(-1).transpose(0, 1)
        heard = torch.full((len(audio),), logs.shape[0], dtype=torch.long, device=audio.device)
        said = torch.full((len(audio),), words.shape[1], dtype=torch.long, device=audio.device)
        # fault: SpeechWithCTC
        return F.ctc_loss(logs, words, heard, said, zero_infinity=True)

    @staticmethod
    def data():
        return batches(torch.randn(8, 12, 8), torch.randint(1, 5, (8, 3)))


@sound()
class SpectralLoss(Task):
    """FFT and STFT in float32: complex64 is fine on MPS."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv1d(1, 1, 9, padding=4)
        self.register_buffer("window", torch.hann_window(16))

    def training_step(self, batch):
        (wave,) = batch
        out = self.net(wave[:, None])[:, 0]
        loss = (torch.fft.rfft(out).abs() - torch.fft.rfft(wave).abs()).abs().mean()
        spectra = [
            torch.stft(w, 16, window=self.window, return_complex=True).abs() for w in (out, wave)
        ]
        return loss + F.mse_loss(*spectra)

    @staticmethod
    def data():
        return batches(torch.randn(8, 64))


@sound()
class GraphConvolution(Task):
    """Messages by index_select and scatter_add, degrees by scatter, attention by softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def training_step(self, batch):
        x, edges, y = (part[0] for part in batch)
        source, target = edges
        hidden = self.lin(x)
        messages = hidden.index_select(0, source)
        summed = torch.zeros_like(hidden).index_add(0, target, messages)
        degree = torch.zeros(len(x), device=x.device).scatter_add(
            0, target, torch.ones_like(target, dtype=x.dtype)
        )
        hidden = F.relu(summed / degree.clamp(min=1)[:, None])
        best = torch.zeros_like(hidden).scatter_reduce(
            0, target[:, None].expand_as(messages), messages, "amax", include_self=False
        )
        return F.cross_entropy(self.head(hidden + best).mean(0, keepdim=True), y[None])

    @staticmethod
    def data():
        return batches(
            torch.randn(8, 6, 8),
            torch.randint(0, 6, (8, 2, 10)),
            torch.randint(0, 4, (8,)),
            batch_size=1,
        )


@sound()
class MixtureOfExperts(Task):
    """Dense routing: every expert sees every token, gates by topk and scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.up = nn.Parameter(torch.randn(4, 8, 16) * 0.1)
        self.down = nn.Parameter(torch.randn(4, 16, 8) * 0.1)
        self.head = nn.Linear(8, 4)

    def training_step(self, batch):
        x, y = batch
        scores = self.router(x).softmax(-1)
        gates, chosen = scores.topk(2, dim=-1)
        gates = torch.zeros_like(scores).scatter(-1, chosen, gates / gates.sum(-1, keepdim=True))
        hidden = F.relu(torch.einsum("btd,edh->beth", x, self.up))
        out = torch.einsum("beth,ehd->betd", hidden, self.down)
        mixed = torch.einsum("betd,bte->btd", out, gates)
        share = F.one_hot(chosen, 4).float().mean((0, 1, 2))
        balance = 4 * (share * scores.mean((0, 1))).sum()
        return F.cross_entropy(self.head(mixed.mean(1)), y) + 0.01 * balance

    data = staticmethod(sequences)


@sound()
class SwitchWithCapacity(Task):
    """Sparse routing of fixed capacity: sort, cumsum, comparison; no shape depends on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def training_step(self, batch):
        x = batch[0].flatten(0, 1)
        gate, chosen = self.router(x).softmax(-1).max(-1)
        order = chosen.argsort(stable=True)
        place = F.one_hot(chosen, 2).cumsum(0).gather(1, chosen[:, None]).squeeze(1)
        kept = (place <= 30).to(x.dtype)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            out = torch.where((chosen == index)[:, None], expert(x), out)
        ordered = (out * (gate * kept)[:, None]).index_select(0, order)
        return (ordered - x.index_select(0, order)).square().mean()

    data = staticmethod(sequences)


@sound(mps="may warn")
class SparseEmbeddings(Task):
    """Sparse gradients and SparseAdam beside a dense optimizer, optimized by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.embed = nn.Embedding(64, 8, sparse=True)
        self.bag = nn.EmbeddingBag(64, 8, mode="sum", sparse=True)
        self.head = nn.Linear(8, 32)

    def training_step(self, batch):
        text, following = batch
        sparse, dense = self.optimizers()
        hidden = self.embed(text).mean(1) + self.bag(text)
        loss = F.cross_entropy(self.head(hidden), following[:, 0])
        for optimizer in (sparse, dense):
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in (sparse, dense):
            optimizer.step()

    def configure_optimizers(self):
        tables = [*self.embed.parameters(), *self.bag.parameters()]
        return torch.optim.SparseAdam(tables, 1e-3), torch.optim.Adam(self.head.parameters(), 1e-3)

    data = staticmethod(tokens)


@sound(mps="may warn", cuda="may warn")
class SampledByMultinomial(Task):
    """Its kernel reads a value to check the probabilities, so each token waits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 8), nn.Linear(8, 32)

    def training_step(self, batch):
        return F.cross_entropy(self.head(self.embed(batch[0])).transpose(1, 2), batch[1])

    def predict_step(self, batch):
        text = batch[0][:, :1]
        for _ in range(4):
            following = torch.multinomial(self.head(self.embed(text[:, -1])).softmax(-1), 1)
            text = torch.cat([text, following], 1)
        return text

    data = staticmethod(tokens)


@sound()
class GreedyDecoder(Task):
    """A fixed number of steps; finished texts are masked, not cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.cell = nn.GRUCell(8, 8)
        self.head = nn.Linear(8, 32)

    def training_step(self, batch):
        text, following = batch
        state = torch.zeros(len(text), 8, device=text.device)
        loss = torch.zeros((), device=text.device)
        for step in range(text.shape[1]):
            state = self.cell(self.embed(text[:, step]), state)
            loss = loss + F.cross_entropy(self.head(state), following[:, step])
        return loss / text.shape[1]

    def predict_step(self, batch):
        text = batch[0][:, 0]
        state = torch.zeros(len(text), 8, device=self.device)
        ended = torch.zeros_like(text, dtype=torch.bool)
        said = []
        for _ in range(5):
            state = self.cell(self.embed(text), state)
            text = torch.where(ended, torch.zeros_like(text), self.head(state).argmax(-1))
            ended = ended | (text == 1)
            said.append(text)
        return torch.stack(said, 1)

    data = staticmethod(tokens)
