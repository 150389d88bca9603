"""The GPT computes what is written on paper, and writes what a slower one would."""

import math

import pytest
import torch
from conftest import compose_config
from hydra.utils import instantiate
from torch import Tensor

from {{ cookiecutter.package_name }}.models.gpt import GPT

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(params=["learned", "rotary"])
def gpt(request: pytest.FixtureRequest) -> GPT:
    torch.manual_seed(0)
    shape = {"width": 16, "num_layers": 2, "num_heads": 2, "positions": request.param}
    model = GPT(vocab_size=11, context=12, **shape).eval()
    for parameter in model.parameters():  # as if it had learned: with large weights it is sure
        parameter.data *= 10 if parameter.ndim == 2 else 1
    return model


def by_hand(model: GPT, text: list[int]) -> Tensor:
    """The logits of each token as on paper: one query, one key and one head at a time, float64."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        deviation = x - x.mean(-1, keepdim=True)
        unit = deviation / (deviation.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def score(query: Tensor, key: Tensor, apart: int) -> Tensor:
        if "positions.weight" in weights:
            return query @ key / math.sqrt(len(query))
        half = len(query) // 2  # pairs as complex numbers: of two turned ones the distance is left
        angles = apart * 10_000 ** (-torch.arange(half).double() / half)
        pairs = torch.complex(query[:half], query[half:]) * torch.complex(key[:half], -key[half:])
        turned = pairs * torch.polar(torch.ones(half).double(), angles)
        return turned.real.sum() / math.sqrt(len(query))

    x = weights["tokens.weight"][text]
    if "positions.weight" in weights:
        x = x + weights["positions.weight"][: len(text)]
    for layer in (f"blocks.{number}" for number in range(len(model.blocks))):
        qkv = linear(norm(x, f"{layer}.attention_norm"), f"{layer}.attention.qkv")
        qkv = qkv.unflatten(-1, (3, 2, 8))
        attended = torch.zeros_like(x)
        for at in range(len(text)):
            for head in range(2):
                pairs = [score(qkv[at, 0, head], qkv[t, 1, head], at - t) for t in range(at + 1)]
                share = torch.stack(pairs).softmax(0)
                attended[at, 8 * head : 8 * head + 8] = share @ qkv[: at + 1, 2, head]
        x = x + linear(attended, f"{layer}.attention.out")
        inner = linear(norm(x, f"{layer}.mlp_norm"), f"{layer}.mlp.0")
        bent = inner * (1 + (math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)).tanh()) / 2
        x = x + linear(bent, f"{layer}.mlp.2")
    return norm(x, "norm") @ weights["tokens.weight"].T


def test_it_computes_what_is_written_on_paper(gpt: GPT) -> None:
    text = [3, 1, 4, 1, 5, 9, 2, 6]
    on_paper = by_hand(gpt, text)
    assert on_paper.std() > 0.5
    assert torch.allclose(gpt(torch.tensor([text]))[0].double(), on_paper, rtol=1e-4, atol=1e-4)


def test_it_writes_what_it_would_without_a_cache_and_on_beyond_its_context(gpt: GPT) -> None:
    written = list(PROMPT)
    while len(written) < 12:
        written.append(int(gpt(torch.tensor([written]))[0, -1].argmax()))
    whole = [*PROMPT, *gpt.generate(PROMPT, 40, temperature=0)]
    assert whole[:12] == written
    # At the 13th token there is no position left: the newer half is taken as if it were a prompt.
    assert gpt.generate(whole[7:13], 6, temperature=0) == whole[13:19]


def test_gpt2_small_is_gpt2_small() -> None:
    with torch.device("meta"):
        config = compose_config("train", "model=gpt2_small", "model.bias=true").model
        weights = sum(parameter.numel() for parameter in instantiate(config).parameters())
    assert weights == 124_439_808 + (50304 - 50257) * 768  # as published, and the padding
