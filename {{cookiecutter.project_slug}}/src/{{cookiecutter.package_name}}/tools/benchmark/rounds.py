"""Both loops by turns, in rounds, and what follows from their times."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...engine.errors import UserError
from .clock import Clock, Timing
from .subject import Subject

FEWEST, MOST = 2, 500  # steps that are timed at a stretch, where the number is auto
OVERDRAWN = 3  # how often the seconds asked for may be used for that
WARMUP = 5
PILOT = 20
DECISIVE = 5  # rounds


@dataclass(frozen=True)
class Round:
    project: Timing
    bare: Timing
    again: Timing  # the bare loop once more: how far apart two equal things come out


@dataclass(frozen=True)
class Spread:
    """The middle of some values, and what eight of ten lie between."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(*(float(value) for value in np.percentile(values, (10, 50, 90))))


@dataclass(frozen=True)
class Comparison:
    """How fast one thing is beside another.

    Attributes:
        ratio: of each round; above 1 it is the faster one.
        noise: of two equal things, either of them first, so that it lies around 1.
        rounds: how many there were.
    """

    ratio: Spread
    noise: Spread
    rounds: int

    @property
    def verdict(self) -> Literal["a tie", "different", "unknown"]:
        """A tie is what two equal things come out at as well; a few rounds cannot know."""
        if self.rounds < DECISIVE:
            return "unknown"
        tie = self.noise.low <= self.ratio.median <= self.noise.high
        return "a tie" if tie else "different"


def compare(speeds: list[float], beside: list[float], again: list[float]) -> Comparison:
    """Speeds of each round beside those of another thing, which was measured twice."""
    ratios = [speed / other for speed, other in zip(speeds, beside, strict=True)]
    equal = [one / other for one, other in zip(beside, again, strict=True)]
    noise = Spread.of([*equal, *(1 / ratio for ratio in equal)])
    return Comparison(Spread.of(ratios), noise, len(ratios))


def how_many(asked: int | str, rounds: int, seconds: float, step: float) -> tuple[int, int]:
    """Steps to warm up and to time.

    Args:
        asked: a number of steps, or auto.
        rounds: of three loops.
        seconds: for all of them, if it is auto.
        step: seconds of one.
    """
    if isinstance(asked, int):
        return max(1, min(WARMUP, asked // 4)), asked
    loops = 3 * rounds + 1
    possible = int(seconds / loops / step)
    warmup = max(1, min(WARMUP, possible // 4))
    least = step * loops * (1 + FEWEST)
    if least > OVERDRAWN * seconds:
        raise UserError(
            f"A step takes {step:.1f} s, too long for benchmark.seconds={seconds:g}: set it to"
            f" {math.ceil(least / OVERDRAWN)} or more, or benchmark.targets to another device."
        )
    return warmup, min(MOST, max(FEWEST, possible - warmup))


def pilot(subject: Subject, patience: float) -> Timing:
    """The first steps of all: what is compiled or loaded once is so in these."""
    return subject.project(Clock(subject.device, 1, PILOT, patience))


def play(subject: Subject, rounds: int, warmup: int, steps: int) -> list[Round]:
    """A B B, and B B A, by turns: what drifts or comes first favours neither."""

    def clock() -> Clock:
        return Clock(subject.device, warmup, steps)

    played = []
    for number in range(rounds):
        if number % 2:
            again, bare = subject.bare(clock()), subject.bare(clock())
            project = subject.project(clock())
        else:
            project = subject.project(clock())
            bare, again = subject.bare(clock()), subject.bare(clock())
        played.append(Round(project, bare, again))
    return played
