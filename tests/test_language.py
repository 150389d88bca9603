"""What a person does with a new project for language modeling."""

import re
import sys
from pathlib import Path

import pytest
from conftest import run
from readme import commands, extend, give
from test_project import SHORT, found_by_linters, metrics, shortened, sources

PACKAGE = "text_project"
QUIET = ("-q", "-p", "no:cacheprovider")
FEW = ["trainer.max_epochs=1", "trainer.limit_train_batches=5", "trainer.limit_val_batches=2"]
SHORT = {**SHORT, "train": FEW, "sweep": [*FEW, "trainer.limit_test_batches=2"]}


@pytest.fixture(scope="module")
def extended(text_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with all the files that its README shows."""
    return extend(text_project, tmp_path_factory.mktemp("extended"))


def test_lint_format_and_types_are_clean(extended: Path) -> None:
    found = found_by_linters(extended)
    assert not found, found


def test_its_own_tests_pass_with_what_the_readme_adds(extended: Path) -> None:
    done = run(sys.executable, "-m", "pytest", *QUIET, cwd=extended, **sources(extended))
    assert done.returncode == 0, done.stdout[-5000:]


def test_every_command_in_the_readme_works(text_project: Path, tmp_path: Path) -> None:
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "story.md").write_text("Once upon a time.\n" * 4000)
    found = commands((text_project / "README.md").read_text(encoding="utf-8"), "Commands", PACKAGE)
    assert len(found) == 9
    failed = give(PACKAGE, [shortened(command, SHORT) for command in found], cwd=tmp_path)
    assert not failed, failed
    (continued,) = tmp_path.glob("runs/*/continued.txt")
    assert continued.read_text(encoding="utf-8", errors="replace").startswith("Once upon")


def test_what_the_readme_adds_trains(extended: Path, tmp_path: Path) -> None:
    """Data without text, and a model that writes none, in a project for language modeling."""
    readme = (extended / "README.md").read_text(encoding="utf-8")
    failed = give(
        PACKAGE, commands(readme, "Make it yours", PACKAGE), cwd=tmp_path, **sources(extended)
    )
    assert not failed, failed
    assert min(metrics(run)["test/loss"] for run in tmp_path.glob("runs/curve-*")) < 0.01


@pytest.mark.slow
def test_the_default_learns_clearly_more_than_byte_trigrams(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", PACKAGE, "train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("runs/gpt-*")
    reached = metrics(folder)
    baseline = re.search(r"byte trigrams, val/loss ([0-9.]+) nats", done.stdout)
    assert baseline
    assert reached["best val/loss"] < 0.85 * float(baseline[1])
    assert reached["test/bits_per_byte"] < 0.85 * reached["baseline/test_bits_per_byte"]
    assert len((folder / "sample.txt").read_text(encoding="utf-8")) > 300
