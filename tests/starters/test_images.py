"""Images of one's own are classified; a run shows what it mixes up."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine.small_runs import SMALL, Finished, compose_config
from image_project.callbacks import confusion
from image_project.data.images import read_images
from image_project.engine.errors import UserError
from image_project.engine.run import RunFolder as Run
from image_project.engine.run import run_folder
from image_project.engine.trainer import load_run
from image_project.evaluate import evaluate
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


DIGIT = Image.fromarray(
    np.kron(np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8), np.ones((4, 4), np.uint8))
)
PIXELS = np.asarray(DIGIT)


def inked(ink: str) -> Image.Image:
    """Return the digit drawn in this colour on nothing."""
    picture = Image.new("RGB", DIGIT.size, ink)
    picture.putalpha(DIGIT)
    return picture


def turned(file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    DIGIT.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)


def palette_with_alpha(file: Path) -> None:
    picture = Image.new("P", DIGIT.size)
    picture.putpalette([255] * 768)
    picture.frombytes(DIGIT.tobytes())
    picture.save(file, transparency=bytes(range(256)))


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("turned.png", turned),
        ("turned.jpg", turned),
        ("white_ink.png", lambda file: inked("white").save(file)),
        ("white_ink.webp", lambda file: inked("white").save(file, lossless=True)),
        ("palette.png", lambda file: DIGIT.convert("P").save(file)),
        ("palette_with_one_clear.gif", lambda file: DIGIT.convert("P").save(file, transparency=0)),
        ("palette_with_alpha.png", palette_with_alpha),
        ("16_bits.png", lambda file: Image.fromarray(PIXELS.astype("uint16") * 257).save(file)),
        ("16_bits.tif", lambda file: Image.fromarray(PIXELS.astype(">u2") * 257).save(file)),
        ("cmyk.jpg", lambda file: DIGIT.convert("RGB").convert("CMYK").save(file, quality=100)),
        (
            "animated.gif",
            lambda file: DIGIT.save(file, save_all=True, append_images=[DIGIT.rotate(90)]),
        ),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_any_kind_is_read_as_a_viewer_shows_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, save: Any, channels: int
) -> None:
    save(tmp_path / name)
    _, images = read_images(tmp_path / name, (channels, 8, 8))
    expected = torch.arange(0, 256, 4).view(1, 1, 8, 8).expand(1, channels, 8, 8) / 255
    tolerance = 0.05 if name == "turned.jpg" else 0.011
    torch.testing.assert_close(images, expected, atol=tolerance, rtol=0)
    assert ("has 2 pictures" in caplog.text) is (name == "animated.gif")


def test_dark_ink_on_nothing_is_read_on_white(tmp_path: Path) -> None:
    inked("black").save(tmp_path / "ink.png")
    _, (image,) = read_images(tmp_path / "ink.png", (1, 8, 8))
    torch.testing.assert_close(image[0], 1 - torch.arange(0, 256, 4).view(8, 8) / 255)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("float.tif", lambda file: Image.fromarray(PIXELS.astype("float32")).save(file)),
        ("huge.png", lambda file: Image.new("1", (20_000, 20_000)).save(file)),
        ("lab.tif", lambda file: Image.new("LAB", (8, 8)).save(file)),
        ("cut.png", lambda file: (turned(file), file.write_bytes(file.read_bytes()[:90]))),
        ("cut.jpg", lambda file: (turned(file), file.write_bytes(file.read_bytes()[:-90]))),
        ("empty.png", lambda file: file.touch()),
    ],
)
def test_a_picture_that_cannot_be_read_is_named_in_a_sentence(
    tmp_path: Path, name: str, save: Any
) -> None:
    save(tmp_path / name)
    with pytest.raises(UserError, match=name):
        read_images(tmp_path / name, (1, 8, 8))


def test_copies_that_programs_leave_in_a_folder_are_no_pictures(tmp_path: Path) -> None:
    for name in ("a.png", "b (1).png"):
        DIGIT.save(tmp_path / name)
    for name in ("._a.png", "a (Ann's conflicted copy 2026-01-02).png", "~a.png"):
        (tmp_path / name).write_bytes(b"no picture")
    assert read_images(tmp_path, (1, 8, 8))[0] == ["a.png", "b (1).png"]


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


@pytest.mark.parametrize(("num_classes", "bars"), [(30, 0), (1000, 30)])
def test_of_many_classes_the_most_frequent_mistakes_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_classes: int, bars: int
) -> None:
    titles = []
    draw = confusion._draw_mistakes
    monkeypatch.setattr(
        confusion, "_draw_mistakes", lambda *a: titles.append(draw(*a)) or titles[0]
    )
    true = np.arange(5000) % num_classes
    taken = np.where(np.arange(5000) < 4000, true, (true + 1) % num_classes)
    names = [f"$class {i}" * 20 for i in range(num_classes)]
    confusion.draw_confusion(np.stack([true, taken], 1), names, tmp_path / "confusion.png")
    assert [len(axes.patches) for axes in titles] == [bars] * bool(bars)
    with Image.open(tmp_path / "confusion.png") as picture:
        assert max(picture.size) < 4000


def test_results_are_shown_where_nothing_can_be_written(
    finished: Finished, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a disk that is read-only; root may write to any folder, but not to a file as one."""
    run = Run(shutil.copytree(finished[0].path, tmp_path / "run"))
    (run.path / "evaluate").touch()
    (run.path / "predictions.csv").mkdir()
    cfg = compose_config("evaluate", "run=latest")
    cfg.run = str(run.path)
    assert evaluate(cfg)["test/acc"] == finished[1]["test/acc"]
    assert any("evaluate cannot be written" in said for said in caplog.messages)
    np.save(tmp_path / "a.npy", np.zeros((3, 8, 8)))
    cfg = compose_config("predict", "run=latest", "input=file")
    cfg.run, cfg.input = str(run.path), str(tmp_path / "a.npy")
    caplog.set_level("INFO")
    with pytest.raises(UserError, match=r"predictions\.csv cannot be written: .* Add output=FILE"):
        predict(cfg)
    assert any("a.npy[2]: " in said for said in caplog.messages)


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
