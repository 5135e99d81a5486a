"""Picture files, opened, decoded and turned upright; what cannot be read is skipped, counted and named."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import EpsImagePlugin, Image, ImageOps, UnidentifiedImageError

from vitsal.errors import UserError, check_file, first_few, printable

Transform = Callable[[Image.Image], Any]  # to a tensor (3, H, W), in most cases
MOST_ELONGATED = 100  # resized for a model, whose short side is fixed, a longer strip would fill the memory
EpsImagePlugin.gs_binary = False  # or Pillow starts Ghostscript on a file that holds PostScript, whatever its name


class BrokenImage(ValueError):
    """A file that is no image, one that is damaged, or one that no model can be shown."""


def open_image(path: str | Path) -> Image.Image:
    """Open one image file as RGB, turned upright where its camera says how it was held.

    UserError where there is no such file, or no image in it that can be decoded.
    """
    check_file("image", path)
    try:
        with decoding(path) as image:
            return upright(image)
    except BrokenImage as error:
        raise UserError(f"{printable(path)} cannot be read as an image: {error}.") from error


def open_images(path: str | Path, limit: int) -> dict[str, Image.Image]:
    """Open one image file, or those of a folder, broken ones skipped and named: name -> image, RGB.

    Of a folder, `limit` files at most, spread evenly over it in the order of their names. UserError where there is no
    file, one that is no image, or no image in the folder that can be read.
    """
    if not os.path.isdir(path):
        return {printable(Path(path).name): open_image(path)}
    try:
        files = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in Image.registered_extensions())
    except OSError as error:
        raise UserError(f"The folder {printable(path)} cannot be read: {error.strerror}.") from error
    opened, skipped = {}, {}
    for file in (files[index] for index in spread(len(files), limit)):
        try:
            opened[printable(file.name)] = open_image(file)
        except UserError as error:
            skipped[printable(file.name)] = str(error)
    if not opened:
        raise UserError(
            f"There is no image that can be read in the folder {printable(path)} ({len(files)} files looked like one)."
        )
    warn_of_skipped(skipped)
    return opened


@contextmanager
def decoding(source: BinaryIO | str | Path) -> Iterator[Image.Image]:
    """A file, open as an image, not yet decoded; whatever goes wrong with it until the end is a `BrokenImage`.

    Pillow's decoders raise what they happen to meet: struct.error, IndexError, zlib.error, AssertionError, ...
    """
    if isinstance(source, str | Path) and not os.path.isfile(source):  # opening a FIFO would wait for ever
        raise BrokenImage("there is no such file, or it is no regular one")
    try:
        with Image.open(source) as image:
            check_shape(image)
            yield image
    except (BrokenImage, MemoryError):
        raise
    except UnidentifiedImageError as error:  # whose message holds an address, another one each time
        raise BrokenImage("cannot identify image file") from error
    except Exception as error:
        raise BrokenImage(printable(str(error)) or type(error).__name__) from error


def check_shape(image: Image.Image) -> None:
    """Raise BrokenImage for an image without pixels, and for a strip."""
    if max(image.size) > MOST_ELONGATED * min(image.size):
        width, height = image.size
        raise BrokenImage(f"{width} x {height} pixels, one side more than {MOST_ELONGATED} times the other")


def decode(source: Image.Image | BinaryIO | str | Path) -> Image.Image:
    """Decode a file, or take an image as it is; RGB either way, as stored: data sets are read as timm reads them.

    BrokenImage for what cannot be decoded, and for a strip.
    """
    if isinstance(source, Image.Image):
        check_shape(source)
        return to_rgb(source)
    with decoding(source) as image:
        return to_rgb(image)


def upright(image: Image.Image) -> Image.Image:
    """An image as RGB, turned as its EXIF orientation says: photographs from telephones often lie on their side."""
    return to_rgb(ImageOps.exif_transpose(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB. Pillow's own conversion cuts values off at 255: here 16 bits are scaled to 8, and 32 bits, of
    which nobody knows what is white, from their lowest value to their highest.
    """
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise BrokenImage("it holds values that are no finite numbers")
        span = np.ptp(values) or 1
        image = Image.fromarray((255 * (values - values.min()) / span).astype(np.uint8))
    return image.convert("RGB")


def spread(length: int, limit: int | None) -> Sequence[int]:
    """`limit` indices spread evenly over `range(length)`, or all of them."""
    count = length if limit is None else min(limit, length)
    return range(length) if count == length else [index * length // count for index in range(count)]


def warn_of_skipped(skipped: dict[str, str]) -> None:
    """Name the images that could not be read, in one warning; say nothing where there are none."""
    if skipped:
        named = first_few((f"{name} ({problem})" for name, problem in skipped.items()), between="; ")
        warnings.warn(f"{len(skipped)} images could not be read and were skipped: {named}.", stacklevel=2)
