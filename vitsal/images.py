"""Labelled images in batches; those that cannot be read are skipped, counted and named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from vitsal.errors import UserError

Transform = Callable[[Image.Image], Tensor]
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Sample:
    """One image, or, where it could not be read, why."""

    name: str
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
    """Open one image file as RGB.

    Raises:
        UserError: there is no such file, or it is no image that can be decoded.
    """
    if not Path(path).is_file():
        raise UserError(f"There is no image file at {path}.")
    try:
        return decode(path)
    except BROKEN_IMAGE as error:
        raise UserError(f"{path} cannot be read as an image: {error}.") from error


def decode(source: Image.Image | BinaryIO | str | Path) -> Image.Image:
    """Decode a file, or take an image as it is; RGB either way."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    with Image.open(source) as image:
        return image.convert("RGB")


class IndexedImages(Dataset):
    """Images of a source with a length: a folder, a tar file, a Hugging Face data set, or the embedded scenes.

    Args:
        read: index -> (image or file that holds it, label).
        name: index -> the sample's name.
        length: number of samples.
        transform: PIL image -> (3, H, W).
        labels: the source's label -> the model's, where they differ.
    """

    def __init__(
        self,
        read: Callable[[int], tuple],
        name: Callable[[int], str],
        length: int,
        transform: Transform,
        labels: dict[int, int] | None = None,
    ) -> None:
        self.read, self.name, self.length, self.transform, self.labels = read, name, length, transform, labels

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        source, label, *_ = self.read(index)
        label = self.labels[label] if self.labels else int(label)
        try:
            image = decode(source)
        except BROKEN_IMAGE as error:
            return Sample(self.name(index), None, label, problem=str(error))
        return Sample(self.name(index), self.transform(image), label)


class StreamedImages(IterableDataset):
    """Images of a source without random access: Hugging Face streaming, WebDataset shards, TensorFlow data sets.

    `source` names it: its samples have no names to tell it by.
    """

    def __init__(self, dataset: IterableDataset, source: str = "", first: int = 0, last: int | None = None) -> None:
        self.dataset, self.source, self.first, self.last = dataset, source, first, last

    def __iter__(self) -> Iterator[Sample]:
        numbered = enumerate(self.dataset)
        for index, (image, label) in islice(numbered, self.first, self.last):
            yield Sample(f"sample {index:08d}", image, int(label))


def batches(
    dataset: IndexedImages | StreamedImages,
    batch_size: int = 32,
    *,
    first: int = 0,
    limit: int | None = None,
    num_workers: int = 0,
    strict: bool = False,
) -> Iterator[Batch]:
    """Go through a data set in order, in batches.

    Args:
        dataset: as `open_data` returns it.
        batch_size: samples per batch; the last one may be smaller.
        first: samples to pass over, to go on where another run stopped.
        limit: stop after so many samples of the data set; None goes to the end. Over an indexed data set they are
            spread evenly, since neighbours in a folder are of one class.
        num_workers: processes that decode images; 0 decodes in this one. Streams take one at most, to keep their order.
        strict: stop at the first image that cannot be read, instead of skipping it.

    Raises:
        UserError: with `strict`, an image that cannot be read, by name.
    """
    part = _part(dataset, first, limit)
    num_workers = min(num_workers, 1) if isinstance(part, StreamedImages) else num_workers
    loader = DataLoader(part, batch_size, num_workers=num_workers, collate_fn=_collate)
    for batch in loader:
        if strict and batch.skipped:
            name, problem = next(iter(batch.skipped.items()))
            raise UserError(f"{name} cannot be read as an image: {problem}")
        yield batch


def _part(dataset: IndexedImages | StreamedImages, first: int, limit: int | None) -> Dataset:
    if isinstance(dataset, StreamedImages):
        return StreamedImages(dataset.dataset, dataset.source, first, limit)
    return Subset(dataset, spread(len(dataset), limit)[first:])


def spread(length: int, limit: int | None) -> list[int]:
    """`limit` indices spread evenly over `range(length)`, or all of them."""
    count = length if limit is None else min(limit, length)
    return [index * length // count for index in range(count)]


def _collate(samples: list[Sample]) -> Batch:
    good = [sample for sample in samples if sample.image is not None]
    images = torch.stack([sample.image for sample in good]) if good else torch.empty(0)
    return Batch(
        images,
        torch.tensor([sample.label for sample in good], dtype=torch.long),
        [sample.name for sample in good],
        {sample.name: sample.problem for sample in samples if sample.image is None},
    )


def warn_of_skipped(skipped: dict[str, str], most: int = 5) -> None:
    """Name the images that could not be read, in one warning; say nothing where there are none."""
    if skipped:
        named = "; ".join(f"{name} ({problem})" for name, problem in list(skipped.items())[:most])
        more = f"; and {len(skipped) - most} more" if len(skipped) > most else ""
        warnings.warn(f"{len(skipped)} images could not be read and were skipped: {named}{more}.", stacklevel=2)
