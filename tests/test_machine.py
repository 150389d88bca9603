"""A Mac gets a Python that can use its GPU; nothing else is stopped, whatever sysctl says."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from tiny_template import bake, created, load, make_template, write_replay

hook = load("hooks/post_gen_project.py")

ARM = hook.Probe("Darwin", machine="arm64", processor="arm", arm64="1\n", macos="15.5")
ROSETTA = replace(ARM, machine="x86_64", processor="i386", proc_translated="1\n")
INTEL = replace(ARM, machine="x86_64", processor="i386", proc_translated="", arm64="")

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
    "Intel Mac that answers": (replace(INTEL, proc_translated="0\n", arm64="0\n"), "warning", ""),
    "Intel Python, odd sysctl": (replace(INTEL, proc_translated="11", arm64="yes"), "warning", ""),
    "another machine": (replace(ARM, machine="Power Macintosh"), "ok", ""),
    "no machine": (replace(ARM, machine=""), "ok", ""),
    "Linux on Arm": (replace(ARM, system="Linux", machine="aarch64"), "ok", ""),
    "Windows": (hook.Probe("Windows"), "ok", ""),
}

# What the platform module says, and a `sysctl`, put before everything else a Python finds.
FAKE_PLATFORM = """
import os, platform
platform.system = lambda: os.environ["FAKE_SYSTEM"]
platform.machine = lambda: os.environ["FAKE_MACHINE"]
platform.processor = lambda: os.environ["FAKE_PROCESSOR"]
platform.mac_ver = lambda: (os.environ["FAKE_MACOS"], ("", "", ""), os.environ["FAKE_MACHINE"])
"""
SYSCTL = {
    "says 1": 'echo 1; [ "$1" = -n ]',
    "fails": "echo 1; echo unknown oid >&2; exit 1",
    "prints odd bytes": "printf '\\377\\000 1 \\n\\n1'",
    "hangs": "exec sleep 60",
    "missing": None,
}

needs_posix = pytest.mark.skipif(os.name == "nt", reason="the fake sysctl is a shell script")


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("machine") / "tiny")


def fake_machine(place, probe, sysctl: str) -> dict:
    """The environment of a Python that believes to run on the machine of `probe`."""
    folder = place / "fake"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(FAKE_PLATFORM)
    if SYSCTL[sysctl] is not None:
        (folder / "sysctl").write_text(f"#!/bin/sh\n{SYSCTL[sysctl]}\n")
        (folder / "sysctl").chmod(0o755)
    path = [str(folder), "/bin", "/usr/bin"] if sysctl != "missing" else [str(folder)]
    return {
        "PYTHONPATH": str(folder),
        "PATH": os.pathsep.join(path),
        "FAKE_SYSTEM": probe.system,
        "FAKE_MACHINE": probe.machine,
        "FAKE_PROCESSOR": probe.processor,
        "FAKE_MACOS": probe.macos,
    }


def assert_refused(done, place) -> None:
    assert done.returncode == 1
    assert done.stdout.startswith("This is an Intel Python on an Apple Silicon Mac")
    assert len(done.stdout.splitlines()) == 1
    assert "_allow_intel_python=yes" in done.stdout
    assert created(place) == []


@pytest.mark.parametrize("case", VERDICTS)
def test_every_machine_gets_its_verdict(case):
    probe, status, says = VERDICTS[case]
    verdict = hook.judge(probe)
    assert verdict.status == status
    assert says in verdict.text and verdict.text.isascii()
    assert bool(verdict.text) == (probe.system == "Darwin" and probe.machine in ("arm64", "x86_64"))


def test_two_faults_are_both_told():
    text = hook.judge(replace(ARM, processor="", macos="12.6")).text
    assert "Lightning" in text and "macOS 14" in text


def test_this_machine_can_be_probed():
    assert hook.judge(hook.probe()).status in ("ok", "warning", "refused")


@needs_posix
@pytest.mark.parametrize("case", ["arm", "arm, no processor", "arm, macOS 13", "Linux on Arm"])
def test_a_machine_that_can_train_gets_a_project_and_is_told_once(template, tmp_path, case):
    probe, _, says = VERDICTS[case]
    done = bake(template, tmp_path, env=fake_machine(tmp_path, probe, "says 1"))
    assert done.returncode == 0 and created(tmp_path) == ["my-lightning-project"]
    assert done.stdout.count(says) == 1 or not says
    assert says or done.stdout.lstrip().startswith("Created")


@needs_posix
@pytest.mark.parametrize("hooks", ["yes", "no"])
def test_an_intel_python_on_apple_silicon_is_refused(template, tmp_path, hooks):
    env = fake_machine(tmp_path, ROSETTA, "says 1")
    assert_refused(bake(template, tmp_path, f"--accept-hooks={hooks}", env=env), tmp_path)


@needs_posix
def test_an_intel_python_is_refused_before_the_first_question(template, tmp_path):
    env = fake_machine(tmp_path, ROSETTA, "says 1")
    assert_refused(bake(template, tmp_path, typed="A\n", env=env), tmp_path)


@needs_posix
@pytest.mark.parametrize("hooks", ["yes", "no"])
def test_an_intel_python_is_refused_in_a_replay(template, tmp_path, hooks):
    write_replay(template, tmp_path)
    env = fake_machine(tmp_path, ROSETTA, "says 1")
    done = bake(template, tmp_path, "--replay", f"--accept-hooks={hooks}", env=env)
    assert_refused(done, tmp_path)


@needs_posix
@pytest.mark.parametrize("hooks", ["yes", "no"])
@pytest.mark.parametrize("how", ["key=value", "replay", "config"])
def test_a_person_may_go_on_with_an_intel_python(template, tmp_path, how, hooks):
    write_replay(template, tmp_path, _allow_intel_python=True)
    env = fake_machine(tmp_path, ROSETTA, "says 1")
    arguments = {"key=value": ["_allow_intel_python=yes"], "replay": ["--replay"], "config": []}[
        how
    ]
    config = {"_allow_intel_python": True} if how == "config" else {}
    done = bake(template, tmp_path, *arguments, f"--accept-hooks={hooks}", config=config, env=env)
    assert done.returncode == 0, done.stdout
    assert len(created(tmp_path)) == 1
    assert done.stdout.count("Intel Python on an Apple Silicon Mac") == (hooks == "yes")


@needs_posix
@pytest.mark.parametrize("sysctl", ["fails", "prints odd bytes", "missing", "hangs"])
def test_a_sysctl_without_an_answer_refuses_nobody(template, tmp_path, sysctl):
    done = bake(template, tmp_path, env=fake_machine(tmp_path, ROSETTA, sysctl))
    assert done.returncode == 0 and created(tmp_path) == ["my-lightning-project"]
    assert "Intel Mac" in done.stdout and "Traceback" not in done.stdout


@needs_posix
@pytest.mark.parametrize("allowed", [False, True])
def test_the_hook_alone_refuses_too(template, tmp_path, allowed):
    text = (template / "hooks" / "post_gen_project.py").read_text()
    answers = {
        "project_slug": "a",
        "package_name": "a",
        "starter": "image-classification",
        "github_actions": True,
        "deploy": True,
        "_allow_intel_python": allowed,
    }
    rendered = text.replace("{{ cookiecutter | tojson }}", json.dumps(answers))
    (tmp_path / "hook.py").write_text(rendered)
    env = {**os.environ, **fake_machine(tmp_path, ROSETTA, "says 1")}
    done = subprocess.run(
        [sys.executable, tmp_path / "hook.py"], check=False, env=env, capture_output=True, text=True
    )
    assert done.returncode == (not allowed)
    assert done.stdout == ""  # `cruft diff > x.patch` must stay a patch
    assert "Intel Python" in done.stderr and ("Created a" in done.stderr) == allowed
