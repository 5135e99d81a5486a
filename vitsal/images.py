"""Labelled images in batches; those that cannot be read are skipped, counted and named."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import EpsImagePlugin, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from vitsal.errors import UserError, printable

Transform = Callable[[Image.Image], Tensor]
MOST_ELONGATED = 100  # resized for a model, whose short side is fixed, a longer strip would fill the memory

EpsImagePlugin.gs_binary = False  # or Pillow starts Ghostscript on a file that holds PostScript, whatever its name


class BrokenImage(ValueError):
    """A file that is no image, one that is damaged, or one that no model can be shown."""


BROKEN_IMAGE = (BrokenImage,)


@dataclass(frozen=True)
class Sample:
    """Sample number `index` of a data set: its image, or, where that could not be read, why."""

    index: int
    image: Tensor | None
    label: int
    problem: str = ""


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W), labels (B,) and names of the samples that could be read; the others in `skipped`."""

    images: Tensor
    labels: Tensor
    names: list[str]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """How many samples of the data set this batch accounts for, skipped ones included."""
        return len(self.names) + len(self.skipped)


def open_image(path: str | Path) -> Image.Image:
    """Open one image file as RGB, turned upright where its camera says how it was held.

    Raises:
        UserError: there is no such file, or it is no image that can be decoded.
    """
    if not os.path.isfile(path):
        raise UserError(f"There is no image file at {printable(path)}.")
    try:
        with decoding(path) as image:
            return upright(image)
    except BROKEN_IMAGE as error:
        raise UserError(f"{printable(path)} cannot be read as an image: {error}.") from error


def open_images(path: str | Path, limit: int) -> dict[str, Image.Image]:
    """Open one image file, or those of a folder: name -> image, RGB. In a folder, broken ones are skipped and named.

    Args:
        path: the file or folder.
        limit: number of files at most, spread evenly over the folder in the order of their names.

    Raises:
        UserError: no file, one that is no image, or no image in the folder that can be read.
    """
    if not os.path.isdir(path):
        return {printable(Path(path).name): open_image(path)}
    endings = Image.registered_extensions()
    try:
        files = sorted(file for file in Path(path).iterdir() if file.suffix.lower() in endings)
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

    Raises:
        BrokenImage: it cannot be decoded, or is a strip.
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


class IndexedImages(Dataset):
    """Images of a source with a length: a folder, a tar file, a Hugging Face data set, or the embedded scenes.

    Args:
        read: index -> (image or file that holds it, label).
        name: index -> the sample's name.
        length: number of samples.
        transform: PIL image -> (3, H, W).
        source: what it was opened from.
        stamp: index -> what tells this sample's content and label from what may stand in its place another day, such as
            size and time of its file; by default a hash of its pixels, for which it is read.
        num_classes: how many classes the labels are of, where that is known.
        folders: names of the classes, where they are numbered in the order of their folders.
        unclear: why the labels of some samples cannot be told; "" where all can.
    """

    def __init__(
        self,
        read: Callable[[int], tuple],
        name: Callable[[int], str],
        length: int,
        transform: Transform,
        source: str = "",
        stamp: Callable[[int], str] | None = None,
        num_classes: int | None = None,
        folders: tuple[str, ...] = (),
        unclear: str = "",
    ) -> None:
        self.read, self.name, self.length, self.transform, self.source = read, name, length, transform, source
        self.stamp, self.num_classes, self.folders = stamp or self._pixel_hash, num_classes, folders
        self.unclear = unclear

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        source, label, *_ = self.read(index)
        try:
            image = decode(source)
        except BROKEN_IMAGE as error:
            return Sample(index, None, int(label), problem=str(error))
        return Sample(index, self.transform(image), int(label))

    def problem(self, index: int) -> str:
        """Why this sample cannot be read; '' where it can."""
        return self[index].problem

    def _pixel_hash(self, index: int) -> str:
        source, label, *_ = self.read(index)
        try:
            image = decode(source)
        except BROKEN_IMAGE as error:
            return f"{label} {error}"
        return f"{label} {image.size} {hashlib.sha256(image.tobytes()).hexdigest()}"


class StreamedImages(IterableDataset):
    """Images of a source without random access: Hugging Face streaming, WebDataset shards, TensorFlow data sets.

    Its samples have no names to tell it by: they are numbered. One that cannot be read is an error.

    Args:
        dataset: images and labels, the images transformed.
        source: what it was opened from.
        first, last: numbers of the samples that come out of it, `last` excluded.
        stamp: what tells its content from what may stand in its place another day: its shards with their sizes and
            times, say.
        transform: what was done to the images.
        num_classes: how many classes the labels are of, where that is known.
    """

    folders, unclear = (), ""  # a stream's labels come with it

    def __init__(
        self,
        dataset: IterableDataset,
        source: str = "",
        first: int = 0,
        last: int | None = None,
        stamp: str = "",
        transform: Transform | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.dataset, self.source, self.first, self.last = dataset, source, first, last
        self.stamp, self.transform, self.num_classes = stamp, transform, num_classes

    def __iter__(self) -> Iterator[Sample]:
        numbered = enumerate(self.dataset)
        for index, (image, label) in islice(numbered, self.first, self.last):
            yield Sample(index, image, int(label))

    def name(self, index: int) -> str:
        """What to call a sample."""
        return f"sample {index:08d}"


def batches(
    dataset: IndexedImages | StreamedImages,
    batch_size: int = 32,
    *,
    first: int = 0,
    limit: int | None = None,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """Go through a data set in order, in batches.

    Args:
        dataset: as `open_data` returns it.
        batch_size: samples per batch; the last one may be smaller.
        first: samples to pass over, to go on where another run stopped.
        limit: stop after so many samples of the data set; None goes to the end. Over an indexed data set they are
            spread evenly, since neighbours in a folder are of one class.
        num_workers: processes that decode images; 0 decodes in this one. Streams take one at most, to keep their order.
    """
    streamed = isinstance(dataset, StreamedImages)
    indices = slice(first, limit) if streamed else spread(len(dataset), limit)[first:]
    for tensors in image_loader(dataset, indices, batch_size, num_workers):
        numbers, readable = tensors["indices"].tolist(), tensors["readable"].tolist()
        good = [dataset.name(index) for index, fine in zip(numbers, readable, strict=True) if fine]
        broken = [index for index, fine in zip(numbers, readable, strict=True) if not fine]
        problems = {dataset.name(index): dataset.problem(index) for index in broken}
        yield Batch(tensors["images"], tensors["labels"][tensors["readable"]], good, problems)


def image_loader(
    dataset: IndexedImages | StreamedImages, indices: Sequence[int] | slice, batch_size: int, num_workers: int = 0
) -> DataLoader:
    """Batches of tensors alone, which accelerate can share out among processes.

    Args:
        dataset: as `open_data` returns it.
        indices: samples to take, in this order; of a stream, a slice of it.
        batch_size, num_workers: see `batches`.

    Returns:
        A loader of dictionaries: `indices`, `labels` and `readable` (B,), and `images` (G, 3, H, W) of the G samples
        that are readable.
    """
    if isinstance(dataset, StreamedImages):
        part = copy(dataset)
        part.first, part.last = indices.start, indices.stop
        return DataLoader(part, batch_size, num_workers=min(num_workers, 1), collate_fn=_collate)
    return DataLoader(Subset(dataset, indices), batch_size, num_workers=num_workers, collate_fn=_collate)


def _collate(samples: list[Sample]) -> dict[str, Tensor]:
    images = [sample.image for sample in samples if sample.image is not None]
    return {
        "images": torch.stack(images) if images else torch.empty(0),
        "labels": torch.tensor([sample.label for sample in samples]),
        "indices": torch.tensor([sample.index for sample in samples]),
        "readable": torch.tensor([sample.image is not None for sample in samples]),
    }


def spread(length: int, limit: int | None) -> Sequence[int]:
    """`limit` indices spread evenly over `range(length)`, or all of them."""
    count = length if limit is None else min(limit, length)
    if count == length:
        return range(length)
    return [index * length // count for index in range(count)]


def warn_of_skipped(skipped: dict[str, str], most: int = 5) -> None:
    """Name the images that could not be read, in one warning; say nothing where there are none."""
    if skipped:
        named = "; ".join(f"{name} ({problem})" for name, problem in list(skipped.items())[:most])
        more = f"; and {len(skipped) - most} more" if len(skipped) > most else ""
        warnings.warn(f"{len(skipped)} images could not be read and were skipped: {named}{more}.", stacklevel=2)
