"""The handwritten digits as the models are fed with them, and pictures of your own."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from {{ cookiecutter.package_name }}.data.digits import DigitsDataModule, shift
from {{ cookiecutter.package_name }}.engine.errors import UserError


def digits(**settings: Any) -> DigitsDataModule:
    datamodule = DigitsDataModule(**{"batch_size": 32, **settings})
    datamodule.setup("fit")
    return datamodule


def test_the_splits_are_whole_disjoint_and_stratified() -> None:
    splits = digits().splits
    sizes = {split: len(data) for split, data in splits.items()}
    assert sizes == {"train": 1167, "val": 270, "test": 360}
    images = torch.cat([data.tensors[0].flatten(1) for data in splits.values()])
    assert len(images.unique(dim=0)) == 1797
    for data in splits.values():
        shares = data.tensors[1].bincount() / len(data)
        assert shares == pytest.approx(torch.full((10,), 0.1), abs=0.012)


def test_folds_share_the_test_split_and_validate_each_other_sample_once() -> None:
    folds = [digits(num_folds=5, fold=fold).splits for fold in range(5)]
    test = digits().splits["test"].tensors[0]
    assert all(torch.equal(fold["test"].tensors[0], test) for fold in folds)
    validated = torch.cat([fold["val"].tensors[0] for fold in folds])
    assert len(validated.unique(dim=0)) == len(validated) == 1797 - 360


def test_images_are_float32_from_0_to_1_and_targets_int64() -> None:
    inputs, targets = next(iter(digits().train_dataloader()))
    assert (inputs.shape, inputs.dtype) == ((32, 1, 8, 8), torch.float32)
    assert (inputs.min(), inputs.max()) == (0, 1)
    assert (targets.shape, targets.dtype) == ((32,), torch.int64)


def test_shift_moves_each_image_by_at_most_one_pixel() -> None:
    images = torch.zeros(200, 1, 8, 8)
    images[:, :, 4, 4] = 1
    moved = shift(images)
    assert torch.all(moved.sum((1, 2, 3)) == 1)
    rows, columns = moved[:, 0].nonzero()[:, 1:].T
    assert set(rows.tolist()) == set(columns.tolist()) == {3, 4, 5}


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"batch_size": 2000}, {"test_size": 0.9}])
def test_impossible_settings_are_refused_in_a_sentence(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        digits(**wrong)


def test_pictures_of_any_size_are_read_and_their_classes_written(tmp_path: Path) -> None:
    datamodule = digits()
    pixels = (datamodule.splits["train"].tensors[0][:3, 0].numpy() * 255).astype("uint8")
    for index, image in enumerate(pixels):
        large = Image.fromarray(image).resize((80, 80), Image.Resampling.NEAREST)
        large.save(tmp_path / f"{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    ((inputs,),) = datamodule.read_inputs(str(tmp_path))
    assert torch.allclose(inputs[:, 0] * 255, torch.from_numpy(pixels).float(), atol=1)
    datamodule.write_predictions([torch.eye(10)[:3]], tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = [(row["input"], row["class"]) for row in csv.DictReader(file)]
    assert rows == [("0.png", "0"), ("1.png", "1"), ("2.png", "2")]
