"""Samples a second where the price per step decides: a small net on data that fit in memory.

    python benchmarks/small_jobs.py my_lightning_project    # where the generated project is installed

The same epochs of the same net, data, optimizer and number of steps, each epoch validated:

- `loop`: written by hand, data on the device, a batch taken by its indices, fused Adam;
- `project`: the generated project's `train` by its defaults: resumable, logged, watched for nan; its
  datamodule is an ordinary one, with a DataLoader of a TensorDataset;
- `stock loop`: the same with `fast_loop=false`, which is Lightning's own loop;
- `template`: what the best-known Lightning and Hydra template does by default: transforms and
  collating sample by sample, two metrics and two calls of `self.log` a step, plain Adam;
- `loop again`: the first once more; what lies inside its spread is a tie.

On the device and in the precision that the project takes by itself (the template keeps float32, its
default). In one process, in turns: the medians of the ratios count, absolute times say little.
`--json FILE` writes all that was measured; `--rounds N` and further `key=value` go to the project;
`--train N` makes the data smaller, to try it out.
"""

import argparse
import contextlib
import importlib
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning as L
import numpy as np
import torch
from built import synchronize
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Dataset, TensorDataset, random_split
from torchmetrics import Accuracy, MaxMetric, MeanMetric

# The sizes of that template's job, MNIST, to whole batches: 430 steps an epoch, the first to warm up.
TRAIN, VAL, BATCH, EPOCHS, LR = 55_040, 5_120, 128, 3, 0.001
PACKAGE = ""  # of the project: the command line says


def net() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in ((784, 64), (64, 128), (128, 64)):
        layers += [nn.Linear(wide, narrow), nn.BatchNorm1d(narrow), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def split(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return uint8 pictures of noise whose first row tells the digit, so there is something to learn."""
    source = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (samples, 28, 28), dtype=torch.uint8, generator=source)
    targets = torch.randint(0, 10, (samples,), generator=source)
    pixels[:, 0] = (25 * targets)[:, None].to(torch.uint8)
    return pixels, targets


def normalized(pixels: Tensor) -> Tensor:
    return (pixels.float().div(255) - 0.1307) / 0.3081


SPLITS: dict[str, tuple[Tensor, Tensor]] = {}  # filled in by main()


class Clock(L.Callback):
    """Measures all epochs but the first, and keeps the last loss of the validation."""

    seconds = val_loss = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            synchronize()
            self.started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, *_: Any) -> None:
        synchronize()
        Clock.seconds = time.perf_counter() - self.started
        Clock.val_loss = float(trainer.callback_metrics["val/loss"])


def train_size() -> int:
    return len(SPLITS["train"][1])


# By hand.


def loop(settings: Any) -> tuple[float, float]:
    device = torch.device(settings.accelerator)
    lower = {"bf16-mixed": torch.bfloat16, "32-true": None}[settings.precision]
    autocast = torch.autocast(device.type, lower, enabled=lower is not None)
    torch.manual_seed(0)
    model = net().to(device)
    splits = {k: (normalized(p).to(device), t.to(device)) for k, (p, t) in SPLITS.items()}
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    val_loss = started = 0.0
    for epoch in range(EPOCHS):
        if epoch == 1:
            synchronize()
            started = time.perf_counter()
        inputs, targets = splits["train"]
        order = torch.randperm(train_size(), generator=torch.Generator().manual_seed(epoch)).to(
            device
        )
        model.train()
        for batch in order.split(BATCH):
            with autocast:
                loss = F.cross_entropy(model(inputs[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        val_loss, _ = validate(model, *splits["val"], autocast)
    synchronize()
    return time.perf_counter() - started, val_loss


@torch.no_grad()
def validate(
    model: nn.Module, inputs: Tensor, targets: Tensor, autocast: Any
) -> tuple[float, float]:
    model.eval()
    loss = correct = torch.zeros((), device=inputs.device)
    for start in range(0, VAL, BATCH):
        expected = targets[start : start + BATCH]
        with autocast:
            logits = model(inputs[start : start + BATCH])
            loss = loss + F.cross_entropy(logits, expected)
        correct = correct + (logits.argmax(1) == expected).sum()
    return loss.item() * BATCH / VAL, correct.item() / VAL


# The project: another model and other data; everything else is its own.


class Pictures(L.LightningDataModule):
    """An ordinary datamodule."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size

    def loader(self, name: str, *, shuffle: bool = False) -> DataLoader[Any]:
        pixels, targets = SPLITS[name]
        return DataLoader(TensorDataset(normalized(pixels), targets), self.batch_size, shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        return self.loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val")


@contextlib.contextmanager
def composed(folder: str, overrides: list[str]) -> Iterator[Any]:
    from hydra import compose, initialize_config_module
    from omegaconf import open_dict

    with initialize_config_module(f"{PACKAGE}.configs", version_base="1.3"):
        cfg = compose(
            "train",
            [
                f"runs_dir={folder}",
                f"trainer.max_epochs={EPOCHS}",
                "optimizer._target_=torch.optim.Adam",
                f"optimizer.lr={LR}",
                "optimizer.weight_decay=0",
                "scheduler=constant",
                "~show.curves",
                "~show.confusion",
                *overrides,
            ],
        )
        with open_dict(cfg):
            cfg.data = {"_target_": f"{__name__}.Pictures", "batch_size": BATCH}
            cfg.model = {"_target_": f"{__name__}.net"}
            cfg.show.clock = {"_target_": f"{__name__}.Clock"}
        yield cfg


def project(overrides: list[str]) -> tuple[float, float]:
    train = importlib.import_module(f"{PACKAGE}.train").train
    with tempfile.TemporaryDirectory() as folder, composed(folder, overrides) as cfg:
        train(cfg)
    return Clock.seconds, Clock.val_loss


def settings_of(overrides: list[str]) -> Any:
    """Return the device and precision that the project takes."""
    device = importlib.import_module(f"{PACKAGE}.engine.device")
    with composed("", overrides) as cfg:
        return device.resolve(device.requested(cfg), device.probe())


# The best-known template, in its style.


class ToTensor:
    """What torchvision's does to a grey picture, operation by operation."""

    def __call__(self, picture: Image.Image) -> Tensor:
        image = torch.from_numpy(np.array(picture, np.uint8, copy=True))
        image = image.view(picture.size[1], picture.size[0], 1).permute(2, 0, 1).contiguous()
        return image.to(torch.get_default_dtype()).div(255)


class Normalize(nn.Module):
    """The same: it makes its two constants anew for each sample, and looks whether one is 0."""

    def forward(self, image: Tensor) -> Tensor:
        image = image.clone()
        mean = torch.as_tensor((0.1307,), dtype=image.dtype, device=image.device)
        std = torch.as_tensor((0.3081,), dtype=image.dtype, device=image.device)
        if (std == 0).any():
            raise ValueError("std is 0")
        return image.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


class SampleBySample(Dataset[Any]):
    """As torchvision's MNIST: tensors that become a picture, which becomes a tensor."""

    def __init__(self, name: str) -> None:
        self.pixels, self.targets = SPLITS[name]
        self.transforms = (ToTensor(), Normalize())

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image: Any = Image.fromarray(self.pixels[index].numpy(), mode="L")
        for transform in self.transforms:
            image = transform(image)
        return image, int(self.targets[index])


class TemplateTask(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.criterion = nn.CrossEntropyLoss()
        self.train_acc, self.val_acc = (Accuracy("multiclass", num_classes=10) for _ in range(2))
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.val_acc_best = MaxMetric()

    def model_step(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        inputs, targets = batch
        logits = self.net(inputs)
        return self.criterion(logits, targets), logits.argmax(dim=1), targets

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, preds, targets = self.model_step(batch)
        self.train_loss(loss)
        self.train_acc(preds, targets)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss, preds, targets = self.model_step(batch)
        self.val_loss(loss)
        self.val_acc(preds, targets)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=LR)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=10)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": plateau, "monitor": "val/loss", "interval": "epoch"},
        }


def template(settings: Any) -> tuple[float, float]:
    from lightning.pytorch import callbacks

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator=settings.accelerator,
            devices=1,
            max_epochs=EPOCHS,
            default_root_dir=folder,
            logger=[],
            callbacks=[
                Clock(),
                callbacks.ModelCheckpoint(folder, monitor="val/acc", mode="max", save_last=True),
                callbacks.EarlyStopping("val/acc", patience=100, mode="max"),
                callbacks.RichModelSummary(max_depth=-1),
                callbacks.RichProgressBar(),
            ],
        )
        both = ConcatDataset([SampleBySample("train"), SampleBySample("val")])
        train, val = random_split(both, (train_size(), VAL), torch.Generator().manual_seed(42))
        loaders = DataLoader(train, BATCH, shuffle=True), DataLoader(val, BATCH)
        trainer.fit(TemplateTask(), *loaders)
    return Clock.seconds, Clock.val_loss


# In turns.


def measure(ways: dict[str, Callable[[], tuple[float, float]]], rounds: int) -> dict[str, Any]:
    """Return the samples a second of each way and round, and each way's last loss."""
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    losses = {}
    samples = train_size() * (EPOCHS - 1)
    for _ in range(rounds):
        for way, train in ways.items():
            # What the ways print is not the point; a bar goes to a terminal that is not there.
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
                seconds, losses[way] = train()
            speeds[way].append(samples / seconds)
    return {"samples_per_second": speeds, "val_loss": losses}


def ratios(speeds: dict[str, list[float]], of: str, to: str) -> list[float]:
    return [a / b for a, b in zip(speeds[of], speeds[to], strict=True)]


PAIRS = (
    ("project", "template"),
    ("project", "loop"),
    ("project", "stock loop"),
    ("loop again", "loop"),
)


def report(found: dict[str, Any]) -> None:
    speeds = found["samples_per_second"]
    print(f"{found['device']}, {found['precision']}, torch {torch.__version__}")
    print(f"{'':24}{'median':>10}  {'lowest':>9} {'highest':>9}   last val/loss")
    for way, measured in speeds.items():
        row = f"{statistics.median(measured):10,.0f}  {min(measured):9,.0f} {max(measured):9,.0f}"
        print(f"{way:24}{row}   {found['val_loss'][way]:.6f}")
    for of, to in PAIRS:
        if to not in speeds:
            continue
        pairs = ratios(speeds, of, to)
        row = f"{statistics.median(pairs):10.2f}  {min(pairs):9.2f} {max(pairs):9.2f}"
        print(f"{of + ' / ' + to:24}{row}")


def main() -> None:
    global PACKAGE
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package", help="the generated project's")
    parser.add_argument("overrides", nargs="*", help="of the project: trainer.accelerator=cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-template", action="store_true", help="it takes most of the time")
    parser.add_argument("--train", type=int, default=TRAIN, help="samples")
    parser.add_argument("--json", type=Path, help="all that was measured, to this file")
    asked = parser.parse_intermixed_args()
    PACKAGE = asked.package
    warnings.simplefilter("ignore")
    for talks in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(talks).setLevel(logging.ERROR)
    SPLITS.update(train=split(asked.train, 0), val=split(VAL, 1))
    settings = settings_of(asked.overrides)
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "loop": lambda: loop(settings),
        "project": lambda: project(asked.overrides),
        "stock loop": lambda: project([*asked.overrides, "fast_loop=false"]),
        "template": lambda: template(settings),
        "loop again": lambda: loop(settings),
    }
    if asked.without_template:
        del ways["template"]
    measure(ways, 1)  # warm up
    found = measure(ways, asked.rounds) | {
        "device": settings.name,
        "precision": settings.precision,
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "python": platform.python_version(),
        "steps": (EPOCHS - 1) * (train_size() // BATCH),
    }
    report(found)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
