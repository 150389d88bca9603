"""The 1,797 real handwritten digits that ship with scikit-learn."""

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from ..errors import UserError
from .tensors import ReplayableSampler, TensorBatches, take_batch


class DigitsDataModule(L.LightningDataModule):
    """Images (batch, 1, 8, 8), float32 from 0 to 1, and targets (batch,), int64; stratified splits.

    Args:
        batch_size: samples a step and device.
        val_size: fraction of the samples for validation.
        test_size: fraction of the samples for testing.
        split_seed: which samples these are; apart from `seed`, so that seeds can be compared.
        num_folds: for cross-validation, into how many parts all but the test samples are split;
            `val_size` has no meaning then.
        fold: which of these parts is for validation, from 0.
        augment: move each training image by up to one pixel in each direction.
        seed: of the order of the training samples.
        on_device: keep all of it in the memory of the device that trains.
    """

    in_memory = True  # tells device.py that workers would gain nothing
    image_shape = (1, 8, 8)  # channels, height, width: what predict.py resizes to
    class_names = tuple("0123456789")

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
        seed: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        persistent_workers: bool = False,
        on_device: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size={batch_size} is too small: use 1 or more.")
        if val_size <= 0 or test_size <= 0 or val_size + test_size >= 1:
            raise UserError(
                "data.val_size and data.test_size must be fractions that leave some to train on."
            )
        if num_folds is not None and not (num_folds >= 2 and 0 <= fold < num_folds):
            raise UserError(
                f"data.num_folds={num_folds} with data.fold={fold} is no fold: they count from 0."
            )
        self.batch_size = batch_size
        self.val_size = val_size
        self.test_size = test_size
        self.split_seed = split_seed
        self.num_folds = num_folds
        self.fold = fold
        self.augment = augment
        self.seed = seed
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.persistent_workers = persistent_workers
        self.on_device = on_device
        self.splits: dict[str, TensorBatches] = {}

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
            self.splits[split] = TensorBatches(inputs[indices], targets[indices])

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
        order = ReplayableSampler(self.splits["train"], self.seed)
        # A last batch of another size would cost MPS a new graph, and batch norm its statistics.
        return self._loader("train", sampler=order, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader("test")

    def _loader(
        self, split: str, sampler: ReplayableSampler | None = None, drop_last: bool = False
    ) -> DataLoader[Any]:
        if self.on_device and self.trainer is not None:
            self.splits[split] = self.splits[split].to(self.trainer.strategy.root_device)
        return DataLoader(
            self.splits[split],
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory and not self.on_device,
            persistent_workers=self.persistent_workers,
            collate_fn=take_batch,
        )

    def on_after_batch_transfer(self, batch: list[Tensor], dataloader_idx: int) -> list[Tensor]:
        if self.augment and self.trainer is not None and self.trainer.training:
            inputs, targets = batch
            return [shift(inputs), targets]
        return batch


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
