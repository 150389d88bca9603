"""What has been measured, as a table for people and as JSON for programs."""

import platform
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from typing import Any

import torch

from ...engine.device import Hardware
from ..runs import columns
from .hardware import dtype_of
from .measure import Comparison, Row, Speed

NOISY = 1.1  # the ratio of two equal loops, beyond which a tie says little
FINER = (
    " To tell smaller differences apart, let nothing else run, or raise benchmark.rounds or"
    " benchmark.seconds."
)


@dataclass(frozen=True)
class Unmeasured:
    """A device without numbers, and why."""

    target: str
    why: str


@dataclass(frozen=True)
class Report:
    """A benchmark of all devices.

    Attributes:
        name: of the run that `train` with these overrides would make.
        made: when.
    """

    name: str
    overrides: list[str]
    made: str
    machine: dict[str, Any]
    rows: list[Row]
    unmeasured: list[Unmeasured]

    def as_plain(self) -> dict[str, Any]:
        return {
            "experiment": self.name,
            "overrides": self.overrides,
            "made": self.made,
            "machine": self.machine,
            "units": "seconds, samples or tokens a second, bytes, FLOP and FLOP/s",
            "rows": [{"target": row.settings.accelerator, **row.as_plain()} for row in self.rows]
            + [vars(row) for row in self.unmeasured],
        }


def now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def machine(probe: Hardware) -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": probe.cpu,
        "cores": probe.cores,
        "threads": torch.get_num_threads(),
        "gpus": [gpu.name for gpu in probe.cuda] or ([probe.mps] if probe.mps else []),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("lightning"),
    }


def show(report: Report) -> None:
    """Print a table and some sentences for each device."""
    for row in report.rows:
        print(f"{row.settings.accelerator} ({row.settings.name}), {row.precision}")
        head = ["", f"{row.unit}/s", "10 to 90%", "ms a step", "10 to 90%", "memory"]
        loops = (("this project", row.project), ("bare loop", row.bare))
        print(columns([head, *([name, *_cells(speed)] for name, speed in loops)], right=True))
        print("\n".join(f"  {line}" for line in remarks(row, report.machine)), end="\n\n")
    for failed in report.unmeasured:
        print(f"{failed.target}: {failed.why}")


def _cells(speed: Speed) -> list[str]:
    rate, step = speed.rate, speed.step
    each = [short(seconds * 1e3) for seconds in (step.low, step.median, step.high)]
    memory = "unknown" if speed.memory is None else f"{speed.memory / 2**20:,.0f} MiB"
    between = f"{shorter(rate.low)} to {shorter(rate.high)}"
    return [short(rate.median), between, each[1], f"{each[0]} to {each[2]}", memory]


def remarks(row: Row, has: dict[str, Any]) -> list[str]:
    """Return the sentences below the table."""
    lines = [
        verdict(row.comparison),
        f"{_many(len(row.rounds), 'round')} of {_many(row.steps, 'step')}, after {row.warmup} that"
        f" do not count; the first step of all took {row.first_step:.3g} s.",
    ]
    if row.settings.accelerator == "cpu":
        threads = _many(has["threads"], "thread")
        lines.append(f"{threads}; the memory is that of the whole process.")
    elif len(has["gpus"]) > 1:
        lines.append(f"One of {len(has['gpus'])} GPUs is measured.")
    project, bare = row.losses
    if row.same_loss:
        lines.append(f"Both end at the same loss, {bare:.6g}.")
    else:
        lines.append(
            f"Not the same training: the loss of the last step is {project:.6g}, and {bare:.6g} in"
            " the bare loop. A hook, a callback or a plateau schedule of this experiment may change"
            " it."
        )
    return [*lines, *_work(row)]


def _work(row: Row) -> list[str]:
    dtype = str(dtype_of(row.settings.precision)).removeprefix("torch.")
    matmul = f"{scaled(row.matmul, 'FLOP/s')} of a matrix product in {dtype}, measured"
    if row.flops is None or row.achieved is None:
        return [f"{matmul}; the FLOPs of a step are not known."]
    done = f"{scaled(row.achieved, 'FLOP/s')}, beside {matmul}"
    if row.mfu is not None and row.peak is not None:
        done += f"; {row.mfu:.1%} MFU of the {scaled(row.peak, 'FLOP/s')} in NVIDIA's data sheet"
        done += " (bf16, dense)"
    one = row.unit.removesuffix("s")
    return [f"{done}.", f"{scaled(row.flops.each, 'FLOP')} a {one}, {row.flops.formula}"]


def verdict(comparison: Comparison) -> str:
    ratio, noise = comparison.ratio.median, comparison.noise
    equal = f"two equal loops come out at {noise.low:.2f} to {noise.high:.2f} of each other"
    match comparison.verdict:
        case "unknown":
            return f"{ratio:.2f} of the bare loop's speed, in too few rounds to rely on."
        case "different":
            return f"{ratio:.2f} of the bare loop's speed; {equal}."
    said = f"A tie with the bare loop: {ratio:.2f} of its speed, and {equal}."
    return said + FINER * (noise.high > NOISY)


def short(value: float) -> str:
    """Return three digits, and all of those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def shorter(value: float) -> str:
    return f"{value / 1000:,.0f}k" if value >= 100_000 else short(value)


def scaled(value: float, unit: str) -> str:
    """Return the value with a prefix: 5.64 GFLOP/s."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
