"""sweep.png of repeated runs: each of them, their mean, and how far it can be trusted."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from .means import Mean
from .results import Row, describe
from .search_picture import BLUE, ORANGE


def draw_means(
    rows: Sequence[Row], means: Sequence[Mean], metrics: Sequence[str], picture: Path
) -> None:
    """A panel for each metric, a line in it for each point.

    Args:
        rows: the finished ones.
        means: of all metrics.
        metrics: which to draw.
        picture: the PNG to write.
    """
    points = list({describe(mean.point): mean.point for mean in means}.items())
    size = (1 + 4.2 * len(metrics), 1.6 + 0.75 * len(points))
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.08)
    figure = Figure(figsize=size, layout=layout)
    panels = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for place, (_, point) in enumerate(points):
            (mean,) = (mean for mean in means if mean.metric == metric and mean.point == point)
            values = [row.metrics[metric] for row in rows if row.point.items() >= point.items()]
            axes.scatter(values, [place] * len(values), color=BLUE, s=30, alpha=0.6, linewidths=0)
            spread = mean.deviation or 0.0
            low, high = mean.interval or (mean.mean - spread, mean.mean + spread)
            ends = [[mean.mean - low], [high - mean.mean]]
            above = place - 0.25
            axes.errorbar(mean.mean, above, xerr=ends, fmt="D", color=ORANGE, capsize=4)
            label = {"ha": "center", "va": "bottom", "color": ORANGE}
            axes.text(mean.mean, above - 0.1, f"{mean.mean:.4f}", **label)
        axes.set(xlabel=metric, ylim=(len(points) - 0.6, -0.7))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="y", length=0)
        axes.grid(alpha=0.3, axis="x")
        axes.spines[["top", "right", "left"]].set_visible(False)
    panels[0].set_yticks(range(len(points)), [name or "all runs" for name, _ in points])
    what = "its 95% interval" if means[0].interval else "the deviation of a run"
    runs = f"{means[0].num_runs} runs{' each' * (len(points) > 1)}"
    figure.suptitle(f"Blue: {runs}; orange: the mean and {what}", fontsize=11)
    figure.savefig(picture, dpi=150)
