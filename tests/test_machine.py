"""A Mac gets a Python that can use its GPU; nothing else is stopped, whatever sysctl says."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import EXCERPT, SLUG, assert_refused, cookiecutter, copy_template, give, load

local_machine = load("local_machine")
ARM = local_machine.Machine("Darwin", machine="arm64", processor="arm", arm64="1", macos="15.5")
ROSETTA = replace(ARM, machine="x86_64", processor="i386", proc_translated="1")
INTEL = replace(ARM, machine="x86_64", processor="i386", arm64="")

VERDICTS = {
    "arm": (ARM, "ok", "Arm Python"),
    "arm, processor arm64": (replace(ARM, processor="arm64"), "ok", "Arm Python"),
    "arm, processor of an old build": (replace(ARM, processor="i386"), "warning", "says 'i386'"),
    "arm, no processor": (replace(ARM, processor=""), "warning", "Lightning will not find"),
    "arm, macOS 13": (replace(ARM, macos="13.7.1"), "warning", "macOS 14"),
    "arm, macOS 11": (replace(ARM, macos="11"), "warning", "macOS 14"),
    "arm, macOS 14": (replace(ARM, macos="14.0"), "ok", "Arm Python"),
    "arm, macOS 26": (replace(ARM, macos="26.1"), "ok", "Arm Python"),
    "arm, macOS read as 10.16": (replace(ARM, macos="10.16"), "ok", "Arm Python"),
    "arm, no macOS version": (replace(ARM, macos=""), "ok", "Arm Python"),
    "arm, odd macOS version": (replace(ARM, macos="Sequoia 13"), "ok", "Arm Python"),
    "arm, silent sysctl": (replace(ARM, arm64=""), "ok", "Arm Python"),
    "Intel Python, both say so": (ROSETTA, "refused", "Intel Python on an Apple Silicon Mac"),
    "Intel Python, translated": (replace(ROSETTA, arm64=""), "refused", "universal2"),
    "Intel Python, Arm chip": (replace(ROSETTA, proc_translated="0"), "refused", "osx-arm64"),
    "Intel Mac": (INTEL, "warning", "Intel Mac"),
    "Intel Mac that answers": (replace(INTEL, proc_translated="0", arm64="0"), "warning", "Intel"),
    "odd sysctl": (replace(INTEL, proc_translated="11", arm64="yes"), "warning", "Intel Mac"),
    "another machine": (replace(ARM, machine="Power Macintosh"), "ok", ""),
    "no machine": (replace(ARM, machine=""), "ok", ""),
    "Linux on Arm": (replace(ARM, system="Linux", machine="aarch64"), "ok", ""),
    "Windows": (local_machine.Machine("Windows"), "ok", ""),
}
# What the platform module says, and a `sysctl`, put before everything else a Python finds.
FAKE_PLATFORM = """
import platform
platform.system = lambda: "{0.system}"
platform.machine = lambda: "{0.machine}"
platform.processor = lambda: "{0.processor}"
platform.mac_ver = lambda: ("{0.macos}", ("", "", ""), "{0.machine}")
"""
SYSCTL = {
    "says 1": 'echo 1; [ "$1" = -n ]',
    "fails": "echo 1; echo unknown oid >&2; exit 1",
    "prints odd bytes": "printf '\\377\\000 1 \\n\\n1'",
    "hangs": "exec sleep 60",
}
Fake = Callable[..., None]
needs_posix = pytest.mark.skipif(os.name == "nt", reason="the fake sysctl is a shell script")


@pytest.mark.parametrize("case", VERDICTS)
def test_every_machine_gets_its_verdict(case: str) -> None:
    machine, status, says = VERDICTS[case]
    verdict = local_machine.judge(machine)
    assert verdict.status == status
    assert says in verdict.text and verdict.text.isascii() and bool(verdict.text) == bool(says)


def test_two_faults_are_both_told() -> None:
    text = local_machine.judge(replace(ARM, processor="", macos="12.6")).text
    assert "Lightning" in text and "macOS 14" in text


def test_this_machine_can_be_probed() -> None:
    assert local_machine.judge(local_machine.probe()).status in ("ok", "warning", "refused")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_template(tmp_path_factory.mktemp("machine") / "template", EXCERPT)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Let every Python that is started believe to run on a machine, with a sysctl or none."""
    monkeypatch.chdir(tmp_path)

    def fake(case: str, sysctl: str = "says 1") -> None:
        folder = tmp_path / "fake"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(FAKE_PLATFORM.format(VERDICTS[case][0]))
        path = [str(folder)]
        if sysctl in SYSCTL:
            (folder / "sysctl").write_text(f"#!/bin/sh\n{SYSCTL[sysctl]}\n")
            (folder / "sysctl").chmod(0o755)
            path += ["/bin", "/usr/bin"]
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setenv("PATH", os.pathsep.join(path))

    return fake


@needs_posix
@pytest.mark.parametrize("case", ["arm", "arm, no processor", "arm, macOS 13", "Linux on Arm"])
def test_a_machine_that_can_train_gets_a_project_and_is_told_once(
    fake: Fake, template: Path, case: str
) -> None:
    fake(case)
    done = cookiecutter(template, *give({}, "key=value")[0])
    assert done.returncode == 0 and Path("out", SLUG).is_dir()
    says = VERDICTS[case][2]
    assert done.stderr.count(says) == 1 if says else done.stderr.lstrip().startswith("Created")
    assert done.stdout == ""  # `cruft diff > x.patch` must stay a patch


@needs_posix
@pytest.mark.parametrize("hooks", ["yes", "no"])
@pytest.mark.parametrize("channel", ["key=value", "replay", "typed"])
def test_an_intel_python_is_refused_before_the_first_question(
    fake: Fake, template: Path, channel: str, hooks: str
) -> None:
    fake("Intel Python, both say so")
    words, typed = give({}, channel)
    done = cookiecutter(template, *words, f"--accept-hooks={hooks}", typed=typed)
    assert_refused(
        done, "This is an Intel Python on an Apple Silicon Mac", "_allow_intel_python=yes"
    )
    assert done.stdout == "" and not Path("out").exists()


@needs_posix
@pytest.mark.parametrize("hooks", ["yes", "no"])
@pytest.mark.parametrize("channel", ["key=value", "replay", "config"])
def test_a_person_may_allow_an_intel_python(
    fake: Fake, template: Path, channel: str, hooks: str
) -> None:
    fake("Intel Python, both say so")
    words, _ = give({"_allow_intel_python": True}, channel)
    done = cookiecutter(template, *words, f"--accept-hooks={hooks}")
    assert done.returncode == 0 and len(list(Path("out").iterdir())) == 1
    assert done.stderr.count("Intel Python on an Apple Silicon Mac") == (hooks == "yes")


@needs_posix
@pytest.mark.parametrize("sysctl", ["fails", "prints odd bytes", "missing", "hangs"])
def test_a_sysctl_without_an_answer_refuses_nobody(fake: Fake, template: Path, sysctl: str) -> None:
    fake("Intel Python, both say so", sysctl)
    done = cookiecutter(template, *give({}, "key=value")[0])
    assert done.returncode == 0 and Path("out", SLUG).is_dir()
    assert "Intel Mac" in done.stderr and "Traceback" not in done.stderr
