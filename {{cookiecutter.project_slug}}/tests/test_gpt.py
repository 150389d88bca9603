"""The GPT computes what it says, and writes what a slower one would."""

import math

import pytest
import torch
from conftest import compose_config
from hydra.utils import instantiate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from {{ cookiecutter.package_name }}.errors import UserError
from {{ cookiecutter.package_name }}.models.gpt import GPT

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture
def gpt() -> GPT:
    torch.manual_seed(0)
    model = GPT(vocab_size=11, context=12, width=16, num_layers=2, num_heads=2).eval()
    for parameter in model.parameters():  # as if it had learned: with large weights it is sure
        parameter.data *= 10 if parameter.ndim == 2 else 1
    return model


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


def test_tokens_that_pad_the_vocabulary_are_never_written(gpt: GPT) -> None:
    assert max(gpt.generate(PROMPT, 100, temperature=50.0)) > 4
    assert max(gpt.generate(PROMPT, 100, temperature=50.0, num_tokens=5)) <= 4


def test_gpt2_small_is_gpt2_small() -> None:
    with torch.device("meta"):
        published = instantiate(
            compose_config("train", "model=gpt2_small", "model.bias=true").model
        )
        model = instantiate(compose_config("train", "model=gpt2_small").model)
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


def test_a_width_that_does_not_divide_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"model\.num_heads=3"):
        GPT(256, 16, width=16, num_heads=3)
