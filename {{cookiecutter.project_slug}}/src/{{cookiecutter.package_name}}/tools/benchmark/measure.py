"""Measure both loops in turns, and what follows from their times."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ...engine.device import Settings
from ...engine.errors import UserError
from . import hardware, work
from .bare import BareLoop
from .clock import Clock, Timing
from .subject import Subject

MIN_STEPS, MAX_STEPS = 2, 500  # that are timed at a stretch, where the number is auto
MAX_OVERRUN = 3  # times the seconds asked for
WARMUP_STEPS = 5
PILOT_STEPS = 20
DECISIVE_ROUNDS = 5
LOSS_TOLERANCE = 1e-3  # relative: sums in another order differ by as much after many steps


@dataclass(frozen=True)
class Round:
    """One turn of each loop.

    Attributes:
        again: the bare loop once more: how far apart two equal loops come out.
    """

    project: Timing
    bare: Timing
    again: Timing


@dataclass(frozen=True)
class Spread:
    """The median and the 10th and 90th percentile of some values."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        return cls(*(float(value) for value in np.percentile(values, (10, 50, 90))))


@dataclass(frozen=True)
class Comparison:
    """How fast one loop is, relative to another.

    Attributes:
        ratio: of each round; above 1, the first loop is the faster one.
        noise: the ratio of two equal loops, both ways round, so that it lies around 1.
        rounds: how many there were.
    """

    ratio: Spread
    noise: Spread
    rounds: int

    @classmethod
    def of(cls, speeds: list[float], beside: list[float], again: list[float]) -> "Comparison":
        """Compare the speeds of each round with those of another loop, measured twice."""
        ratios = [speed / other for speed, other in zip(speeds, beside, strict=True)]
        equal = [one / other for one, other in zip(beside, again, strict=True)]
        noise = Spread.of([*equal, *(1 / ratio for ratio in equal)])
        return cls(Spread.of(ratios), noise, len(ratios))

    @property
    def verdict(self) -> Literal["a tie", "different", "unknown"]:
        """A tie is a ratio that two equal loops have as well. A few rounds decide nothing."""
        if self.rounds < DECISIVE_ROUNDS:
            return "unknown"
        tie = self.noise.low <= self.ratio.median <= self.noise.high
        return "a tie" if tie else "different"


@dataclass(frozen=True)
class Speed:
    """One loop over all rounds."""

    rate: Spread  # units a second, of each round
    step: Spread  # seconds of each step
    memory: int | None  # bytes

    @classmethod
    def of(cls, timings: list[Timing], units_per_step: float) -> "Speed":
        memory = [timing.memory for timing in timings if timing.memory is not None]
        return cls(
            Spread.of([units_per_step * timing.steps / timing.seconds for timing in timings]),
            Spread.of([seconds for timing in timings for seconds in timing.each]),
            max(memory, default=None),
        )


@dataclass(frozen=True)
class Row:
    """An experiment, measured on one device. Seconds, units a second, bytes, FLOP/s."""

    settings: Settings
    compiled: bool
    unit: str  # samples or tokens
    units_per_step: float
    steps: int
    warmup: int
    rounds: list[Round]
    project: Speed
    bare: Speed
    comparison: Comparison
    first_step: float
    flops: work.Flops | None
    matmul: float  # measured
    peak: float | None  # of bfloat16, as published

    @property
    def precision(self) -> str:
        return self.settings.precision + ", compiled" * self.compiled

    @property
    def achieved(self) -> float | None:
        """FLOP/s of this project."""
        return None if self.flops is None else self.flops.each * self.project.rate.median

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization: the achieved part of the published peak."""
        return None if self.achieved is None or self.peak is None else self.achieved / self.peak

    @property
    def losses(self) -> tuple[float, float]:
        """The last losses of the project and of the bare loop, where they are closest."""
        pairs = [(played.project.loss, played.bare.loss) for played in self.rounds]
        return min(pairs, key=lambda pair: abs(pair[0] - pair[1]))

    @property
    def same_loss(self) -> bool:
        """Whether both end at the same loss, as far as the project's own rounds do."""
        project, bare = self.losses
        own = [played.project.loss for played in self.rounds]
        return abs(project - bare) <= max(LOSS_TOLERANCE * abs(bare), max(own) - min(own))

    def as_plain(self) -> dict[str, Any]:
        plain = asdict(self)
        for timing in (timing for played in plain["rounds"] for timing in played.values()):
            del timing["each"]  # there are thousands
        plain["comparison"]["verdict"] = self.comparison.verdict
        derived = {"achieved": self.achieved, "mfu": self.mfu, "same_loss": self.same_loss}
        return {**plain, **derived}


def measure(subject: Subject, asked: Any) -> Row:
    """Measure the experiment on its device.

    Args:
        subject: the experiment.
        asked: `benchmark` of the config.

    Raises:
        UserError: a step takes too long.
    """
    settings, device = subject.settings, subject.device
    units_per_batch, flops = _look(subject)
    matmul = hardware.matmul_rate(device, hardware.dtype_of(settings.precision))
    if flops is not None and asked.steps == "auto":  # refused before the first step
        accumulate = subject.cfg.trainer.accumulate_grad_batches
        shortest = flops.each * units_per_batch * accumulate / matmul
        how_many(asked.steps, asked.rounds, asked.seconds, shortest)
    # What is compiled or loaded once is so in the first steps of all.
    units = work.Units()
    clock = Clock(device, 1, PILOT_STEPS, patience=asked.seconds / 10, on_batch=units.add)
    first = subject.project(clock)
    units_per_step = units.total / first.steps
    step = first.seconds / first.steps
    warmup, steps = how_many(asked.steps, asked.rounds, asked.seconds, step)
    rounds = play(subject, asked.rounds, warmup, steps)
    project, bare = [r.project for r in rounds], [r.bare for r in rounds]
    again = [r.again for r in rounds]
    return Row(
        settings=settings,
        compiled=subject.compiled,
        unit=units.name,
        units_per_step=units_per_step,
        steps=steps,
        warmup=warmup,
        rounds=rounds,
        project=Speed.of(project, units_per_step),
        bare=Speed.of([*bare, *again], units_per_step),
        comparison=Comparison.of(
            *([1 / timing.seconds for timing in timings] for timings in (project, bare, again))
        ),
        first_step=first.first_step,
        flops=flops,
        matmul=matmul,
        peak=hardware.peak(settings.name),
    )


def how_many(asked: int | str, rounds: int, seconds: float, step: float) -> tuple[int, int]:
    """Return the steps to warm up and to time.

    Args:
        asked: a number of steps, or auto.
        rounds: of three loops.
        seconds: for all of them, if it is auto.
        step: seconds of one.
    """
    if isinstance(asked, int):
        return max(1, min(WARMUP_STEPS, asked // 4)), asked
    loops = 3 * rounds + 1
    possible = int(seconds / loops / step)
    warmup = max(1, min(WARMUP_STEPS, possible // 4))
    least = step * loops * (1 + MIN_STEPS)
    if least > MAX_OVERRUN * seconds:
        raise UserError(
            f"A step takes {step:.1f} s, too long for benchmark.seconds={seconds:g}. Set it to"
            f" {math.ceil(least / MAX_OVERRUN)} or more, or benchmark.targets to another device."
        )
    return warmup, min(MAX_STEPS, max(MIN_STEPS, possible - warmup))


def play(subject: Subject, rounds: int, warmup: int, steps: int) -> list[Round]:
    """Run the loops in turns, A B B and B B A, so that drift and order favour neither."""

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


def _look(subject: Subject) -> tuple[int, work.Flops | None]:
    """Return the units of a batch, and the FLOPs of each."""
    units = work.Units()
    found: list[work.Flops | None] = []

    def look(loop: BareLoop) -> None:
        batch = loop.one_batch()
        units.add(batch)
        flops = work.declared_flops(loop, units.name) or work.measured_flops(loop, batch)
        found.append(flops)

    subject.once(look)
    return units.total, found[0]
