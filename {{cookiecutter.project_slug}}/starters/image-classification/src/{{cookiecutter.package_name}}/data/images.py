"""Images of your own: what `predict` reads, and the table that it writes."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..engine.errors import UserError

log = logging.getLogger(__name__)


def read_images(source: Path, shape: tuple[int, int, int]) -> tuple[list[str], Tensor]:
    """Read an image file, a folder of them, or a .npy array.

    Args:
        source: images of any size are resized; an array is (N, height, width) or
            (N, channels, height, width), from 0 to 1 or uint8, and must fit.
        shape: channels, height and width that the model takes; 1 channel means grey.

    Returns:
        A name for each image, and all of them as float32 from 0 to 1, (N, *shape).

    Raises:
        UserError: nothing is there, or it cannot be read as an image of this shape.
    """
    if source.suffix == ".npy":
        array = _read_array(source, shape)
        return [f"{source.name}[{i}]" for i in range(len(array))], array
    if source.is_dir():
        # Only what Pillow has a reader for: a folder of images often holds a README too.
        readable = {
            end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN
        }
        files = sorted(file for file in source.iterdir() if file.suffix.lower() in readable)
        if not files:
            raise UserError(
                f"There is no image in the folder {source}: say input=FILE or input=FOLDER."
            )
    elif source.is_file():
        files = [source]
    else:
        raise UserError(f"There is no {source}: say input=FILE or input=FOLDER.")
    return [f.name for f in files], torch.stack([_read_image(f, shape) for f in files])


def _read_image(file: Path, shape: tuple[int, int, int]) -> Tensor:
    channels, height, width = shape
    try:
        with Image.open(file) as image:
            if image.mode.startswith("I"):  # conversion would clip it to white
                raise UserError(f"{file} has more than 8 bits a channel: save it with 8.")
            grey_or_colour = image.convert("L" if channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{file} cannot be read as an image: {error}.") from error
    # BOX averages what falls into a pixel, as the makers of the digits did.
    pixels = np.asarray(
        grey_or_colour.resize((width, height), Image.Resampling.BOX), dtype=np.float32
    )
    return torch.from_numpy(pixels / 255).view(height, width, channels).movedim(-1, 0)


def _read_array(file: Path, shape: tuple[int, int, int]) -> Tensor:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as an array: {error}.") from error
    if array.shape == shape[1:]:
        array = array[None]
    if array.shape[1:] not in (shape, shape[1:]) or not len(array):
        fits = " or ".join(str(("N", *fit)).replace("'", "") for fit in (shape[1:], shape))
        raise UserError(f"{file} has the shape {array.shape}: the model takes {fits}.")
    array = array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
    if not (array.min() >= 0 and array.max() <= 1):  # NaN fails here too
        raise UserError(f"{file} has values outside 0 to 1: divide it by its largest value.")
    return torch.from_numpy(array).view(-1, *shape)


def write_predictions(
    names: Sequence[str], probabilities: Tensor, class_names: Sequence[str], output: Path
) -> None:
    """Write a CSV with a line for each image, and show the first ten.

    Args:
        names: of the images.
        probabilities: (N, num_classes).
        class_names: a name for each class.
        output: the file.
    """
    lines = []
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "class", *(f"p({name})" for name in class_names)])
        for name, row in zip(names, probabilities.tolist(), strict=True):
            best = max(range(len(class_names)), key=row.__getitem__)
            writer.writerow([name, class_names[best], *(f"{p:.6f}" for p in row)])
            lines.append(f"  {name}: {class_names[best]} ({row[best]:.2f})")
    log.info("\n".join(lines[:10] + [f"  ... {len(lines) - 10} more"] * (len(lines) > 10)))
