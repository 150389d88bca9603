"""How fast is this experiment on each device here, beside a bare loop of the same model?

    python -m <package>.benchmark                          # the default, on every device here
    python -m <package>.benchmark experiment=NAME          # the same overrides as train
    python -m <package>.benchmark benchmark.targets=[cpu] benchmark.rounds=11

Leaves benchmark.json and benchmark.png in `benchmarks/<name>-<id>`, and no run.
Exit status 0: something was measured; 1: nothing.
"""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ...engine import cli, device
from ...engine.errors import UserError
from ...engine.run import Run, write_json
from ...train import refuse_nonsense

if TYPE_CHECKING:
    from .report import Report
    from .row import Row

log = logging.getLogger(__name__)

TARGETS = ("mps", "cuda", "cpu")


def benchmark(cfg: DictConfig, overrides: list[str] | None = None) -> "Report":
    """Measure the experiment that `cfg` describes on each device.

    Args:
        cfg: configs/benchmark.yaml, composed with the overrides of a train command.
        overrides: those, for the report.
    """
    refuse_nonsense(cfg)
    _refuse_nonsense(cfg.benchmark)
    # Before anything slow. The folder is named as the run, and is another one.
    name = Run.of(OmegaConf.merge(cfg, {"resume": "auto"})).folder.name  # type: ignore[arg-type]
    want, probe = device.requested(cfg), device.probe()
    targets = cfg.benchmark.targets
    if targets == "auto":
        targets = [target for target in TARGETS if target == "cpu" or getattr(probe, target)]
    from .report import Report, Unmeasured, machine, now

    rows, unmeasured = [], []
    for target in targets:
        one = replace(want, accelerator=target, devices=1, strategy="auto")
        measured = _measure(cfg, replace(one, require_accelerator=None), probe)
        if isinstance(measured, str):
            unmeasured.append(Unmeasured(target, measured))
        else:
            rows.append(measured)
    return Report(name, overrides or [], now(), machine(probe), rows, unmeasured)


def _measure(cfg: DictConfig, want: device.Requested, probe: device.Hardware) -> "Row | str":
    """The row of one device, or the sentence that says why there is none."""
    try:
        choice = device.resolve(want, probe)
        log.info(f"{choice.accelerator} ({choice.name}), {choice.precision}: {_how(cfg.benchmark)}")
        from .row import measure
        from .subject import Subject

        return measure(Subject(cfg, choice), cfg.benchmark)
    except Exception as error:  # of the device or the experiment; the other devices are measured
        told = cli.sentence(error, "benchmark")
        return told or f"{type(error).__name__}: {' '.join(str(error).split())}"


def _how(asked: Any) -> str:
    length = f"about {asked.seconds:g} s" if asked.steps == "auto" else f"{asked.steps} steps each"
    return f"three loops in {asked.rounds} rounds, {length} ..."


def _refuse_nonsense(asked: Any) -> None:
    for target in [] if asked.targets == "auto" else asked.targets:
        if target not in TARGETS:
            raise UserError(f"benchmark.targets={target} is none of {', '.join(TARGETS)}.")
    if asked.rounds < 1 or (asked.steps != "auto" and asked.steps < 1) or asked.seconds <= 0:
        raise UserError("benchmark.rounds, .steps and .seconds are more than 0.")


def main() -> None:
    def program(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        report = benchmark(cfg, list(HydraConfig.get().overrides.task))
        from . import picture
        from .report import show

        show(report)
        if not report.rows:
            sys.exit("Nothing could be measured.")
        folder = Path(cfg.benchmark.folder) / report.name
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "benchmark.json", report.as_plain())
        picture.draw(report, folder / "benchmark.png")
        log.info(f"See {folder / 'benchmark.png'}, and benchmark.json beside it.")

    cli.run(program, "benchmark")


if __name__ == "__main__":
    main()
