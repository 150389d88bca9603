"""Runs in the new project folder: checks this Python, deletes unselected files, says what is next.

`local_extensions.py` loads `probe` and `judge` from here, to refuse a wrong Python before the first
question. So this file is valid Python as it stands: Jinja only inside one string.
"""

import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ANSWERS = r"""{{ cookiecutter | tojson }}"""

NEXT_STEPS = """
Created {slug}. Next:
  cd {slug}
  make setup    install it
  make train    train on the best device here
  make test     check that everything works
"""

INTEL_PYTHON = (
    "This is an Intel Python on an Apple Silicon Mac, which cannot use the GPU or install PyTorch 2.3"
    " and newer: run cookiecutter with an arm64 Python, such as uv's (uvx --python"
    " cpython-3.12-macos-aarch64 cookiecutter ...), python.org's universal2 installer (in a Terminal"
    " without Rosetta) or Miniforge's for arm64 (CONDA_SUBDIR=osx-arm64 conda create ...), or add"
    " _allow_intel_python=yes to generate the project anyway."
)
INTEL_MAC = (
    "Note: this looks like an Intel Mac, for which PyTorch has no build after 2.2.2: the project can be"
    " generated and edited here, and trains on another machine."
)
WRONG_PROCESSOR = (
    "Note: Lightning will not find the GPU, because platform.processor() says {processor!a} and not"
    " 'arm': use a Python from uv (uv python install 3.12) or from python.org."
)
OLD_MACOS = "Note: this is macOS {macos}, and PyTorch 2.12 or newer needs macOS 14: update macOS to train here."
NATIVE = "Arm Python on Apple Silicon: PyTorch can use the GPU."


@dataclass(frozen=True)
class Probe:
    """What this Python and this Mac say of themselves; empty where they say nothing."""

    system: str
    machine: str = ""
    processor: str = ""
    proc_translated: str = ""
    arm64: str = ""
    macos: str = ""


@dataclass(frozen=True)
class Verdict:
    """Status is ok, warning or refused; the text is empty where there is nothing to say."""

    status: str
    text: str = ""


def sysctl(name: str) -> str:
    """The value as sysctl prints it, or nothing: no answer must ever stop a generation."""
    command = ["sysctl", "-n", name]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=1
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("ascii", "replace") if done.returncode == 0 else ""


def probe() -> Probe:
    if platform.system() != "Darwin":
        return Probe(platform.system())
    return Probe(
        system="Darwin",
        machine=platform.machine(),
        processor=platform.processor(),
        proc_translated=sysctl("sysctl.proc_translated"),
        arm64=sysctl("hw.optional.arm64"),
        macos=platform.mac_ver()[0],
    )


def judge(found: Probe) -> Verdict:
    """Can this Python train on this Mac? Refuses only on proof: an Intel Python and an Arm chip."""
    if found.system != "Darwin":
        return Verdict("ok")
    if found.machine == "x86_64":
        # Rosetta hides the chip from Python, but sysctl tells.
        if "1" in (found.proc_translated.strip(), found.arm64.strip()):
            return Verdict("refused", INTEL_PYTHON)
        return Verdict("warning", INTEL_MAC)
    if found.machine != "arm64":
        return Verdict("ok")
    notes = []
    # Lightning asks platform.processor(), not platform.machine(): lightning/fabric/accelerators/mps.py
    if found.processor not in ("arm", "arm64"):
        notes.append(WRONG_PROCESSOR.format(processor=found.processor))
    # A Python built long ago reads every newer macOS as 10.16, so 10 says nothing.
    major = re.match(r"[0-9]+", found.macos)
    if major and 11 <= int(major.group()) < 14:
        notes.append(OLD_MACOS.format(macos=found.macos))
    return Verdict("warning", "\n".join(notes)) if notes else Verdict("ok", NATIVE)


# Question and answer -> the files that are there for no other answer.
ONLY_FOR = {
    ("github_actions", True): (".github/workflows/ci.yml", ".github/dependabot.yml"),
    ("deploy", True): (
        ".dockerignore",
        "deploy/Dockerfile",
        "deploy/README.md",
        "deploy/kubernetes.yaml",
        "deploy/skypilot.yaml",
        "deploy/slurm.sbatch",
    ),
    ("starter", "image-classification"): (
        "src/{package}/confusion.py",
        "src/{package}/data/digits.py",
        "src/{package}/data/images.py",
        "src/{package}/models/convnet.py",
        "src/{package}/models/mlp.py",
        "src/{package}/tasks/classification.py",
        "src/{package}/configs/classify.yaml",
        "src/{package}/configs/callbacks/confusion.yaml",
        "src/{package}/configs/data/digits.yaml",
        "src/{package}/configs/experiment/convnet.yaml",
        "src/{package}/configs/model/convnet.yaml",
        "src/{package}/configs/model/mlp.yaml",
        "src/{package}/configs/task/classification.yaml",
        "tests/image_classification.py",
        "tests/test_digits.py",
        "tests/test_images.py",
    ),
    ("starter", "language-modeling"): (
        "src/{package}/baseline.py",
        "src/{package}/sample.py",
        "src/{package}/data/corpus.py",
        "src/{package}/data/text.py",
        "src/{package}/data/tokenizer.py",
        "src/{package}/models/gpt.py",
        "src/{package}/models/rotary.py",
        "src/{package}/tasks/language_modeling.py",
        "src/{package}/configs/continue.yaml",
        "src/{package}/configs/callbacks/baseline.yaml",
        "src/{package}/configs/callbacks/sample.yaml",
        "src/{package}/configs/callbacks/text.yaml",
        "src/{package}/configs/data/text.yaml",
        "src/{package}/configs/experiment/gpt2_small.yaml",
        "src/{package}/configs/model/gpt2_small.yaml",
        "src/{package}/configs/model/gpt_tiny.yaml",
        "src/{package}/configs/optimizer/adamw_gpt.yaml",
        "src/{package}/configs/scheduler/warmup_cosine.yaml",
        "src/{package}/configs/task/language_modeling.yaml",
        "src/{package}/configs/trainer/clipped.yaml",
        "tests/language_modeling.py",
        "tests/test_gpt.py",
        "tests/test_language_modeling.py",
        "tests/test_text.py",
    ),
}


def delete_unselected(answers: dict) -> None:
    """Delete the template's own files only: beside them may stand what a person added later."""
    for (question, answer), paths in ONLY_FOR.items():
        if answers[question] != answer:
            for name in paths:
                path = Path(name.format(package=answers["package_name"]))
                path.unlink(missing_ok=True)
                for folder in path.parents[:-1]:
                    if folder.is_dir() and not any(folder.iterdir()):
                        folder.rmdir()


def say(text: str) -> None:
    """On stderr, since the stdout of `cruft diff` is a patch."""
    print(text, file=sys.stderr)


def main() -> None:
    answers = json.loads(ANSWERS)
    verdict = judge(probe())
    if verdict.text:
        say(verdict.text)
    if verdict.status == "refused" and not answers["_allow_intel_python"]:
        sys.exit(1)
    delete_unselected(answers)
    say(NEXT_STEPS.format(slug=answers["project_slug"]))


if __name__ == "__main__":
    main()
