"""A language model learns at the price of its steps, is measured, and writes."""

import csv
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Compose, compose_config, quick, starter
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, nn

from {{ cookiecutter.package_name }} import cli, figures
from {{ cookiecutter.package_name }}.baseline import trigram_probabilities
from {{ cookiecutter.package_name }}.checkpoint import load_run
from {{ cookiecutter.package_name }}.compiling import compile_in_place
from {{ cookiecutter.package_name }}.errors import UserError
from {{ cookiecutter.package_name }}.predict import predict
from {{ cookiecutter.package_name }}.run import Run
from {{ cookiecutter.package_name }}.tasks.language_modeling import (
    decaying,
)
from {{ cookiecutter.package_name }}.train import train

Finished = tuple[Run, dict[str, float]]


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
    config: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = config("trainer.max_epochs=1", "scheduler=constant")
    with caplog.at_level(logging.INFO):
        metrics = train(cfg)
        train(config("trainer.max_epochs=2", "scheduler=constant"))
    assert caplog.text.count("To be beaten: byte trigrams") == 1
    with (Run.of(cfg).folder / "metrics.csv").open(newline="") as file:
        logged = [row["baseline/val_bits_per_byte"] for row in csv.DictReader(file)]
    assert sum(map(bool, logged)) == 1
    assert 1 < metrics["baseline/test_bits_per_byte"] < 4


def test_the_curves_show_what_is_to_be_beaten(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    figures.draw_curves(finished[0].folder / "metrics.csv", tmp_path / "curves.png")
    loss, bits = ([line.get_label() for line in axes.lines] for axes in drawn[0].axes)
    assert "val, baseline" in bits
    assert "val, baseline" not in loss


def test_a_step_that_is_not_written_down_logs_nothing(
    config: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    whole = starter.Task.log

    def counted(task: Any, name: str, *args: Any, **kwargs: Any) -> None:
        calls.append(name)
        whole(task, name, *args, **kwargs)

    monkeypatch.setattr(starter.Task, "log", counted)
    cfg = config("trainer.max_epochs=1", "trainer.log_every_n_steps=10")
    metrics = train(cfg)
    assert metrics["steps"] == 40
    assert calls.count("train/loss") == 4
    with (Run.of(cfg).folder / "metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert steps == [9, 19, 29, 39]


def test_the_model_and_the_loss_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def compiler(graph: Any, example_inputs: Any) -> Any:
        seen.append(graph.code)
        return graph.forward

    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: whole(module, backend=compiler))
    task = instantiate(quick().task)
    compile_in_place(task, same_bits=False)
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        loss = task._loss([tokens, tokens])
    loss.backward()
    assert len(seen) == 2  # without a break
    assert "scaled_dot_product_attention" in seen[0]
    assert "cross_entropy" in seen[1]


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    matrices, rest = decaying(model)
    assert [p.ndim for p in matrices["params"]] == [2, 2]
    assert [p.ndim for p in rest["params"]] == [1, 1, 1]
    assert rest["weight_decay"] == 0
    assert "weight_decay" not in matrices


def continued(run: Run, prompt: str, *overrides: str) -> tuple[str, Path]:
    # A text may hold what Hydra reads as its grammar, so it goes in unparsed.
    cfg = compose_config("predict", "run=latest", "input=text", "max_new_tokens=20", *overrides)
    cfg.run, cfg.input = str(run.folder), prompt
    output = predict(cfg)
    return output.read_bytes().decode(), output


def test_predict_goes_on_from_a_text(finished: Finished, tmp_path: Path) -> None:
    run, _ = finished
    text, output = continued(run, "Once, upon: a {time")
    assert output == run.folder / "continued.txt"
    assert text.startswith("Once, upon: a {time")
    assert len(text) > len("Once, upon: a {time") + 5
    assert continued(run, "Once, upon: a {time")[0] == text
    assert continued(run, "Once, upon: a {time", "seed=1", "temperature=2.0")[0] != text
    (tmp_path / "start.txt").write_bytes("Été: ".encode())
    assert continued(run, str(tmp_path / "start.txt"), "top_k=5")[0].startswith("Été: ")
    assert continued(run, "x" * 5000, "temperature=0")[0].startswith("x" * 5000)


@pytest.mark.parametrize(
    ("prompt", "overrides", "says"),
    [
        ("nowhere.txt", [], "There is no nowhere.txt"),
        ("", [], "give a word"),
        ("a", ["temperature=-1"], "temperature is 0 or more"),
        ("a", ["max_new_tokens=0"], "max_new_tokens"),
        ("a", ["top_k=0"], "top_k"),
        ("a", ["seed=-1"], "seed"),
        ("a", ["output=."], "is a folder"),
        ("a", [f"output={Path(__file__).as_posix()}/x"], "cannot be written"),
    ],
)
def test_predict_says_what_is_wrong_with_its_input(
    finished: Finished, prompt: str, overrides: list[str], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        continued(finished[0], prompt, *overrides)


@pytest.mark.parametrize(
    "text",
    ["a time, there was", "it's", "日本語", "a=b: {x} [y]", "a\\'b, c", "${x}, y", "a, b\\"],
)
def test_a_text_need_not_be_quoted_for_hydra(text: str) -> None:
    typed = cli.as_typed(f"input={text}", "input")
    assert compose_config("predict", "run=latest", typed).input == text
    assert cli.as_typed("seed=1,2", "input") == "seed=1,2"


def test_predict_says_where_a_file_is_no_text(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    with pytest.raises(UserError, match=r"bad\.txt is not UTF-8.* 2"):
        continued(finished[0], str(tmp_path / "bad.txt"))


def test_a_run_leaves_a_sample_of_its_best_weights(finished: Finished) -> None:
    run, _ = finished
    sample = (run.folder / "sample.txt").read_bytes().decode()
    assert sample.startswith("The ")
    task: Any
    task, datamodule = load_run(str(run.folder))
    settings = compose_config("train").callbacks.sample.settings
    again = task.generate("The ", datamodule.tokenizer, dict(settings))
    assert sample == "The " + again


def test_a_sample_that_cannot_be_is_refused_before_the_training(config: Compose) -> None:
    with pytest.raises(InstantiationException, match="temperature is 0 or more"):
        train(config("callbacks.sample.settings.temperature=-1"))


def test_a_prompt_without_a_token_costs_no_result(
    config: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = train(config("callbacks.sample.prompt=", "trainer.max_steps=2"))
    assert "test/loss" in metrics
    assert "No sample.txt" in caplog.text


def test_windows_that_the_model_cannot_look_at_are_refused(config: Compose) -> None:
    with pytest.raises(UserError, match="=32 is more than the model can"):
        train(config("data.context=32"))


class Bigram(nn.Module):
    """A user's own model, which cannot write."""

    def __init__(self, vocab_size: int, **_: Any) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.table = nn.Embedding(vocab_size, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


def test_a_model_that_cannot_write_trains_to_the_end(config: Compose) -> None:
    cfg = config(f"model._target_={__name__}.Bigram", "trainer.max_epochs=1")
    assert "test/loss" in train(cfg)
    assert not (Run.of(cfg).folder / "sample.txt").exists()
