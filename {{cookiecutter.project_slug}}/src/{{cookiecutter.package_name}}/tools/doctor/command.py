"""Another program, asked a question; it may be missing, fail or hang."""

from __future__ import annotations

import subprocess

NOT_INSTALLED = "is not installed"


def ask(command: list[str]) -> tuple[str, str]:
    """Why there is no answer, and the answer: one of the two is empty."""
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=20
        )
    except FileNotFoundError:
        return NOT_INSTALLED, ""
    except (OSError, subprocess.SubprocessError) as error:
        return one_line(str(error)), ""
    said = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).decode(
        "utf-8", "replace"
    )
    return ("", said.strip()) if done.returncode == 0 else (one_line(said) or "failed", "")


def one_line(text: str) -> str:
    return " ".join(text.split())[:300]
