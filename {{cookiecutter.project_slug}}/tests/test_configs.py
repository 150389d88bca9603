"""Every YAML composes, alone and with its group; found by glob, so new ones are tested too."""

import pytest
from conftest import CONFIGS, compose_config, names
from omegaconf import OmegaConf

GROUPS = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())
CHOICES = [(group, name) for group in GROUPS for name in names(group) if group != "hydra"]


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_of_every_group_composes_and_resolves(group: str, name: str) -> None:
    of = "sweep" if group == "sweep" else "train"
    OmegaConf.to_container(compose_config(of, f"{group}={name}"), resolve=True)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("evaluate", ["run=latest"]),
        ("predict", ["run=latest"]),
        ("rehearse", []),
        ("benchmark", []),
        ("sweep", []),
    ],
)
def test_the_other_commands_compose(name: str, overrides: list[str]) -> None:
    OmegaConf.to_container(compose_config(name, *overrides), resolve=True)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_yaml_says_how_to_use_it(group: str, name: str) -> None:
    text = (CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("#")


@pytest.mark.parametrize("name", names("logger"))
def test_every_logger_writes_metrics_csv_too(name: str) -> None:
    assert "csv" in compose_config("train", f"logger={name}").logger
