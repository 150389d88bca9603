"""Hydra's words for a search space, as Optuna's distributions."""

import math
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from .space import values_of


def distribution(override: Override) -> BaseDistribution:
    value = override.value()
    if isinstance(value, IntervalSweep):
        is_log = "log" in value.tags
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=is_log)
        return FloatDistribution(float(value.start or 0), float(value.end or 0), log=is_log)
    if isinstance(value, RangeSweep) and all(map(_is_whole, values_of(override))):
        numbers = sorted(map(int, values_of(override)))
        return IntDistribution(numbers[0], numbers[-1], step=abs(int(value.step)))
    return CategoricalDistribution(values_of(override))


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdigit()


def rounded(value: Any, of: BaseDistribution) -> Any:
    """Round to about a ten-thousandth of the range, so that a person can type it again."""
    if not isinstance(of, FloatDistribution):
        return value
    if of.log:
        short = float(f"{value:.4g}")
    else:
        short = round(value, max(0, 4 - math.ceil(math.log10(of.high - of.low))))
    return min(max(short, of.low), of.high)
