"""What a picture shows can be read: every line has a name, and nothing runs out of its frame."""

import csv
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from {{ cookiecutter.package_name }}.figures import draw_curves
from {{ cookiecutter.package_name }}.sweep.results import Row
from {{ cookiecutter.package_name }}.sweep.search_picture import (
    draw_search,
)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures, in place of their files."""
    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_curves_have_one_axis_of_whole_steps_and_a_name_for_every_line(
    tmp_path: Path, drawn: list[Any]
) -> None:
    rows = [{"step": step, "train/loss": 1 / (step + 1)} for step in range(0, 1000, 10)]
    with (tmp_path / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "train/loss", "val/acc"])
        writer.writeheader()
        writer.writerows([*rows, {"step": 14, "val/acc": 0.9}])
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    loss, accuracy = drawn[0].axes
    assert loss.get_xlim() == accuracy.get_xlim()
    assert all(tick == round(tick) for tick in accuracy.get_xticks())
    assert [said.get_text() for said in loss.get_legend().texts] == ["train", "train, smoothed"]
    assert accuracy.get_lines()[0].get_linestyle() == "None"  # a single point is no line


@pytest.mark.parametrize(("keys", "count", "told"), [(2, 5, True), (2, 4, False), (1, 5, False)])
def test_importances_are_drawn_only_where_there_is_something_to_tell(
    drawn: list[Any], keys: int, count: int, told: bool
) -> None:
    names = ["optimizer.weight_decay", "optimizer.lr"][:keys]
    rows = [
        Row(number, {name: str(number) for name in names}, "finished", "runs/a", {"loss": number})
        for number in range(1, count + 1)
    ]
    draw_search(rows, "loss", True, dict.fromkeys(names, 1.0), Path("sweep.png"))
    axes = {panel.get_title(): panel for panel in drawn[0].axes}
    assert ("Importance" in axes) is told
    ticks = [label.get_text() for label in axes["Values"].get_xticklabels()]
    assert ticks == ["weight_decay", "lr"][:keys]
    if told:
        bars = axes["Importance"]
        assert {label.get_text() for label in bars.get_yticklabels()} == set(ticks)
        drawn[0].draw_without_rendering()
        frame = bars.get_window_extent()
        assert all(label.get_window_extent().x1 < frame.x1 for label in bars.texts)
