"""The mean of repeated runs, how far they are apart, and where the true mean lies."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mean:
    """Of one metric, over the repeats of one point."""

    point: Mapping[str, str]
    metric: str
    mean: float
    deviation: float | None  # of a single run; None where there is only one
    interval: tuple[float, float] | None  # has the true mean in it 95 times of 100
    num_runs: int


def means(
    point: Mapping[str, str], repeats: Sequence[Mapping[str, float]], independent: bool
) -> list[Mean]:
    """Of every metric that is a float in all repeats.

    Args:
        point: what they have in common.
        repeats: the metrics of each.
        independent: they are, so that there is an interval.
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
                half = student_t(len(values) - 1) * deviation / math.sqrt(len(values))
                interval = mean - half, mean + half
        found.append(Mean(point, metric, mean, deviation, interval, len(values)))
    return found


def student_t(freedom: int, inside: float = 0.95) -> float:
    """Between minus and plus this value lies the share `inside` of Student's distribution.

    By bisection of the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3-4),
    so that it takes no SciPy.
    """

    def share(t: float) -> float:
        angle = math.atan2(t, math.sqrt(freedom))
        cosine, odd = math.cos(angle), freedom % 2
        term, total = (cosine if odd else 1.0), 0.0
        for k in range(1 + odd, freedom, 2):
            total += term
            term *= cosine**2 * k / (k + 1)
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if odd else total

    low, high = 0.0, 1e3
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) < inside else (low, middle)
    return low
