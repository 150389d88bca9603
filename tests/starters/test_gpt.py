"""The GPT computes what it says, and writes what a slower one would."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from text_project.engine.errors import UserError
from text_project.models.gpt import GPT, _choose
from text_project.models.rotary import rotate, turns_at
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .small_texts import compose_text

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
        return (pairs * torch.polar(torch.ones(half).double(), angles)).real.sum() / math.sqrt(
            len(query)
        )

    x = weights["tokens.weight"][text]
    if "positions.weight" in weights:
        x = x + weights["positions.weight"][: len(text)]
    for layer in (f"blocks.{number}" for number in range(len(model.blocks))):
        qkv = linear(norm(x, f"{layer}.attention_norm"), f"{layer}.attention.qkv").unflatten(
            -1, (3, 2, 8)
        )
        attended = torch.zeros_like(x)
        for at in range(len(text)):
            for head in range(2):
                scores = torch.stack(
                    [score(qkv[at, 0, head], qkv[t, 1, head], at - t) for t in range(at + 1)]
                )
                share = scores.exp() / scores.exp().sum()
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


def test_the_embedding_is_the_output_layer_too(gpt: GPT) -> None:
    before = gpt(torch.tensor([PROMPT]))
    gpt.tokens.weight.data[7] += 1.0  # which does not stand in the text
    changed = (gpt(torch.tensor([PROMPT])) != before).any(dim=1)
    assert changed.tolist() == [[token == 7 for token in range(11)]]
    assert [p.shape for p in gpt.parameters()].count(gpt.tokens.weight.shape) == 1


def test_the_order_of_the_tokens_before_counts(gpt: GPT) -> None:
    one, other = gpt(torch.tensor([[3, 1, 4, 5], [1, 4, 3, 5]]))[:, -1]
    assert not torch.isclose(one, other, atol=1e-3).any()


def test_rotary_positions_tell_how_far_apart_two_are_and_not_where() -> None:
    query, key = torch.randn(2, 1, 8)

    def meet(at: int, other: int) -> float:
        turns = turns_at(torch.tensor([at, other]), 8)
        one, two = rotate(torch.cat((query, key)), turns)
        return float(one @ two)

    assert meet(0, 0) == pytest.approx(float(query[0] @ key[0]), abs=1e-5)
    assert meet(1000, 993) == pytest.approx(meet(7, 0), abs=1e-3)
    assert meet(7, 1) != pytest.approx(meet(7, 0), abs=1e-2)


def test_dropout_drops_in_training_and_only_there(gpt: GPT) -> None:
    tokens = torch.tensor([PROMPT])
    positions = "learned" if gpt.positions is not None else "rotary"
    shape = {"width": 16, "num_layers": 2, "num_heads": 2, "positions": positions}
    model = GPT(vocab_size=11, context=12, dropout=0.5, **shape)
    model.load_state_dict(gpt.state_dict())
    assert not torch.equal(model(tokens), model(tokens))
    assert torch.equal(model.eval()(tokens), gpt(tokens))
    assert torch.equal(gpt.train()(tokens), gpt(tokens))


def test_no_token_sees_a_later_one(gpt: GPT) -> None:
    tokens = torch.randint(11, (2, 12))
    changed = tokens.clone()
    changed[:, 7:] = (tokens[:, 7:] + 1) % 11
    before, after = gpt(tokens), gpt(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all()


def test_untaught_it_finds_all_tokens_as_likely() -> None:
    torch.manual_seed(0)
    model = GPT(vocab_size=500, context=32, width=64)
    tokens = torch.randint(500, (8, 32))
    loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1).flatten())
    assert loss.item() == pytest.approx(math.log(500), rel=0.02)


def test_what_is_kept_between_tokens_changes_nothing(gpt: GPT) -> None:
    written = list(PROMPT)
    while len(written) < 12:
        written.append(int(gpt(torch.tensor([written]))[0, -1].argmax()))
    assert gpt.generate(PROMPT, 12 - len(PROMPT), temperature=0) == written[len(PROMPT) :]


def test_it_writes_on_beyond_its_context(gpt: GPT) -> None:
    whole = gpt.generate(PROMPT, 40, temperature=0)
    assert len(whole) == 40
    # At the 13th token there is no position left: the newer half goes on as if it were a prompt.
    window = [*PROMPT, *whole][6 + 1 : 12 + 1]
    assert gpt.generate(window, 6, temperature=0) == whole[13 - len(PROMPT) :][:6]
    assert len(gpt.generate(PROMPT * 10, 3)) == 3


def test_the_same_seed_writes_the_same_and_another_does_not(gpt: GPT) -> None:
    torch.manual_seed(1)
    first = gpt.generate(PROMPT, 30, seed=7, temperature=2.0)
    torch.manual_seed(2)
    assert gpt.generate(PROMPT, 30, seed=7, temperature=2.0) == first
    assert gpt.generate(PROMPT, 30, seed=8, temperature=2.0) != first


def test_top_k_and_temperature_choose_among_the_likeliest(gpt: GPT) -> None:
    likeliest = gpt.generate(PROMPT, 6, temperature=0)
    assert gpt.generate(PROMPT, 6, top_k=1) == likeliest
    assert gpt.generate(PROMPT, 6, temperature=1e-3) == likeliest
    first_two = gpt(torch.tensor([PROMPT]))[0, -1].topk(2).indices.tolist()
    drawn = {gpt.generate(PROMPT, 1, top_k=2, temperature=9.0, seed=n)[0] for n in range(50)}
    assert drawn == set(first_two)


def test_tokens_are_drawn_as_often_as_the_model_says() -> None:
    logits, draw = torch.tensor([1.0, 3.0, 0.0, 2.0, -9.0]), torch.Generator().manual_seed(0)
    drawn = Counter(_choose(logits, 0.5, 3, draw) for _ in range(4000))
    odds = [math.exp(logit / 0.5) for logit in (1, 3, 2)]  # of the three likeliest
    assert sorted(drawn) == [0, 1, 3]
    for token, odd in zip((0, 1, 3), odds, strict=True):
        assert drawn[token] / 4000 == pytest.approx(odd / sum(odds), abs=0.02)


def test_tokens_that_pad_the_vocabulary_are_never_written(gpt: GPT) -> None:
    assert max(gpt.generate(PROMPT, 100, temperature=50.0)) > 4
    assert max(gpt.generate(PROMPT, 100, temperature=50.0, num_tokens=5)) <= 4


def test_gpt2_small_is_gpt2_small() -> None:
    with torch.device("meta"):
        published = instantiate(compose_text("train", "model=gpt2_small", "model.bias=true").model)
        model = instantiate(compose_text("train", "model=gpt2_small").model)
    weights = sum(parameter.numel() for parameter in published.parameters())
    assert weights == 124_439_808 + (50304 - 50257) * 768  # as published, and the padding
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    assert model.context == 1024
    assert model.flops_per_token() == pytest.approx(855e6, rel=0.001)


def test_the_operations_are_those_that_pytorch_counts() -> None:
    with torch.device("meta"):
        model = GPT(vocab_size=256, context=64, width=128, num_layers=3)
        tokens = torch.zeros(2, 64, dtype=torch.int64)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model(tokens).sum().backward()
    # Norms and biases are too few to matter, and not counted.
    assert model.flops_per_token() == pytest.approx(counted.get_total_flops() / 128, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_heads": 3}, r"model\.num_heads=3"),
        ({"positions": "rotery"}, "must be|none of learned, rotary"),
        ({"num_heads": 16, "positions": "rotary"}, "even model.width / model.num_heads, not 1"),
        ({"num_heads": 0}, r"model\.num_heads=0 is too small"),
        ({"dropout": 1.5}, r"model\.dropout=1\.5"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_in_a_sentence(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        GPT(256, 16, width=16, **settings)
