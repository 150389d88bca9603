"""The handwritten digits, as the models are fed with them."""

import pytest
import torch
from image_project.data.digits import DigitsDataModule, shift
from image_project.engine.errors import UserError


@pytest.fixture
def digits() -> DigitsDataModule:
    datamodule = DigitsDataModule(batch_size=32)
    datamodule.setup("fit")
    return datamodule


def test_the_splits_are_whole_disjoint_and_stratified(digits: DigitsDataModule) -> None:
    sizes = {split: len(data) for split, data in digits.splits.items()}
    assert sizes == {"train": 1167, "val": 270, "test": 360}
    images = torch.cat([digits.splits[split].tensors[0].flatten(1) for split in sizes])
    assert len(images.unique(dim=0)) == 1797
    for split in sizes:
        shares = digits.splits[split].tensors[1].bincount() / sizes[split]
        assert shares == pytest.approx(torch.full((10,), 0.1), abs=0.012)


def test_folds_share_the_test_split_and_validate_each_other_sample_once(
    digits: DigitsDataModule,
) -> None:
    folds = [DigitsDataModule(batch_size=32, num_folds=5, fold=fold) for fold in range(5)]
    for fold in folds:
        fold.setup("fit")
        sizes = [len(fold.splits[split]) for split in ("train", "val", "test")]
        assert sum(sizes) == 1797
        assert abs(sizes[1] - sizes[0] / 4) <= 2
        assert torch.equal(fold.splits["test"].tensors[0], digits.splits["test"].tensors[0])
        both = torch.cat([fold.splits[split].tensors[0] for split in ("train", "val", "test")])
        assert len(both.unique(dim=0)) == 1797
        share = fold.splits["val"].tensors[1].bincount() / sizes[1]
        assert share == pytest.approx(torch.full((10,), 0.1), abs=0.02)
    validated = torch.cat([fold.splits["val"].tensors[0] for fold in folds])
    assert len(validated.unique(dim=0)) == len(validated) == 1797 - 360


def test_images_are_float32_from_0_to_1_and_targets_int64(digits: DigitsDataModule) -> None:
    inputs, targets = next(iter(digits.train_dataloader()))
    assert inputs.shape == (32, 1, 8, 8)
    assert inputs.dtype == torch.float32
    assert inputs.min() == 0
    assert inputs.max() == 1
    assert targets.shape == (32,)
    assert targets.dtype == torch.int64


def test_shift_moves_each_image_by_at_most_one_pixel() -> None:
    images = torch.zeros(200, 1, 8, 8)
    images[:, :, 4, 4] = 1
    moved = shift(images)
    assert moved.shape == images.shape
    assert torch.all(moved.sum((1, 2, 3)) == 1)
    rows, columns = moved[:, 0].nonzero()[:, 1:].T
    assert set(rows.tolist()) == set(columns.tolist()) == {3, 4, 5}


def test_shift_keeps_the_channels_apart() -> None:
    images = torch.stack([torch.zeros(8, 8), torch.ones(8, 8)]).expand(5, 2, 8, 8)
    assert torch.all(shift(images)[:, 0] == 0)
    assert torch.all(shift(images)[:, 1, 1:-1, 1:-1] == 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": 2000},
        {"batch_size": 8, "test_size": 0.9},
        {"batch_size": 8, "num_folds": 5, "fold": 5},
    ],
)
def test_impossible_settings_are_refused_in_a_sentence(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError):
        DigitsDataModule(**wrong).setup("fit")
