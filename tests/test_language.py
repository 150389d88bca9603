"""What a person does with a new project for language modeling."""

import json
import re
import sys
from pathlib import Path

import pytest
from conftest import bake, run
from test_project import commands, written_files

SHORT = ("trainer.max_epochs=1", "trainer.limit_train_batches=5", "trainer.limit_val_batches=2")
QUIET = ("-q", "-p", "no:cacheprovider")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project, not installed: `python` below finds it."""
    answers = {"project_name": "My Texts", "starter": "language-modeling"}
    return bake(tmp_path_factory.mktemp("language"), **answers)


def python(project: Path, *words: object, cwd: Path):
    return run(sys.executable, *words, cwd=cwd, PYTHONPATH=str(project / "src"))


def test_lint_format_and_types_are_clean(texts: Path) -> None:
    for check in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]):
        done = run(sys.executable, "-m", *check, cwd=texts)
        assert done.returncode == 0, done.stdout


def test_its_own_tests_pass(texts: Path) -> None:
    done = python(texts, "-m", "pytest", *QUIET, cwd=texts)
    assert done.returncode == 0, done.stdout[-5000:]


def test_every_command_in_the_readme_works(texts: Path, tmp_path: Path) -> None:
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "story.md").write_text("Once upon a time.\n" * 4000)
    found = commands((texts / "README.md").read_text(encoding="utf-8"), "Commands")
    # Those of a bucket are run in test_object_storage.py.
    found = [command for command in found if "s3://" not in " ".join(command)]
    assert len(found) == 8
    for command in found:
        short = SHORT if command[1].endswith(".train") else ()
        done = python(texts, *command, *short, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    (continued,) = tmp_path.glob("runs/*/continued.txt")
    assert continued.read_text(encoding="utf-8", errors="replace").startswith("Once upon")


def test_what_the_readme_adds_trains_and_is_tested_by_itself(tmp_path: Path) -> None:
    """A model and an experiment, each by the files that the README shows."""
    extended = bake(tmp_path / "extended", starter="2")
    readme = (extended / "README.md").read_text(encoding="utf-8")
    added = written_files(readme)
    assert len(added) == 3
    for path, text in added.items():
        (extended / path).write_text(text, encoding="utf-8")
    examples = commands(readme, "Make it yours")
    assert len(examples) == 2
    for command in examples:
        done = python(extended, *command, *SHORT, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = python(extended, "-m", "pytest", "-k", "bigram or wide", *QUIET, cwd=extended)
    assert done.returncode == 0, done.stdout
    listed = python(extended, "-m", "pytest", "--co", "-q", cwd=extended).stdout
    assert "[model=bigram]" in listed and "[experiment-wide]" in listed
    for check in (["check"], ["format", "--check"]):
        done = run(sys.executable, "-m", "ruff", *check, "--no-cache", ".", cwd=extended)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_default_learns_clearly_more_than_byte_trigrams(texts: Path, tmp_path: Path) -> None:
    done = python(texts, "-m", "my_texts.train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (metrics,) = tmp_path.glob("runs/gpt-*/metrics.json")
    reached = json.loads(metrics.read_text(encoding="utf-8"))
    to_be_beaten = re.search(r"byte trigrams, val/loss ([0-9.]+) nats", done.stdout)
    assert to_be_beaten
    assert reached["best val/loss"] < 0.85 * float(to_be_beaten[1])
    assert reached["test/bits_per_byte"] < 0.85 * reached["baseline/test_bits_per_byte"]
    assert len((metrics.parent / "sample.txt").read_text(encoding="utf-8")) > 300
