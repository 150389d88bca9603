"""The 1,797 real handwritten digits that ship with scikit-learn."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ..engine.errors import UserError
from .images import read_images, write_predictions


class DigitsDataModule(L.LightningDataModule):
    """Images (batch, 1, 8, 8), float32 from 0 to 1, and targets (batch,), int64; stratified splits.

    Args:
        batch_size: samples a step and device.
        val_size: fraction of the samples for validation.
        test_size: fraction of the samples for testing.
        split_seed: draws the splits, independent of `seed`: runs with different seeds share them.
        num_folds: for cross-validation, into how many parts all but the test samples are split;
            `val_size` has no meaning then.
        fold: which of these parts is for validation, from 0.
        augment: move each training image by up to one pixel in each direction.
    """

    image_shape = (1, 8, 8)  # channels, height, width: what `predict` resizes to
    class_names = tuple("0123456789")
    predictions_file = "predictions.csv"  # of `predict`, in the run's folder

    def __init__(
        self,
        batch_size: int,
        *,
        val_size: float = 0.15,
        test_size: float = 0.2,
        split_seed: int = 42,
        num_folds: int | None = None,
        fold: int = 0,
        augment: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size} is too small. Use 1 or more.")
        if val_size <= 0 or test_size <= 0 or val_size + test_size >= 1:
            raise UserError(
                "data.val_size and data.test_size must be fractions that leave some to train on."
            )
        if not 0 <= split_seed < 2**32:
            raise UserError(f"data.split_seed={split_seed} must be from 0 to {2**32 - 1}.")
        if not (fold == 0 if num_folds is None else num_folds >= 2 and 0 <= fold < num_folds):
            raise UserError(
                f"data.num_folds={num_folds} has no data.fold={fold}: folds count from 0."
            )
        self.batch_size = batch_size
        self.val_size = val_size
        self.test_size = test_size
        self.split_seed = split_seed
        self.num_folds = num_folds
        self.fold = fold
        self.augment = augment
        self.splits: dict[str, TensorDataset] = {}
        self.names: list[str] = []  # of what `predict` reads

    def setup(self, stage: str) -> None:
        if self.splits:
            return
        # Imported here, because it takes two seconds that no other command should pay.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        pixels, digits = load_digits(return_X_y=True)  # float64 (1797, 64) from 0 to 16; int64
        rest, test = train_test_split(
            range(len(digits)),
            test_size=self.test_size,
            stratify=digits,
            random_state=self.split_seed,
        )
        train, val = self._train_and_val(rest, digits[rest])
        if self.batch_size > len(train):
            raise UserError(
                f"data.batch_size={self.batch_size} is more than the {len(train)} training samples."
            )
        # MPS has no float64: everything leaves here as float32 and int64.
        inputs = torch.from_numpy((pixels / 16).astype("float32")).view(-1, *self.image_shape)
        targets = torch.from_numpy(digits.astype("int64"))
        for split, indices in (("train", train), ("val", val), ("test", test)):
            self.splits[split] = TensorDataset(inputs[indices], targets[indices])

    def _train_and_val(self, rest: list[int], digits: Any) -> tuple[list[int], list[int]]:
        """Split what is not for testing: by `val_size`, or into the others and the fold."""
        from sklearn.model_selection import StratifiedKFold, train_test_split

        if self.num_folds is None:
            size = self.val_size / (1 - self.test_size)
            return train_test_split(
                rest, test_size=size, stratify=digits, random_state=self.split_seed
            )
        folds = StratifiedKFold(self.num_folds, shuffle=True, random_state=self.split_seed)
        train, val = list(folds.split(rest, digits))[self.fold]
        return [rest[i] for i in train], [rest[i] for i in val]

    def train_dataloader(self) -> DataLoader[Any]:
        # A smaller last batch makes MPS compile again, and gives batch norm poor statistics.
        return DataLoader(self.splits["train"], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.splits["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.splits["test"], self.batch_size)

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        if self.augment and self.trainer is not None and self.trainer.training:
            inputs, targets = batch
            return [shift(inputs), targets]
        return batch

    def read_inputs(self, source: str) -> DataLoader[Any]:
        """Return what `predict` is given: an image, a folder of images, or a .npy array."""
        self.names, inputs = read_images(Path(source), self.image_shape)
        return DataLoader(TensorDataset(inputs), self.batch_size)

    def write_predictions(self, predictions: list[Tensor], output: Path) -> None:
        """Write a CSV with a line for each image: its class, and the probabilities."""
        write_predictions(self.names, torch.cat(predictions), self.class_names, output)


def shift(images: Tensor, pixels: int = 1) -> Tensor:
    """Move each image by its own whole number of pixels, at most `pixels` either way.

    Args:
        images: (batch, channels, height, width); what moves in is 0.
    """
    batch, _, height, width = images.shape
    padded = F.pad(images, [pixels] * 4)
    rows = torch.arange(height, device=images.device)[None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, :]
    down, right = torch.randint(0, 2 * pixels + 1, (2, batch, 1, 1), device=images.device)
    image = torch.arange(batch, device=images.device)[:, None, None]
    # Indexing (image, :, row, column) puts the channels last.
    return padded[image, :, rows + down, columns + right].movedim(-1, 1).contiguous()
