"""benchmark.png: for each device how fast this project is, and how fast the bare loop."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .report import Report, short
from .row import Row, Speed

COLOURS = {"this project": "#0072B2", "bare loop": "#767676"}
NOISE = "#DFE7EE"  # pale, since it lies behind all


def draw(report: Report, picture: Path) -> None:
    """Draw every measured device, on an axis of its own that begins at zero.

    Args:
        report: with one row at least.
        picture: the PNG to write.
    """
    count = len(report.rows)
    layout = ConstrainedLayoutEngine(h_pad=0.11, w_pad=0.11)
    figure = Figure(figsize=(10, 1.9 + 2.4 * count), layout=layout)
    name = report.name.rpartition("-")[0]
    figure.suptitle(f"Training speed: {name}", x=0.012, ha="left", fontsize=20, weight="bold")
    panels = figure.subplots(count, 2, squeeze=False, width_ratios=(5, 1))
    for (axes, beside), row in zip(panels, report.rows, strict=True):
        _panel(axes, row)
        _ratio(beside, row)
    figure.supxlabel(_below(report), x=0.012, ha="left", fontsize=11, color="#444444")
    figure.savefig(picture, dpi=150)


def _panel(axes: Any, row: Row) -> None:
    bare, noise = row.bare.rate.median, row.comparison.noise
    axes.axvspan(bare * noise.low, bare * noise.high, color=NOISE, lw=0, zorder=0)
    furthest = max(row.project.rate.high, row.bare.rate.high, bare * noise.high)
    axes.set(xlim=(0, furthest * 1.03), ylim=(-0.5, 1.5))
    for place, name, speed in ((1, "this project", row.project), (0, "bare loop", row.bare)):
        _bar(axes, place, name, speed, furthest)
    axes.set_yticks((1, 0), labels=COLOURS, fontsize=14)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=12)
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: short(value) if value else "0")
    axes.set_xlabel(f"{row.unit} a second", fontsize=13)
    axes.set_title(_heading(row), fontsize=13, loc="left")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _bar(axes: Any, place: int, name: str, speed: Speed, furthest: float) -> None:
    rate = speed.rate
    axes.barh(place, rate.median, height=0.66, color=COLOURS[name], zorder=1)
    reach = [[rate.median - rate.low], [rate.high - rate.median]]
    axes.errorbar(rate.median, place, xerr=reach, color="black", capsize=5, lw=1.6, zorder=2)
    fits = rate.median > furthest / 4
    where, colour = (0, "white") if fits else (rate.high, "black")
    said = f"  {short(rate.median)}"
    axes.text(where, place, said, va="center", color=colour, fontsize=17, weight="bold", zorder=3)


def _ratio(axes: Any, row: Row) -> None:
    axes.set_axis_off()
    said, of = f"{row.comparison.ratio.median:.2f}x", "of the bare loop"
    match row.comparison.verdict:
        case "a tie":
            said, of = "a tie", f"{said}, within noise"
        case "unknown":
            of = f"{of},\nin too few rounds"
    axes.text(0.5, 0.52, said, ha="center", fontsize=26, weight="bold")
    axes.text(0.5, 0.34, of, ha="center", fontsize=12)


def _heading(row: Row) -> str:
    parts = [f"{row.choice.accelerator.upper()}: {row.choice.name}", row.precision]
    parts.append(f"{short(row.units_per_step)} {row.unit} a step")
    if row.mfu is not None:
        parts.append(f"{row.mfu:.1%} MFU")
    return ", ".join(parts)


def _below(report: Report) -> str:
    has, rounds = report.machine, len(report.rows[0].rounds)
    threads = f"{has['threads']} thread{'s' * (has['threads'] > 1)}"
    return (
        f"Median of {rounds} rounds by turns; black: from the 10th to the 90th percentile;"
        " pale band: what two equal loops differ by.\n"
        f"PyTorch {has['torch']}, Lightning {has['lightning']}; {has['cpu']}, {threads};"
        f" {report.name}, {report.made[:10]}"
    )
