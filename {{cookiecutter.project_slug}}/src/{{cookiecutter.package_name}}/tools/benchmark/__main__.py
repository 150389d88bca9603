"""Measure how fast an experiment trains on each device here, compared with a bare loop.

    python -m <package> benchmark                          # the default, on every device here
    python -m <package> benchmark experiment=NAME          # the same overrides as train
    python -m <package> benchmark benchmark.targets=[cpu] benchmark.rounds=11

Writes benchmarks/<name>-<id>/benchmark.json, and makes no run.
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
from ...engine.run import run_folder, validate, write_json

if TYPE_CHECKING:
    from .measure import Row
    from .report import Report

log = logging.getLogger(__name__)

TARGETS = ("mps", "cuda", "cpu")


def benchmark(cfg: DictConfig, overrides: list[str] | None = None) -> "Report":
    """Measure the experiment that `cfg` describes on each device.

    Args:
        cfg: configs/benchmark.yaml, composed with the overrides of a train command.
        overrides: those, for the report.
    """
    validate(cfg)
    _validate(cfg.benchmark)
    # Before anything slow. The report is named like the run, but lies elsewhere.
    name = run_folder(OmegaConf.merge(cfg, {"resume": "auto"})).path.name  # type: ignore[arg-type]
    requested, hardware = device.requested(cfg), device.probe()
    targets = cfg.benchmark.targets
    if targets == "auto":
        targets = [target for target in TARGETS if target == "cpu" or getattr(hardware, target)]
    from .report import Report, Unmeasured, machine, now

    rows, unmeasured = [], []
    for target in targets:
        one = replace(requested, accelerator=target, devices=1, strategy="auto")
        measured = _measure(cfg, replace(one, require_accelerator=None), hardware)
        if isinstance(measured, str):
            unmeasured.append(Unmeasured(target, measured))
        else:
            rows.append(measured)
    return Report(name, overrides or [], now(), machine(hardware), rows, unmeasured)


def _measure(
    cfg: DictConfig, requested: device.Requested, hardware: device.Hardware
) -> "Row | str":
    """Return the row of one device, or the sentence that says why there is none."""
    try:
        settings = device.resolve(requested, hardware)
        where = f"{settings.accelerator} ({settings.name}), {settings.precision}"
        log.info(f"{where}: {_plan(cfg.benchmark)}")
        from .measure import measure
        from .subject import Subject

        return measure(Subject(cfg, settings), cfg.benchmark)
    except Exception as error:  # of this device or of the experiment; other devices may do better
        sentence = cli.sentence(error, "benchmark")
        return sentence or f"{type(error).__name__}: {' '.join(str(error).split())}"


def _plan(asked: Any) -> str:
    length = f"about {asked.seconds:g} s" if asked.steps == "auto" else f"{asked.steps} steps each"
    return f"three loops in {asked.rounds} rounds, {length} ..."


def _validate(asked: Any) -> None:
    for target in [] if asked.targets == "auto" else asked.targets:
        if target not in TARGETS:
            raise UserError(f"benchmark.targets={target} must be of: {', '.join(TARGETS)}.")
    if asked.rounds < 1 or (asked.steps != "auto" and asked.steps < 1) or asked.seconds <= 0:
        raise UserError("benchmark.rounds, .steps and .seconds must be more than 0.")


def main() -> None:
    def program(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        report = benchmark(cfg, list(HydraConfig.get().overrides.task))
        from .report import show

        show(report)
        if not report.rows:
            sys.exit("Nothing could be measured.")
        file = Path(cfg.benchmark.folder) / report.name / "benchmark.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, report.as_plain())
        log.info(f"See {file}.")

    cli.run(program, "benchmark")


if __name__ == "__main__":
    main()
