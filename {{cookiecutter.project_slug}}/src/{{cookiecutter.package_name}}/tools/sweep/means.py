"""Mean, deviation and confidence interval of repeated runs."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """One metric over the repeats of one choice of values.

    Attributes:
        overrides: what these runs have in common.
        deviation: of a single run; None if there is only one.
        interval: the 95% confidence interval of the mean (Student's t).
    """

    overrides: Mapping[str, str]
    metric: str
    mean: float
    deviation: float | None
    interval: tuple[float, float] | None
    num_runs: int


def means(
    overrides: Mapping[str, str], repeats: Sequence[Mapping[str, float]], *, independent: bool
) -> list[Mean]:
    """Return the mean of every metric that is a float in all repeats.

    Args:
        overrides: what the repeats have in common.
        repeats: the metrics of each.
        independent: the runs share no samples, so that an interval is valid. It takes SciPy.
    """
    found = []
    for metric, value in repeats[0].items():
        values = [repeat[metric] for repeat in repeats if metric in repeat]
        if not isinstance(value, float) or len(values) < len(repeats):
            continue
        mean, deviation, interval = statistics.fmean(values), None, None
        if len(values) > 1:
            deviation = statistics.stdev(values)
            if independent:
                interval = _interval(mean, deviation / len(values) ** 0.5, len(values) - 1)
        found.append(Mean(overrides, metric, mean, deviation, interval, len(values)))
    return found


def _interval(mean: float, error: float, freedom: int) -> tuple[float, float]:
    from scipy import stats  # type: ignore[import-untyped] # takes a second to load

    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    return mean - half, mean + half
