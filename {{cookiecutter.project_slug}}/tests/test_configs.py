"""Every YAML composes, and names what is there."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import EXPERIMENTS, chosen, compose_config, names
from hydra import compose, initialize_config_module
from hydra.utils import get_object
from omegaconf import OmegaConf

import {{ cookiecutter.package_name }} as package
from {{ cookiecutter.package_name }}.engine.cli import groups

COMMANDS = names(".")
GROUPS = sorted(groups())
CHOICES = [f"{group}={name}" for group in GROUPS for name in names(group)]


def targets(config: Any) -> Iterator[str]:
    """Yield every `_target_` in a config, at any depth."""
    if isinstance(config, dict):
        yield from [config["_target_"]] if "_target_" in config else []
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from targets(value)


def test_every_command_composes() -> None:
    assert all(compose_config(command) for command in COMMANDS)


@functools.cache
def groups_of(command: str) -> set[str]:
    """Return the groups that a command's config chooses from."""
    with initialize_config_module(f"{package.__name__}.configs", version_base="1.3"):
        return set(compose(command, return_hydra_config=True).hydra.runtime.choices)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_names_what_is_there(choice: str) -> None:
    group = choice.partition("=")[0]
    # The other commands take what train takes.
    uses = [name for name in ("train", "evaluate", "predict") if group in groups_of(name)]
    uses = uses or [next(name for name in COMMANDS if group in groups_of(name))]
    for command in uses:
        config = OmegaConf.to_container(compose_config(command, choice))
        for target in targets(config):
            if target.startswith(f"{package.__name__}."):  # other packages may be missing here
                assert get_object(target)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_value_for_every_setting(name: str) -> None:
    cfg = compose_config("train", *chosen(name))
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
