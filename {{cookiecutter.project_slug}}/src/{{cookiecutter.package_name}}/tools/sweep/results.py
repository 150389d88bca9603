"""What a sweep leaves: a table on the screen, and sweep.json."""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig

from ...engine.files import Lock, on_this_machine
from ...engine.run import write_json
from ..runs import columns
from .means import Mean, means

log = logging.getLogger(__name__)


@dataclass
class Row:
    """A run of the sweep, as it stands now: one of the states in job.py."""

    number: int
    overrides: Mapping[str, str]
    state: str
    run: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    why: str = ""


class Results(Protocol):
    """What the results of a sweep are made from.

    Attributes:
        repeats: the keys over which results are averaged: seed, data.fold.
    """

    cfg: DictConfig
    folder: Path
    repeats: Sequence[str]

    def draw(self) -> None:
        """Write pictures to the folder, where there is something to draw."""


def sweep_folder(cfg: DictConfig, name: str, deciding: Any) -> Path:
    """Return the same folder for the same sweep, so that the same command finds it again."""
    digest = hashlib.sha256(json.dumps([deciding, cfg.monitor, cfg.mode], sort_keys=True).encode())
    return on_this_machine(cfg.runs_dir) / "sweeps" / f"{name}-{digest.hexdigest()[:8]}"


def describe(overrides: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in overrides.items())


def best_first(rows: Iterable[Row], cfg: DictConfig) -> list[Row]:
    """Return the rows by the monitored metric; those without a value of it come last."""
    sign = 1 if cfg.mode == "min" else -1

    def order(row: Row) -> tuple[bool, bool, float, int]:
        value = row.metrics.get(f"best {cfg.monitor}", math.nan)
        return row.state != "finished", math.isnan(value), sign * value, row.number

    return sorted(rows, key=order)


def write(results: Results, rows: Sequence[Row]) -> None:
    """Write sweep.json and the pictures to the sweep's folder."""
    cfg = results.cfg
    finished = [row for row in best_first(rows, cfg) if row.state == "finished"]
    written: dict[str, Any] = {
        "sweep": cfg.sweep.method,
        "monitor": cfg.monitor,
        "mode": cfg.mode,
        "runs": [asdict(row) for row in rows],
    }
    if results.repeats:
        written["means"] = [asdict(mean) for mean in means_of(results, rows)]
    elif finished:
        written["best"] = asdict(finished[0])
    with Lock(results.folder / "results.lock"):  # another worker may end at this moment, too
        write_json(results.folder / "sweep.json", written)
        results.draw()


def means_of(results: Results, rows: Sequence[Row]) -> list[Mean]:
    """Average the finished repeats of each choice. Folds share samples: they give no interval."""
    groups: dict[tuple[tuple[str, str], ...], list[Mapping[str, float]]] = {}
    for row in rows:
        if row.state == "finished":
            pairs = row.overrides.items()
            common = tuple(pair for pair in pairs if pair[0] not in results.repeats)
            groups.setdefault(common, []).append(row.metrics)
    independent = results.cfg.sweep.method == "seeds"
    return [
        mean
        for common, metrics in groups.items()
        for mean in means(dict(common), metrics, independent=independent)
    ]


def show(results: Results, rows: Sequence[Row]) -> None:
    """Log the table, the best run first, and the means where runs are repeated."""
    keys = list(dict.fromkeys(key for row in rows for key in row.overrides))
    ordered = rows if results.repeats else best_first(rows, results.cfg)
    names = _shown(results.cfg, rows)
    table = [[*keys, "state", *names, "run"]]
    for row in ordered:
        values = [_number(row.metrics.get(name)) for name in names]
        table.append([*(row.overrides.get(key, "") for key in keys), row.state, *values, row.run])
    log.info("\n" + columns(table))
    for row in ordered:
        if row.why:
            log.info(f"failed: {describe(row.overrides)}: {row.why}")
    # What is the same in every run, such as a baseline, is no result of the runs.
    shown = [mean for mean in means_of(results, rows) if mean.metric in names or mean.deviation]
    if results.repeats and shown:
        log.info("\n" + columns(_table(shown)))
    files = sorted(results.folder.glob("*.png"))
    log.info("\n" + "\n".join(str(path) for path in [results.folder / "sweep.json", *files]))


def _shown(cfg: DictConfig, rows: Sequence[Row]) -> list[str]:
    """Return the monitored metric and those of the test, in the order of `train`."""
    tested = (name for row in rows for name in row.metrics if name.startswith("test/"))
    return list(dict.fromkeys((f"best {cfg.monitor}", *tested)))


def _table(shown: Sequence[Mean]) -> list[list[str]]:
    keys, has_interval = [*shown[0].overrides], shown[0].interval is not None
    head = [*keys, "metric", "mean", "deviation"]
    table = [[*head, *["95% interval of the mean"] * has_interval, "runs"]]
    for mean in shown:
        line = [*mean.overrides.values(), mean.metric, _number(mean.mean), _number(mean.deviation)]
        if mean.interval is not None:
            line.append(" to ".join(map(_number, mean.interval)))
        table.append([*line, str(mean.num_runs)])
    return table


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
