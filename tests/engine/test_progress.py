"""What a run shows: the bar of a terminal, and the curves that it leaves."""

import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from image_project.callbacks.curves import draw_curves
from image_project.engine.report.progress import Bar, EpochLines
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from matplotlib.figure import Figure
from PIL import Image

FEW = {"val/loss": 3.0584, "val/bits_per_byte": 4.4123}
MANY = {f"val/metric_{number}": 0.5 for number in range(9)}


@pytest.mark.parametrize("metrics", [FEW, MANY], ids=["few", "many"])
def test_the_bar_is_one_line_of_a_narrow_terminal(
    metrics: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bar = Bar()
    trainer = L.Trainer(callbacks=[bar], logger=False, enable_checkpointing=False)
    trainer.state.fn = TrainerFn.FITTING
    bar.on_train_start(trainer, L.LightningModule())
    assert bar.progress is not None
    assert bar._metric_component is not None
    bar.train_progress_bar_id = bar._add_task(1200, "Epoch 30/30")
    bar._metric_component.update(metrics)
    (line,) = bar.progress.console.render_lines(bar.progress.get_renderable())
    bar.teardown(trainer, L.LightningModule(), "fit")
    text = "".join(part.text for part in line)
    assert len(text) == 80
    assert "Epoch 30/30" in text
    assert "0/1200" in text
    if metrics == FEW:
        assert "val/loss 3.058 val/bits_per_byte 4.412" in text
    else:
        assert "val/metric_0 0.500" in text
        assert "…" in text


@pytest.mark.parametrize("kind", [Bar, EpochLines])
def test_ours_has_all_that_lightnings_bar_has(kind: type[ProgressBar]) -> None:
    """A LearningRateFinder disables it, enables it, and prints by it."""
    bar = kind()
    trainer = L.Trainer(callbacks=[bar], logger=False, enable_checkpointing=False)
    bar.setup(trainer, L.LightningModule(), "fit")
    bar.disable()
    bar.enable()
    bar.print("found")
    assert bar.get_metrics(trainer, L.LightningModule()) == {}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures, in place of their files."""
    figures: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def write(path: Path, rows: list[dict[str, float]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_curves_have_one_axis_of_whole_steps_and_a_name_for_every_line(
    tmp_path: Path, drawn: list[Any]
) -> None:
    rows = [{"step": step, "train/loss": 1 / (step + 1)} for step in range(0, 1000, 10)]
    metrics = write(tmp_path / "metrics.csv", [*rows, {"step": 14, "val/acc": 0.9}])
    draw_curves(metrics, tmp_path / "curves.png")
    loss, accuracy = drawn[0].axes
    assert loss.get_xlim() == accuracy.get_xlim()
    assert all(tick == round(tick) for tick in accuracy.get_xticks())
    assert [said.get_text() for said in loss.get_legend().texts] == ["train", "train, smoothed"]
    assert accuracy.get_lines()[0].get_linestyle() == "None"  # a single point is no line


def test_a_baseline_is_a_line_in_the_curves(tmp_path: Path, drawn: list[Any]) -> None:
    rows = [{"step": step, "val/loss": 1.0, "val/bits": 2.0} for step in range(3)]
    metrics = write(tmp_path / "metrics.csv", [{"step": 0, "baseline/val_bits": 2.5}, *rows])
    draw_curves(metrics, tmp_path / "curves.png")
    loss, bits = ([line.get_label() for line in axes.lines] for axes in drawn[0].axes)
    assert "val, baseline" in bits
    assert "val, baseline" not in loss


def test_many_metrics_of_any_name_make_a_picture_of_bounded_size(tmp_path: Path) -> None:
    """Matplotlib would take what is between two $ for a formula, and refuse 2^16 pixels."""
    metrics = write(
        tmp_path / "metrics.csv", [{"step": 0, **{f"val/$\\{i}$": 1 for i in range(99)}}]
    )
    draw_curves(metrics, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert max(picture.size) < 4000


def test_a_metric_of_steps_and_epochs_is_one_panel(tmp_path: Path, drawn: list[Any]) -> None:
    """`self.log("train/loss", loss, on_step=True, on_epoch=True)` names it in three ways."""
    rows: list[dict[str, float]] = [{"step": step, "train/loss_step": 1.0} for step in range(5)]
    metrics = write(
        tmp_path / "metrics.csv",
        [*rows, {"step": 4, "train/loss_epoch": 1.0, "val/loss": 1.0}],
    )
    draw_curves(metrics, tmp_path / "curves.png")
    assert [axes.get_title() for axes in drawn[0].axes] == ["Loss"]
