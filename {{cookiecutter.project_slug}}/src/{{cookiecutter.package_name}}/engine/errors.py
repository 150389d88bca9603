"""Errors the user can fix. Standard library only."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Its message says what is wrong and what to do; `cli.run` prints it without a traceback."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ": did you mean X?" or ".", to end a sentence with."""
    close = difflib.get_close_matches(name, sorted(set(known)), n=2)
    return f": did you mean {' or '.join(close)}?" if close else "."
