"""What is typed or written in a YAML is read, or refused; and what its reader takes passes."""

import inspect
import types
import typing
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from image_project.engine.config import check, without_changes
from image_project.engine.errors import UserError
from image_project.engine.run import run_folder
from image_project.train import train
from lightning import Trainer
from omegaconf import OmegaConf, open_dict

from .small_runs import Compose, result, stop_at

VALUES = {bool: True, int: 2, float: 0.5, str: "x", dict: {"hours": 1}, list: [0], type(None): None}


def checked(*words: str, **changed: Any) -> None:
    """Compose a train command, set values of its trainer as if they were typed, and check it."""
    with initialize_config_module("image_project.configs", version_base="1.3"):
        cfg = compose("train", list(words), return_hydra_config=True)
        asked = cfg.hydra
        with open_dict(cfg):
            del cfg.hydra
            cfg.trainer.update(changed)
            typed = {key: str(value).replace("'", "") for key, value in changed.items()}
            null = {key: value.replace("None", "null") for key, value in typed.items()}
            asked.overrides.task = [f"trainer.{key}={value}" for key, value in null.items()]
        check(cfg, without_changes("train", asked.runtime.choices), asked)


def plain(hint: Any) -> typing.Iterator[Any]:
    """Yield a value for each kind in a type hint that a YAML can hold."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for one in typing.get_args(hint):
            yield from plain(one)
    elif typing.get_origin(hint) is typing.Literal:
        yield from typing.get_args(hint)
    elif (kind := typing.get_origin(hint) or hint) in VALUES:
        yield VALUES[kind]


def test_whatever_lightnings_trainer_takes_passes() -> None:
    hints = typing.get_type_hints(Trainer.__init__)
    for number in range(max(len(list(plain(hint))) for hint in hints.values())):
        takes = {key: list(plain(hint))[number:] for key, hint in hints.items() if key != "return"}
        checked(**{key: values[0] for key, values in takes.items() if values})
    assert set(hints) - {"return"} == set(inspect.signature(Trainer).parameters)


@pytest.mark.parametrize("typed", ["'00:00:30:00'", "{minutes: 30}"])
def test_times_are_given_to_the_trainer_as_lightning_documents_them(
    small: Compose, typed: str
) -> None:
    cfg = small("trainer.max_time={hours: 1}", f"trainer.val_check_interval={typed}")
    metrics = train(cfg)
    assert metrics["epochs"] == 2
    assert train(cfg) == metrics  # its limits are kept and found again


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("+model.colour=red", "MLP has no argument 'colour'"),
        ("optimizer.lr=null", "optimizer.lr=null must be a number"),
        ("data.augment=null", "data.augment=null must be true or false"),
        ("+trainer.detect_anomaly=3", "must be true or false"),
        ("trainer.profiler=[1]", "trainer.profiler="),
        ("callbacks.best.filename=1", "Quote it"),
        ("+tests.skipp=1", "did you mean tests.skip"),
    ],
)
def test_what_its_reader_cannot_take_is_refused_at_the_start(word: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        checked(word)
    assert says in str(refused.value)


def test_what_a_yaml_refers_to_is_read() -> None:
    checked("+my_width=64", "model.width=${my_width}")


def test_a_seed_of_null_is_drawn_once_and_kept_by_a_resume(small: Compose) -> None:
    cfg = small("seed=null")
    assert stop_at(3, cfg) == 143
    seed = OmegaConf.load(run_folder(cfg).config).seed
    metrics = train(cfg)
    assert train(cfg) == metrics
    assert OmegaConf.load(run_folder(cfg).config).seed == seed
    same = small(f"seed={seed}", "name=same")
    train(same)
    assert result(run_folder(cfg))[:3] == result(run_folder(same))[:3]
    assert train(small("seed=null", "resume=never")) != metrics
