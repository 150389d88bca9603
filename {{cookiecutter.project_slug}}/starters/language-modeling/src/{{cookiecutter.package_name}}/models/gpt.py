"""A GPT: the decoder-only transformer of GPT-2, for tokens of any kind."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.errors import UserError
from .rotary import Turns, rotate, turns_at

KVCache = list[tuple[Tensor, Tensor]]  # of each layer, keys and values (batch, heads, time, width)


class GPT(nn.Module):
    """Layer norm before each part, and the embedding as the output layer, too.

    Args:
        vocab_size: the number of logits; more than there are tokens does no harm.
        context: how many tokens it can look at.
        width: of the embeddings, divisible by `num_heads`.
        num_layers: blocks of attention and MLP.
        num_heads: of each attention.
        positions: `learned`, a vector for each; or `rotary`, which turns queries and keys.
        dropout: probability of dropping a feature of the embeddings and of each block's parts.
        bias: of the linear layers and norms; without, a GPU saves time, and nothing is lost.
    """

    def __init__(
        self,
        vocab_size: int,
        context: int,
        *,
        width: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        positions: str = "learned",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"vocab_size": vocab_size, "context": context}
        sizes |= {"width": width, "num_layers": num_layers, "num_heads": num_heads}
        if wrong := _impossible(sizes, positions, dropout):
            raise UserError(wrong)
        self.vocab_size = vocab_size
        self.context = context
        self.head_width = width // num_heads
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(context, width) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, dropout, bias) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(width, bias=bias)
        self._initialise(num_layers)

    def _initialise(self, num_layers: int) -> None:
        """As GPT-2: what is added to the residual stream is small, the more so with depth."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("attention.out.weight", "mlp.2.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / math.sqrt(2 * num_layers) if residual else 0.02
                )
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens: Tensor) -> Tensor:
        return self._run(tokens, None)[0]  # (batch, time) -> (batch, time, vocab_size)

    def _run(self, tokens: Tensor, past: KVCache | None) -> tuple[Tensor, KVCache]:
        """Logits, and what a later call takes as `past`, to compute one token more."""
        start = 0 if past is None else past[0][0].shape[2]
        if start + tokens.shape[1] > self.context:
            raise UserError(
                f"{tokens.shape[1]} tokens are more than model.context={self.context}. Leave"
                " data.context out: it follows from the model's."
            )
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device)
        x, turns = self.tokens(tokens), None
        if self.positions is not None:
            x = x + self.positions(positions)
        else:
            turns = turns_at(positions, self.head_width)
        x = self.dropout(x)
        kind = x.device.type
        # torch has no autocast query for "meta", on which `rehearse` runs.
        if kind != "meta" and torch.is_autocast_enabled(kind):
            # Autocast would leave the residual stream in float32, and every block reads and writes
            # it: 5% of a step of GPT-2 small on an H100. In float16 it could overflow.
            low = torch.get_autocast_dtype(kind)
            x = x.to(low) if low == torch.bfloat16 else x
        present: KVCache = []
        for layer, block in enumerate(self.blocks):
            x, keys_and_values = block(x, turns, None if past is None else past[layer])
            present.append(keys_and_values)
        return F.linear(self.norm(x), self.tokens.weight), present

    @torch.no_grad()
    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        num_tokens: int | None = None,
        seed: int | None = 0,
    ) -> list[int]:
        """What comes after `prompt`, which has one token at least.

        Args:
            prompt: only the last `context` of it count.
            max_new_tokens: how many to add.
            temperature: 0 takes the likeliest token each time; above 1 is bolder than the model.
            top_k: draw from the top_k likeliest tokens.
            num_tokens: how many there are, where `vocab_size` is padded.
            seed: of what is drawn, None for a fresh one; on the CPU, so that devices differ by
                rounding alone.
        """
        refuse_impossible(max_new_tokens, temperature, top_k, seed)
        device = self.tokens.weight.device
        draw = torch.Generator()
        draw.manual_seed(draw.seed() if seed is None else seed)
        text = list(prompt)
        past: KVCache | None = None
        recent = text[-self.context :]
        for _ in range(max_new_tokens):
            if past is not None:
                recent = text[-1:]
                if past[0][0].shape[2] == self.context:
                    # The context is full: drop its older half and recompute.
                    past, recent = None, text[-max(1, self.context // 2) :]
            logits, past = self._run(torch.tensor([recent], device=device), past)
            choices = logits[0, -1, :num_tokens].float().cpu()
            text.append(_choose(choices, temperature, top_k, draw))
        return text[len(prompt) :]

    def flops_per_token(self) -> int:
        """Floating-point operations of a training step, forward and backward, for each token.

        6 N + 12 layers * width * context (PaLM, appendix B, https://arxiv.org/abs/2204.02311).
        N: all weights but the position embedding, which is only looked up. Attention counts whole,
        although a causal one needs half of it. What is recomputed does not count.
        """
        weights = sum(p.numel() for p in self.parameters())
        if self.positions is not None:
            weights -= self.positions.weight.numel()
        width = self.tokens.weight.shape[1]
        return 6 * weights + 12 * len(self.blocks) * width * self.context


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.attention = Attention(width, num_heads, dropout, bias)
        self.mlp_norm = nn.LayerNorm(width, bias=bias)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width, bias=bias),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width, bias=bias),
            nn.Dropout(dropout),
        )

    def forward(
        self, x: Tensor, turns: Turns | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, present = self.attention(self.attention_norm(x), turns, past)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x)), present


class Attention(nn.Module):
    """Each token looks at itself and at those before it, in `num_heads` ways."""

    def __init__(self, width: int, num_heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, turns: Turns | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        # (batch, time, width) -> three of (batch, heads, time, width / heads)
        split = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = (part.transpose(1, 2) for part in split.unbind(2))
        if turns is not None:
            queries, keys = rotate(queries, turns), rotate(keys, turns)
        if past is not None:
            assert x.shape[1] == 1  # which may look at all there is: no mask
            keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 2)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=self.dropout.p if self.training else 0.0,
            is_causal=past is None,
        )
        return self.dropout(self.out(attended.transpose(1, 2).flatten(2))), (keys, values)


def _impossible(sizes: dict[str, int], positions: str, dropout: float) -> str | None:
    for name, size in sizes.items():
        if size < 1:
            return f"model.{name}={size} is too small: use 1 or more."
    width, heads = sizes["width"], sizes["num_heads"]
    if width % heads:
        return f"model.width={width} is not divisible by model.num_heads={heads}: change one."
    if positions not in ("learned", "rotary"):
        return f"model.positions={positions} is none of learned, rotary."
    if positions == "rotary" and width // heads % 2:
        return f"Rotary positions need an even model.width / model.num_heads, not {width // heads}."
    if not 0 <= dropout < 1:
        return f"model.dropout={dropout} is no probability from 0 to below 1."
    return None


def refuse_impossible(
    max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None, seed: int | None = 0
) -> None:
    """Refuse settings of `generate` that are no numbers or out of range."""
    top_k, seed = (1 if top_k is None else top_k), seed or 0
    for name, value in (("max_new_tokens", max_new_tokens), ("top_k", top_k), ("seed", seed)):
        if type(value) is not int:
            raise UserError(f"{name}={value} must be a whole number.")
    if type(temperature) not in (int, float):
        raise UserError(f"temperature={temperature} must be a number.")
    if min(max_new_tokens, top_k) < 1:
        raise UserError(f"max_new_tokens={max_new_tokens} and top_k={top_k} must be 1 or more.")
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature={temperature} must be 0 or more.")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed={seed} must be a whole number from 0 on.")


def _choose(logits: Tensor, temperature: float, top_k: int | None, draw: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None:
        least = logits.topk(min(top_k, len(logits))).values[-1]
        logits = logits.masked_fill(logits < least, -math.inf)
    return int(torch.multinomial((logits / temperature).softmax(0), 1, generator=draw))
