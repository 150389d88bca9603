"""`rehearse` on the programs of the corpus: every planted fault is found, and nothing else is said.

The corpus is the folder rehearsal/; each case says what is true of it. `real.py` there proves that
on the CPU or on a GPU, and `rehearsed.py` holds the image project's `rehearse` against it.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import run

CORPUS = Path(__file__).parent / "rehearsal"

# One or two of each kind and place, for every day; the slow tests have all.
QUICK = (
    "SmallCNN",
    "PatchTransformer",
    "MetricsInTheStep",
    "LSTMWithStateOfTheDevice",
    "TinyGPT",
    "GANByHand",
    "DiffusionStep",
    "GradientCheckpointing",
    "PositionsOnTheCPU",
    "BackwardWithATensorOfTheCPU",
    "PythonFloatsInTheBatch",
    "DoubleForTheSum",
    "Eigenvalues",
    "AntialiasedResize",
    "HistogramOfTheOutputs",
    "ItemToLog",
    "BooleanMask",
    "LambdaCollate",
    "PinnedMemory",
    "NetInTheHyperparameters",
    "CompiledByAssignment",
    "Float64Training",
    "MovedByCuda",
    "TooManyParameters",
)
KINDS = {
    "device", "dtype", "operator", "fallback", "sync", "workers", "loader", "checkpoint", "policy",
    "vendor", "memory",
}  # fmt: skip


def rehearsed(*options: object) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, CORPUS / "rehearsed.py", *options)


def test_some_of_each_kind_are_judged_as_they_are() -> None:
    done = rehearsed("--only", *QUICK)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.slow
def test_every_fault_is_found_where_it_is_and_nothing_else(tmp_path: Path) -> None:
    done = rehearsed("--json", tmp_path / "answers.json")
    print(done.stdout)  # the confusion tables
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    answers = json.loads((tmp_path / "answers.json").read_text(encoding="utf-8"))
    kinds = Counter(answer["kind"] for answer in answers.values())
    assert kinds.pop("") >= 40
    assert sum(kinds.values()) >= 40
    assert set(kinds) == KINDS


@pytest.mark.slow
def test_the_corpus_is_true_on_the_cpu() -> None:
    """The sound ones train there, and so do the planted ones, up to a fault that shows there too."""
    done = run(sys.executable, CORPUS / "real.py", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
