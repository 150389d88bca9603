"""Images of one's own are classified; a run shows what it mixes up."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.small_runs import SMALL, Finished, compose_config
from image_project.engine.errors import UserError
from image_project.engine.run import RunFolder as Run
from image_project.engine.run import run_folder
from image_project.engine.trainer import load_run
from image_project.predict import predict
from image_project.tasks.classification import (
    ClassificationTask,
)
from image_project.train import train
from PIL import Image


def predicted(run: Run, source: Path, output: Path) -> list[dict[str, str]]:
    # A path of this machine may hold what Hydra reads as its grammar, so it goes in unparsed.
    cfg = compose_config("predict", "run=latest", "input=file")
    cfg.run, cfg.input, cfg.output = str(run.path), str(source), str(output)
    with predict(cfg).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_notebook_gets_task_and_datamodule_in_one_call(finished: Finished) -> None:
    run, _ = finished
    task, datamodule = load_run(str(run.path))
    datamodule.setup("test")
    inputs, targets = next(iter(datamodule.test_dataloader()))
    with torch.no_grad():
        assert (task(inputs).argmax(1) == targets).float().mean() > 0.7


def test_predict_reads_a_picture_of_any_size(finished: Finished, tmp_path: Path) -> None:
    run, _ = finished
    _, datamodule = load_run(str(run.path))
    datamodule.setup("test")
    inputs, targets = datamodule.splits["train"].tensors
    for index in range(8):
        pixels = (inputs[index, 0].numpy() * 255).astype("uint8")
        picture = Image.fromarray(pixels).resize((80, 80), Image.Resampling.NEAREST)
        picture.save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    rows = predicted(run, tmp_path, tmp_path / "out" / "classes.csv")
    assert [row["input"] for row in rows] == [f"{index}.png" for index in range(8)]
    right = [row["class"] == str(int(target)) for row, target in zip(rows, targets, strict=False)]
    assert sum(right) >= 6
    for row in rows:
        probabilities = [float(row[f"p({digit})"]) for digit in range(10)]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)
    (row,) = predicted(run, tmp_path / "3.png", tmp_path / "one.csv")
    assert row["class"] == rows[3]["class"]
    assert float(row["p(5)"]) == pytest.approx(float(rows[3]["p(5)"]), abs=1e-4)


def test_predict_reads_an_array(finished: Finished, tmp_path: Path) -> None:
    run, _ = finished
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8), dtype=np.float64))
    rows = predicted(run, tmp_path / "a.npy", tmp_path / "a.csv")
    assert [row["input"] for row in rows] == ["a.npy[0]", "a.npy[1]", "a.npy[2]"]


def write(path: Path, content: Any) -> Path:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("broken.png", b"no picture", "cannot be read as an image"),
        ("broken.npy", b"no array", "cannot be read as an array"),
        ("shape.npy", np.zeros((2, 9, 9)), r"takes \(N, 8, 8\) or \(N, 1, 8, 8\)"),
        ("range.npy", np.full((2, 8, 8), 16.0), "outside 0 to 1"),
        ("nan.npy", np.full((2, 8, 8), np.nan), "outside 0 to 1"),
        ("objects.npy", np.array([{}], dtype=object), "cannot be read as an array"),
    ],
)
def test_predict_says_what_is_wrong_with_its_input(
    finished: Finished, tmp_path: Path, name: str, content: Any, says: str
) -> None:
    source = write(tmp_path / name, content)
    with pytest.raises(UserError, match=says):
        predicted(finished[0], source, tmp_path / "out.csv")


class PlainTask(ClassificationTask):
    """A user's own task, which returns no logits to count."""

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")


def test_a_task_that_returns_no_logits_trains_to_the_end(tmp_path: Path) -> None:
    own = (f"task._target_={__name__}.PlainTask", f"runs_dir={tmp_path.as_posix()}")
    cfg = compose_config("train", *SMALL, *own, "show=default")
    assert "test/loss" in train(cfg)
    assert (run_folder(cfg).path / "curves.png").is_file()
    assert not (run_folder(cfg).path / "confusion.png").exists()
