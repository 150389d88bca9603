"""sweep.png of a search: how it went, what mattered, and which values were good."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from .results import Row
from .scale import Scale

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"  # of Okabe and Ito, told apart by everybody
ON_TOP: dict[str, Any] = {"zorder": 3, "clip_on": False}
BELOW = -0.17  # a panel, for its legend
BARS = 12  # as many importances fit below each other
ENOUGH = 5  # finished runs to tell importances by


def draw_search(
    rows: Sequence[Row], metric: str, is_min: bool, importances: Mapping[str, float], picture: Path
) -> None:
    """History, importances where there are enough runs to tell them, and parallel coordinates.

    Args:
        rows: those with a value of `metric`, in the order in which they were begun.
        metric: `best val/loss`.
        is_min: a lower value is better.
        importances: how much of the differences each key explains, from 0 to 1.
        picture: the PNG to write.
    """
    keys = list(rows[0].point)
    finished = [row for row in rows if row.state == "finished"]
    says = bool(importances) and len(keys) > 1 and len(finished) >= ENOUGH
    widths = [4.6, *[3.4] * says, max(4.6, 1.5 * (len(keys) + 1))]
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08)
    figure = Figure(figsize=(sum(widths), 4.4), layout=layout)
    history, *bars, lines = figure.subplots(1, len(widths), width_ratios=widths)
    values = np.array([row.metrics[metric] for row in finished])
    limits = _without_outliers(values, is_min)
    _draw_history(history, rows, metric, is_min, limits)
    for axes in bars:
        _draw_importances(axes, importances)
    _draw_coordinates(lines, finished, metric, is_min, limits)
    figure.savefig(picture, dpi=150)


def _without_outliers(values: np.ndarray, is_min: bool) -> tuple[float, float]:
    """What to show: a few runs that came to nothing would press all others into one line."""
    low, high = float(values.min()), float(values.max())
    middle, quarter = np.median(values), np.quantile(values, 0.75 if is_min else 0.25)
    if is_min:
        high = min(high, float(middle + 4 * (quarter - middle)) or high)
    else:
        low = max(low, float(middle - 4 * (middle - quarter)) or low)
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def _draw_history(
    axes: Axes, rows: Sequence[Row], metric: str, is_min: bool, limits: tuple[float, float]
) -> None:
    for state, colour, mark in (("finished", BLUE, "o"), ("pruned", GREY, "x")):
        of_state = [row for row in rows if row.state == state]
        values = np.clip([row.metrics[metric] for row in of_state], *limits)
        if of_state:
            numbers = [row.number for row in of_state]
            axes.scatter(numbers, values, color=colour, marker=mark, s=26, label=state, **ON_TOP)
    finished = [row for row in rows if row.state == "finished"]
    accumulate = (np.minimum if is_min else np.maximum).accumulate
    best = accumulate([row.metrics[metric] for row in finished])
    numbers = [row.number for row in finished]
    axes.step(numbers, best, where="post", color=ORANGE, label="best so far")
    axes.set(title="History", xlabel="run", ylabel=metric, ylim=limits)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, BELOW), ncols=3, frameon=False)


def _draw_importances(axes: Axes, importances: Mapping[str, float]) -> None:
    ordered = sorted(importances.items(), key=lambda pair: pair[1])[-BARS:]
    axes.set(title="Importance", xlabel="share of the differences", xlim=(0, 1.35))
    axes.set_xticks((0, 0.5, 1))  # beyond them is room for a label of 100%
    keys, shares = zip(*ordered, strict=True)
    names = _names(list(importances))
    bars = axes.barh([names[key] for key in keys], shares, color=BLUE, height=0.6)
    axes.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3)
    room = max(0, 3 - len(ordered)) / 2  # or one bar would fill the panel
    axes.set_ylim(-0.6 - room, len(ordered) - 0.4 + room)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3, axis="x")


def _draw_coordinates(
    axes: Axes, rows: Sequence[Row], metric: str, is_min: bool, limits: tuple[float, float]
) -> None:
    """A line a run, through its values to its result; the better ones are on top."""
    keys = list(rows[0].point)
    scales = [Scale([row.point[key] for row in rows]) for key in keys]
    norm = Normalize(*limits)
    shades = colormaps["viridis_r" if is_min else "viridis"]
    for row in sorted(rows, key=lambda row: row.metrics[metric], reverse=is_min):
        result = norm(float(np.clip(row.metrics[metric], *limits)))
        heights = [scale.height(row.point[key]) for key, scale in zip(keys, scales, strict=True)]
        axes.plot([*heights, result], color=shades(result), linewidth=1.3, alpha=0.75)
    axes.plot([*heights, result], color=ORANGE, linewidth=2.5, label="the best run")
    for name, result in (("better", 0.0 if is_min else 1.0), ("worse", 1.0 if is_min else 0.0)):
        axes.plot([], [], color=shades(result), label=name)
    for position, scale in enumerate(scales):
        _draw_axis(axes, position, scale)
    axes.set(title="Values", ylim=(-0.04, 1.04), xlim=(-0.45, len(keys)))
    axes.set_xticks(range(len(keys)), list(_names(keys).values()), fontsize=9)
    axes.tick_params(axis="x", length=0)
    axes.yaxis.tick_right()
    ticks = [t for t in MaxNLocator(5).tick_values(*limits) if limits[0] <= t <= limits[1]]
    axes.set_yticks([norm(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_label_position("right")
    axes.set_ylabel(metric)
    axes.spines[["top", "bottom", "left"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, BELOW), ncols=3, frameon=False)


def _names(keys: Sequence[str]) -> dict[str, str]:
    """Of each key its last word, or long ones would run into each other; if it is the only such."""
    last = [key.rpartition(".")[2] for key in keys]
    return {
        key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)
    }


def _draw_axis(axes: Axes, position: int, scale: Scale) -> None:
    axes.axvline(position, color="black", linewidth=0.8)
    for height, label in scale.ticks:
        axes.annotate(
            label,
            (position, height),
            xytext=(-4, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
        )
