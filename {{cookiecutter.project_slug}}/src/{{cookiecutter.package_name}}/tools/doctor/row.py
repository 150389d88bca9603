"""One line of the doctor's table, and the commands that its fixes are made of."""

from __future__ import annotations

from dataclasses import dataclass

from .facts import Facts

PACKAGE = (__package__ or "").partition(".")[0]


@dataclass(frozen=True)
class Row:
    """State is ok, warning, wrong, or unknown, which is never taken for ok.

    A warning and a wrong have a fix: a command, as it is typed.
    """

    name: str
    found: str
    state: str = "ok"
    why: str = ""
    fix: str = ""


def install(
    facts: Facts, *requirements: str, index: str = "", again: bool = False, editable: bool = False
) -> str:
    """The command for the installer that is here: environments of uv's have no pip."""
    words = ["python -m pip install" if facts.pip else "uv pip install"]
    if again:
        words.append("--force-reinstall" if facts.pip else "--reinstall")
    words += [f'"{requirement}"' for requirement in requirements]
    if editable:
        words.append("-e .")
    if index:
        words.append(f"--index-url {index}")
    return " ".join(words)


def run(*overrides: str) -> str:
    return " ".join([f"python -m {PACKAGE} train", *overrides])


def in_container(*options: str) -> str:
    return f'docker run {" ".join(options)} -it -v "$PWD":/project -w /project python:3.12 bash'


def set_variable(facts: Facts, name: str, value: str) -> str:
    return f"{'set' if facts.system == 'Windows' else 'export'} {name}={value}"


def unset(facts: Facts, *names: str) -> str:
    if facts.system == "Windows":
        return " & ".join(f"set {name}=" for name in names)
    return f"unset {' '.join(names)}"


def gigabytes(size: float) -> str:
    return f"{size / 2**30:.1f} GB"
