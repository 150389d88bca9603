"""What a sweep varies: `model.width=128,256` of the command line, and `space` of its YAML.

Both are Hydra's own words: lists, choice(...), range(...), interval(...), int(interval(...)) and
tag(log, ...). A mistake in one is refused before anything starts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep
from hydra.errors import HydraException

from ...engine.errors import UserError

Space = dict[str, Override]  # by what is typed before the `=`


def read_space(in_yaml: Mapping[Any, Any], typed: Sequence[str], fixed: Sequence[str]) -> Space:
    """Return what is swept. The command line wins over the YAML.

    Args:
        in_yaml: `{optimizer.lr: "interval(0.001, 0.1)"}`.
        typed: `optimizer.lr=0.01,0.001`.
        fixed: `optimizer.lr=0.01`, which takes it out of the space.

    Raises:
        UserError: one of them cannot be swept like this.
    """
    parser, space = OverridesParser.create(), {}
    known = {parser.parse_override(line).key_or_group for line in (*typed, *fixed)}
    lines = [f"{key}={value}" for key, value in in_yaml.items() if key not in known]
    for line in (*lines, *typed):
        try:
            override = parser.parse_override(line)
        except HydraException as error:
            raise UserError(f"sweep.space: {line} cannot be read: {error}") from error
        _refuse_nonsense(override)
        space[override.get_key_element()] = override
    return space


def _refuse_nonsense(override: Override) -> None:
    line, value = override.input_line, override.value()
    if not isinstance(value, Sweep):  # a single value in a YAML, or glob()
        raise UserError(
            f"{line} has no values to try: write choice(A, B), or A,B on a command line."
        )
    is_log = "log" in value.tags
    if value.tags - {"log"}:
        raise UserError(f"{line}: the only tag is log, as in tag(log, interval(0.001, 0.1)).")
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        if value.start >= value.end:
            raise UserError(f"{line} is empty: write interval(SMALLEST, LARGEST).")
        if is_log and value.start <= 0:
            raise UserError(f"{line} has no logarithm: begin above 0, or leave the tag out.")
    elif is_log:
        raise UserError(f"{line}: only an interval can be searched by its logarithm.")
    elif not list(override.sweep_string_iterator()):
        raise UserError(f"{line} is empty: write range(FIRST, AFTER_LAST).")


def values_of(override: Override) -> list[str]:
    """Return its values, as they are typed.

    Raises:
        UserError: it is an interval.
    """
    if isinstance(override.value(), IntervalSweep):
        raise UserError(
            f"{override.input_line} has no list of values. Name them, as in"
            f" {override.get_key_element()}=0.1,0.01, or use sweep=optuna, which needs none."
        )
    return list(dict.fromkeys(override.sweep_string_iterator()))


def extremes(override: Override) -> list[str]:
    """Return the values to check: the ends of a range, or every choice."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [str(value.start), str(value.end)]
    values = values_of(override)
    return [values[0], values[-1]] if isinstance(value, RangeSweep) else values
