"""A language model learns at the price of its steps, is measured, and writes."""

import csv
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from text_project.callbacks.baseline import trigram_probabilities
from text_project.engine.errors import UserError
from text_project.engine.run import RunFolder, run_folder
from text_project.engine.speed.compile import compile_in_place
from text_project.engine.trainer import load_run
from text_project.predict import predict
from text_project.train import train
from torch import Tensor, nn

from .small_texts import TINY, Compose, compose_text

Finished = tuple[RunFolder, dict[str, float]]


def as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def slow_probabilities(train: str, text: str) -> list[float]:
    """The same, as it would be written on paper."""

    def likely(context: str, after: str) -> float:
        shorter = likely(context[1:], after) if context else 1 / 256
        starts = range(2 - len(context), len(train) - len(context))
        seen = Counter(
            train[i + len(context)] for i in starts if train[i : i + len(context)] == context
        )
        if not seen:
            return shorter
        return (seen[after] + len(seen) * shorter) / (seen.total() + len(seen))

    return [likely(text[i - 2 : i], text[i]) for i in range(2, len(text))]


def test_the_baseline_is_what_it_says() -> None:
    learned, text = "abracadabra, said the cat and the rat", "the abba sat"
    fast = trigram_probabilities(as_bytes(learned), as_bytes(text))
    assert fast == pytest.approx(slow_probabilities(learned, text), rel=1e-12)


@pytest.mark.parametrize("context", ["th", "at", "zz", "bz"])
def test_the_baseline_gives_all_bytes_together_a_probability_of_one(context: str) -> None:
    learned = as_bytes("abracadabra, said the cat and the rat")
    ways = np.array([[*context.encode(), last] for last in range(256)], np.uint8)
    assert trigram_probabilities(learned, ways.flatten())[::3].sum() == pytest.approx(1)


def test_the_baseline_is_logged_once_and_said(
    tiny: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = tiny("scheduler=constant")
    with caplog.at_level(logging.INFO):
        metrics = train(cfg)
        train(tiny("trainer.max_epochs=2", "scheduler=constant"))
    assert caplog.text.count("To be beaten: byte trigrams") == 1
    with (run_folder(cfg).path / "metrics.csv").open(newline="") as file:
        logged = [row["baseline/val_bits_per_byte"] for row in csv.DictReader(file)]
    assert sum(map(bool, logged)) == 1
    assert 1 < metrics["baseline/test_bits_per_byte"] < 4


def test_the_model_and_the_loss_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def compiler(graph: Any, example_inputs: Any) -> Any:
        seen.append(graph.code)
        return graph.forward

    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: whole(module, backend=compiler))
    task = instantiate(compose_text("train", *TINY).task)
    compile_in_place(task, same_bits=False)
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task._loss([tokens, tokens])
    loss.backward()
    assert len(seen) == 2  # without a break
    assert "scaled_dot_product_attention" in seen[0]
    assert "cross_entropy" in seen[1]


def continued(run: RunFolder, prompt: str, *overrides: str) -> tuple[str, Path]:
    # A text may hold what Hydra reads as its grammar, so it goes in unparsed.
    cfg = compose_text("predict", "run=latest", "input=text", "max_new_tokens=20", *overrides)
    cfg.run, cfg.input = str(run.path), prompt
    output = predict(cfg)
    return output.read_bytes().decode(), output


def test_predict_continues_from_a_text(tiny_run: Finished, tmp_path: Path) -> None:
    run, _ = tiny_run
    text, output = continued(run, "Once, upon: a {time")
    assert output == run.path / "continued.txt"
    assert text.startswith("Once, upon: a {time")
    assert len(text) > len("Once, upon: a {time") + 5
    assert continued(run, "Once, upon: a {time")[0] == text
    assert continued(run, "Once, upon: a {time", "seed=1")[0] != text
    (tmp_path / "start.txt").write_bytes("Été: ".encode())
    assert continued(run, str(tmp_path / "start.txt"), "top_k=5")[0].startswith("Été: ")
    assert continued(run, "x" * 5000, "temperature=0")[0].startswith("x" * 5000)


@pytest.mark.parametrize(
    ("prompt", "overrides", "says"),
    [
        ("nowhere.txt", [], "There is no nowhere.txt"),
        ("", [], "Give one word"),
        ("a", ["temperature=-1"], "must be 0 or more"),
        ("a", ["max_new_tokens=0"], "max_new_tokens"),
        ("a", ["top_k=0"], "top_k"),
        ("a", ["seed=-1"], "seed"),
        ("a", ["output=."], "is a folder"),
        ("a", [f"output={Path(__file__).as_posix()}/x"], "cannot be written"),
    ],
)
def test_predict_says_what_is_wrong_with_its_input(
    tiny_run: Finished, prompt: str, overrides: list[str], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        continued(tiny_run[0], prompt, *overrides)


def test_predict_says_where_a_file_is_no_text(tiny_run: Finished, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"bad\.txt is not UTF-8.* 2"):
        continued(tiny_run[0], str(tmp_path / "bad.txt"))


def test_a_run_leaves_a_sample_of_its_best_weights(tiny_run: Finished) -> None:
    run, _ = tiny_run
    sample = (run.path / "sample.txt").read_bytes().decode()
    assert sample.startswith("The ")
    task: Any
    task, datamodule = load_run(str(run.path))
    settings = compose_text("train").show.sample.settings
    prompt = datamodule.tokenizer.encode("The ").tolist()
    again = task.model.generate(prompt, num_tokens=256, **settings)
    assert sample == "The " + datamodule.tokenizer.decode(again)


def test_a_sample_that_cannot_be_is_refused_before_the_training(tiny: Compose) -> None:
    with pytest.raises((UserError, InstantiationException), match="must be 0 or more"):
        train(tiny("show.sample.settings.temperature=-1"))


def test_a_prompt_without_a_token_costs_no_result(
    tiny: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = train(tiny("show.sample.prompt=", "trainer.max_steps=2"))
    assert "test/loss" in metrics
    assert "No sample.txt" in caplog.text


def test_windows_that_the_model_cannot_look_at_are_refused(tiny: Compose) -> None:
    with pytest.raises(UserError, match="32 tokens"):
        train(tiny("data.context=32"))


class Bigram(nn.Module):
    """A user's own model, which cannot write."""

    def __init__(self, vocab_size: int, **_: Any) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


def test_a_model_that_cannot_write_trains_to_the_end(tiny: Compose) -> None:
    cfg = tiny(f"model._target_={__name__}.Bigram")
    assert "test/loss" in train(cfg)
    assert not (run_folder(cfg).path / "sample.txt").exists()
