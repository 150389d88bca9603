"""What is known of the experiment on one device, when it has been measured there."""

from dataclasses import asdict, dataclass
from typing import Any

from ...engine.device import Settings
from . import hardware, work
from .bare import BareLoop
from .clock import Clock, Timing
from .rounds import Comparison, Round, Spread, compare, how_many, pilot, play
from .subject import Subject

SAME = 1e-3  # of a loss, which other orders of the same sums make


@dataclass(frozen=True)
class Speed:
    """Of one loop, over all rounds."""

    rate: Spread  # units a second, of each round
    step: Spread  # seconds, of each step
    memory: int | None  # bytes

    @classmethod
    def of(cls, timings: list[Timing], units: int) -> "Speed":
        memory = [timing.memory for timing in timings if timing.memory is not None]
        return cls(
            Spread.of([units / timing.seconds for timing in timings]),
            Spread.of([seconds for timing in timings for seconds in timing.each]),
            max(memory, default=None),
        )


@dataclass(frozen=True)
class Row:
    """Times are seconds, rates units a second, memory bytes."""

    choice: Settings
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
    losses: list[float]  # the last of each round of this project
    bare_loss: float  # of the same steps with the same random numbers in the bare loop
    flops: work.Flops | None
    matmul: float  # FLOP/s
    peak: float | None  # FLOP/s of bfloat16, as published

    @property
    def precision(self) -> str:
        """In what it computes, and whether PyTorch has compiled it."""
        return self.choice.precision + ", compiled" * self.compiled

    @property
    def achieved(self) -> float | None:
        """FLOP/s of this project."""
        return None if self.flops is None else self.flops.each * self.project.rate.median

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization: of the published peak."""
        return None if self.achieved is None or self.peak is None else self.achieved / self.peak

    @property
    def same_loss(self) -> bool:
        """Whether both end at the same loss, as far as the rounds of this project do so."""
        apart = max(self.losses) - min(self.losses)
        differences = [abs(self.bare_loss - loss) for loss in self.losses]
        return min(differences) <= max(SAME * abs(self.bare_loss), apart)

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
    choice = subject.choice
    units, told = _look(subject)
    matmul = hardware.matmul_rate(subject.device, hardware.dtype_of(choice.precision))
    if told is not None and asked.steps == "auto":
        accumulate = subject.cfg.trainer.accumulate_grad_batches
        least = told.each * units.total * accumulate / matmul
        how_many(asked.steps, asked.rounds, asked.seconds, least)  # refuses, before it is tried
    first = pilot(subject, asked.seconds / 10)
    step = first.seconds / first.steps
    warmup, steps = how_many(asked.steps, asked.rounds, asked.seconds, step)
    rounds = play(subject, asked.rounds, warmup, steps)
    total, clock = work.Units(), Clock(subject.device, warmup, steps)
    clock.on_batch = total.add
    same = subject.bare(clock, same_noise=True)
    project, bare = [r.project for r in rounds], [r.bare for r in rounds]
    again = [r.again for r in rounds]
    return Row(
        choice=choice,
        compiled=subject.compiled,
        unit=total.name,
        units_per_step=total.total / steps,
        steps=steps,
        warmup=warmup,
        rounds=rounds,
        project=Speed.of(project, total.total),
        bare=Speed.of([*bare, *again], total.total),
        comparison=compare(*([1 / t.seconds for t in them] for them in (project, bare, again))),
        first_step=first.first_step,
        losses=[timing.loss for timing in project],
        bare_loss=same.loss,
        flops=told or _counted(subject),
        matmul=matmul,
        peak=hardware.peak(choice.name),
    )


def _look(subject: Subject) -> tuple[work.Units, work.Flops | None]:
    """How many units a batch has, and how many FLOPs each is said to take."""
    units = work.Units()
    found: list[work.Flops | None] = []

    def look(loop: BareLoop) -> None:
        units.add(loop.one_batch())
        found.append(work.told(loop, units.name))

    subject.once(look)
    return units, found[0]


def _counted(subject: Subject) -> work.Flops | None:
    found: list[work.Flops | None] = []
    subject.once(lambda loop: found.append(work.counted(loop)))
    return found[0]
