"""Images of your own: what `predict` reads, and the table that it writes."""

import csv
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..engine.errors import UserError
from ..engine.files import is_leftover

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
        files = sorted(
            file
            for file in source.iterdir()
            if file.suffix.lower() in readable and not is_leftover(Path(file.name))
        )
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
        # Pillow warns of large photos, which are read.
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            pixels = np.asarray(
                # BOX averages what falls into a pixel, as the makers of the digits did.
                _upright_and_opaque(image, file)
                .convert("L" if channels == 1 else "RGB")
                .resize((width, height), Image.Resampling.BOX),
                dtype=np.float32,
            )
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{file} has too many pixels. Save it smaller.") from error
    except Exception as error:  # Pillow has many kinds for a file that is broken
        raise UserError(f"{file} cannot be read as an image: {error}.") from error
    return torch.from_numpy(pixels / 255).view(height, width, channels).movedim(-1, 0)


def _upright_and_opaque(image: Image.Image, file: Path) -> Image.Image:
    """Return the picture as a viewer shows it: turned as the camera says, 8 bits, on a background.

    What is transparent becomes black if what is drawn is light, else white.
    """
    pictures = getattr(image, "n_frames", 1)
    if pictures > 1 and image.format != "MPO":  # a phone's photo, with its depth
        log.warning(f"{file} has {pictures} pictures: the first one is used.")
    if image.mode.startswith("I;16"):  # conversion would clip it to white
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):  # nothing says which value is white
        raise UserError(f"{file} has more than 16 bits a channel. Save it with 8.")
    upright = ImageOps.exif_transpose(image)
    if not upright.has_transparency_data:
        return upright
    drawn = upright.convert("RGBA")
    lightness, alpha = (np.asarray(drawn.convert("LA").getchannel(name)) for name in "LA")
    light = np.average(lightness, weights=alpha) > 127 if alpha.any() else False
    background = Image.new("RGBA", drawn.size, "black" if light else "white")
    return Image.alpha_composite(background, drawn)


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
    """Show the first ten, and write a CSV with a line for each image.

    Args:
        names: of the images.
        probabilities: (N, num_classes).
        class_names: a name for each class.
        output: the file.
    """
    highest, best = probabilities.max(dim=1)
    classes = [class_names[index] for index in best.tolist()]
    shown = zip(names, classes, highest.tolist(), strict=True)
    lines = [f"  {name}: {chosen} ({p:.2f})" for name, chosen, p in shown]
    log.info("\n".join(lines[:10] + [f"  ... {len(lines) - 10} more"] * (len(lines) > 10)))
    with output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "class", *(f"p({name})" for name in class_names)])
        for name, chosen, row in zip(names, classes, probabilities.tolist(), strict=True):
            writer.writerow([name, chosen, *(f"{p:.6f}" for p in row)])
