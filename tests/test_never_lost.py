"""Whatever happens to a run: the same command, and the same bits as if nothing had happened.

`faults.py` does it, in the environment of the project; here stands what is tried, and what must be.
"""

import json
import os
import sys
from pathlib import Path

import faults
import pytest
from conftest import TEMPLATE, run

PACKAGES = {"image-classification": "image_project", "language-modeling": "text_project"}
EVERYTHING = (*faults.FAULTS, *faults.OTHER)
NEEDS_ROOT = tuple(name for name in faults.OTHER if name.startswith("disk_full"))  # to mount one
STARTERS = {"image-classification": faults.VARIANTS, "language-modeling": faults.LANGUAGE}
FEW = ("sigkill_in_epoch", "sigterm_in_validation", "killed_in_write")
ELSEWHERE = "/dev/shm" if Path("/dev/shm").is_dir() else "/tmp"

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each run is a fork")


def tried(starter: str, folder: Path, variant: str, *names: str) -> list[dict[str, object]]:
    """What `faults.py` says of each fault: how often it was tried, and how often all was the same."""
    folder.mkdir()
    done = run(
        sys.executable,
        TEMPLATE / "tests" / "faults.py",
        folder,
        PACKAGES[starter],
        variant,
        ",".join(names),
        OMP_NUM_THREADS="1",
        TMPDIR=ELSEWHERE,  # a checkpoint that goes through there would be torn
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def wrong(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    return [line for line in lines if not line["tried"] or line["tried"] != line["exact"]]


@pytest.mark.parametrize("fault", [*EVERYTHING, "killed_at_random=2"])
def test_no_fault_changes_a_bit_of_the_default_job(
    fault: str, by_fault: dict[str, dict[str, object]]
) -> None:
    if fault in NEEDS_ROOT and os.geteuid() != 0:
        pytest.skip("only root can mount a disk to fill")
    assert not wrong([by_fault[fault.partition("=")[0]]])


@pytest.fixture(scope="module")
def by_fault(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, object]]:
    root = os.geteuid() == 0
    names = [fault for fault in EVERYTHING if root or fault not in NEEDS_ROOT]
    folder = tmp_path_factory.mktemp("default") / "runs"
    lines = tried("image-classification", folder, "default", *names, "killed_at_random=2")
    return {str(line["fault"]): line for line in lines}


@pytest.fixture(scope="module")
def by_variant(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, dict[str, object]]:
    folder = tmp_path_factory.mktemp("variants") / "runs"
    lines = tried("image-classification", folder, ",".join(faults.VARIANTS), "every_checkpoint=16")
    return {str(line["variant"]): line for line in lines}


@pytest.mark.parametrize("variant", faults.VARIANTS)
def test_a_run_goes_on_from_its_checkpoints_to_the_same_bits(
    variant: str, by_variant: dict[str, dict[str, object]]
) -> None:
    assert not wrong([by_variant[variant]])


@pytest.fixture(scope="module")
def language(
    tmp_path_factory: pytest.TempPathFactory,
) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("language") / "runs"
    variants = ",".join(faults.LANGUAGE)
    return tried("language-modeling", folder, variants, *FEW, "every_checkpoint=15")


@pytest.mark.parametrize("variant", faults.LANGUAGE)
def test_a_language_model_survives_a_kill_a_signal_and_a_torn_write(
    variant: str, language: list[dict[str, object]]
) -> None:
    lines = [line for line in language if line["variant"] == variant]
    assert len(lines) == len(FEW) + 1
    assert not wrong(lines)


def test_a_kill_while_ones_own_text_is_read_leaves_the_same_tokens(
    tmp_path: Path,
) -> None:
    read = tried("language-modeling", tmp_path / "runs", "own_text", "killed_while_reading")
    assert not wrong(read)
    assert read[0]["kills"] == 5
    assert read[0]["in_writes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("starter", "variant"), [(name, variant) for name in STARTERS for variant in STARTERS[name]]
)
def test_no_fault_changes_a_bit_of_any_job(
    tmp_path: Path,
    starter: str,
    variant: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every fault, every checkpoint, and 36 kills at random: with all variants over 450."""
    names = [fault for fault in EVERYTHING if os.geteuid() == 0 or fault not in NEEDS_ROOT]
    times = ["every_checkpoint", "killed_at_random=12"]
    times += ["killed_while_reading=4"] if variant == "own_text" else []
    lines = tried(starter, tmp_path / "runs", variant, *names, *times)
    with capsys.disabled():
        print(f"\n{starter}, {variant}")
        for line in lines:
            extra = (
                f", {line['kills']} kills, {line['in_writes']} in a write"
                if "kills" in line
                else ""
            )
            print(f"  {line['fault']:32} {line['exact']} of {line['tried']} exact{extra}")
    assert not wrong(lines)
