"""What a sweep leaves: a table, sweep.json, and sweep.png."""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock
from omegaconf import DictConfig

from ...engine.files import on_this_machine
from ...engine.run import write_json
from ..runs import columns
from .job import Job
from .means import Mean, means

log = logging.getLogger(__name__)


@dataclass
class Row:
    """A run of the sweep, as it stands now. States as in job.py."""

    number: int
    point: Mapping[str, str]
    state: str
    run: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    why: str = ""

    @classmethod
    def of(cls, job: Job) -> "Row":
        state = job.state
        return cls(job.number, job.point, state, str(job.run.folder), job.metrics, job.why)


class Results(Protocol):
    """What is written down of a sweep."""

    cfg: DictConfig
    folder: Path
    repeats: Sequence[str]  # keys that do not set a point apart: seed, data.fold

    def rows(self) -> list[Row]: ...

    def importances(self) -> Mapping[str, float]: ...


def folder_of(cfg: DictConfig, name: str, deciding: Any) -> Path:
    """The same for the same sweep, so that the same command finds it again."""
    digest = hashlib.sha256(json.dumps([deciding, cfg.monitor, cfg.mode], sort_keys=True).encode())
    return on_this_machine(cfg.runs_dir) / "sweeps" / f"{name}-{digest.hexdigest()[:8]}"


def describe(point: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in point.items())


def best_first(rows: Iterable[Row], cfg: DictConfig) -> list[Row]:
    """Those with a value of the monitored metric, and then the others."""
    sign = 1 if cfg.mode == "min" else -1

    def order(row: Row) -> tuple[bool, bool, float, int]:
        value = row.metrics.get(f"best {cfg.monitor}", math.nan)
        return row.state != "finished", math.isnan(value), sign * value, row.number

    return sorted(rows, key=order)


def shown(cfg: DictConfig, rows: Sequence[Row]) -> list[str]:
    """The monitored metric and those of the test, as `train` orders them."""
    best = f"best {cfg.monitor}"
    names = (name for row in rows for name in row.metrics if name.startswith("test/"))
    return list(dict.fromkeys((best, *names)))


def write(results: Results, rows: Sequence[Row]) -> None:
    """sweep.json and sweep.png in the sweep's folder."""
    cfg = results.cfg
    finished = [row for row in best_first(rows, cfg) if row.state == "finished"]
    said = {
        "sweep": cfg.sweep.method,
        "monitor": cfg.monitor,
        "mode": cfg.mode,
        "runs": [asdict(row) for row in rows],
    }
    if results.repeats:
        said["means"] = [asdict(mean) for mean in means_of(results, rows)]
    elif finished:
        said["best"] = asdict(finished[0])
    with FileLock(results.folder / "results.lock"):  # another worker may be at its end, too
        write_json(results.folder / "sweep.json", said)
        if finished:
            _draw(results, rows, finished)


def _draw(results: Results, rows: Sequence[Row], finished: Sequence[Row]) -> None:
    metric, picture = f"best {results.cfg.monitor}", results.folder / "sweep.png"
    if results.repeats:
        from .means_picture import draw_means  # matplotlib takes a second

        draw_means(finished, means_of(results, rows), shown(results.cfg, finished), picture)
        return
    from .search_picture import draw_search

    judged = [row for row in rows if math.isfinite(row.metrics.get(metric, math.nan))]
    if judged:
        draw_search(judged, metric, results.cfg.mode == "min", results.importances(), picture)


def means_of(results: Results, rows: Sequence[Row]) -> list[Mean]:
    """Over the finished repeats of each point. Folds share samples, so they give no interval."""
    points: dict[tuple[tuple[str, str], ...], list[Mapping[str, float]]] = {}
    for row in rows:
        if row.state == "finished":
            apart = tuple(pair for pair in row.point.items() if pair[0] not in results.repeats)
            points.setdefault(apart, []).append(row.metrics)
    independent = results.cfg.sweep.method == "seeds"
    return [
        mean
        for point, metrics in points.items()
        for mean in means(dict(point), metrics, independent)
    ]


def show(results: Results, rows: Sequence[Row]) -> None:
    """The table, the best run first, and the means where runs are repeated."""
    keys = list(dict.fromkeys(key for row in rows for key in row.point))
    ordered = rows if results.repeats else best_first(rows, results.cfg)
    names = shown(results.cfg, rows)
    table = [[*keys, "state", *names, "run"]]
    for row in ordered:
        values = [number(row.metrics.get(name)) for name in names]
        table.append([*(row.point.get(key, "") for key in keys), row.state, *values, row.run])
    log.info("\n" + columns(table))
    for row in ordered:
        if row.why:
            log.info(f"failed: {describe(row.point)}: {row.why}")
    # What is the same in every run, such as a baseline, is no result of them.
    of_points = [mean for mean in means_of(results, rows) if mean.metric in names or mean.deviation]
    if results.repeats and of_points:
        log.info("\n" + columns(_table(of_points)))
    there = [results.folder / name for name in ("sweep.json", "sweep.png")]
    log.info("\n" + "\n".join(str(path) for path in there if path.is_file()))


def _table(of_points: Sequence[Mean]) -> list[list[str]]:
    keys, has_interval = [*of_points[0].point], of_points[0].interval is not None
    head = [*keys, "metric", "mean", "deviation"]
    table = [[*head, *["95% interval of the mean"] * has_interval, "runs"]]
    for mean in of_points:
        line = [*mean.point.values(), mean.metric, number(mean.mean), number(mean.deviation)]
        if mean.interval is not None:
            line.append(" to ".join(map(number, mean.interval)))
        table.append([*line, str(mean.num_runs)])
    return table


def number(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
