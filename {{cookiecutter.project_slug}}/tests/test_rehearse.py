"""Every experiment would train on every device, whether it is here or not."""

import pytest
from conftest import EXPERIMENTS, chosen, compose_config

import {{ cookiecutter.package_name }} as package

command = pytest.importorskip(f"{package.__name__}.tools.rehearse.__main__")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_it_would_train_on_every_device(name: str) -> None:
    """One that cannot says so in its YAML: `rehearse: {skip: {mps: "why"}}`."""
    verdicts = command.rehearse(compose_config("rehearse", *chosen(name)))
    assert [verdict for verdict in verdicts if verdict.verdict == "fails"] == []
