"""Labelled images in batches; those that cannot be read are skipped, counted and named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from vitsal.data.pictures import BrokenImage, Transform, decode, spread


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


class NumberedImages(Protocol):
    """Where images are read from by number, not yet transformed."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple:
        """An image, or a file that holds it, and its label."""

    def name(self, index: int) -> str:
        """What to call the sample."""

    def stamp(self, index: int) -> str:
        """What tells its content and label from what may stand in its place another day, such as a file's time."""


@dataclass(eq=False, repr=False)
class IndexedImages(Dataset):
    """Images of a source with a length: a folder, a tar file, a Hugging Face data set, or the embedded scenes."""

    images: NumberedImages  # what they are read from
    transform: Transform  # PIL image -> (3, H, W)
    source: str = ""  # what it was opened from
    num_classes: int | None = None  # how many classes the labels are of, where that is known
    folders: tuple[str, ...] = ()  # names of the classes, where they are numbered in the order of their folders
    unclear: str = ""  # why the labels of some samples cannot be told; "" where all can
    streamed = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        source, label, *_ = self.images.read(index)
        try:
            image = decode(source)
        except BrokenImage as error:
            return Sample(index, None, int(label), problem=str(error))
        return Sample(index, self.transform(image), int(label))

    def name(self, index: int) -> str:
        """What to call a sample."""
        return self.images.name(index)

    def numbers(self, limit: int | None = None, first: int = 0) -> Sequence[int]:
        """Numbers of the samples, `limit` at most, spread evenly; without the `first` of them."""
        return spread(len(self), limit)[first:]

    def count(self, limit: int | None = None) -> int:
        """How many samples these are."""
        return len(self.numbers(limit))

    def part(self, numbers: Sequence[int]) -> Dataset:
        """These samples, in this order."""
        return Subset(self, numbers)

    @property
    def place(self) -> str:
        """Where the data lies: its source, a path from the root."""
        return _place(self.source)

    def keys(self, numbers: Sequence[int]) -> dict[int, str]:
        """Number of a sample -> 16 hexadecimal digits that tell its name, content and label, as they are now."""
        return {index: _short_hash([self.name(index), self.images.stamp(index)]) for index in numbers}

    def fingerprint(self, keys: Mapping[int, str]) -> str:
        """First 12 hexadecimal digits of the SHA-256 of the samples with these keys, and what is done to them."""
        return _short_hash([describe_transform(self.transform), *keys.values()], 12)


@dataclass(eq=False, repr=False)
class StreamedImages(IterableDataset):
    """Images of a source without random access: Hugging Face streaming, WebDataset shards, TensorFlow data sets.

    Its samples have no names to tell it by: they are numbered. One that cannot be read is an error.
    """

    dataset: Iterable[tuple[Any, int]]  # images, transformed, and labels
    source: str = ""  # what it was opened from
    first: int = 0  # number of the first sample that comes out of it
    last: int | None = None  # number of the sample that it ends before
    stamp: str = ""  # tells its content from what may stand in its place another day: its shards' sizes and times, say
    transform: Transform | None = None  # what was done to the images
    num_classes: int | None = None  # how many classes the labels are of, where that is known
    streamed, folders, unclear = True, (), ""  # a stream's labels come with it

    def __iter__(self) -> Iterator[Sample]:
        for index, (image, label) in islice(enumerate(self.dataset), self.first, self.last):
            yield Sample(index, image, int(label))

    def name(self, index: int) -> str:
        """What to call a sample."""
        return f"sample {index:08d}"

    def numbers(self, limit: int | None = None, first: int = 0) -> slice:
        """The first `limit` samples, without the `first` of them; how many there are is not known."""
        return slice(first, limit)

    def count(self, limit: int | None = None) -> int | None:
        """How many samples these are at most; None where nobody knows."""
        return limit

    def part(self, numbers: slice) -> StreamedImages:
        """These samples; those before are read, and passed over."""
        return replace(self, first=numbers.start, last=numbers.stop)

    @property
    def place(self) -> str:
        """Where the data lies: its source, and its shards."""
        return f"{_place(self.source)} {_short_hash([self.stamp])}"

    def keys(self, numbers: slice) -> None:
        """None: samples of a stream are told by their numbers."""

    def fingerprint(self, keys: None = None) -> str:
        """Source, shards, and what is done to the images: samples of a stream cannot be listed."""
        return f"stream of {self.source} {_short_hash([self.stamp, describe_transform(self.transform)])}"


LabelledImages = IndexedImages | StreamedImages  # as `open_data` returns them


def batches(
    dataset: LabelledImages, batch_size: int = 32, *, first: int = 0, limit: int | None = None, num_workers: int = 0
) -> Iterator[Batch]:
    """Go through a data set, as `open_data` returns it, in order, in batches.

    Args:
        batch_size: samples per batch; the last one may be smaller.
        first: samples to pass over, to go on where another run stopped.
        limit: stop after so many samples of the data set; None goes to the end. Over an indexed data set they are
            spread evenly, since neighbours in a folder are of one class.
        num_workers: processes that decode images; 0 decodes in this one. Streams take one at most, to keep their order.
    """
    return named_batches(dataset, dataset.numbers(limit, first), batch_size, num_workers)


def named_batches(
    dataset: LabelledImages, numbers: Sequence[int] | slice, batch_size: int, num_workers: int = 0
) -> Iterator[Batch]:
    """Batches of these samples, in this order, or of a slice of a stream, with their names."""
    for batch in image_loader(dataset, numbers, batch_size, num_workers):
        readable = batch["readable"]
        good = [dataset.name(index) for index in batch["indices"][readable].tolist()]
        skipped = {dataset.name(index): problem for index, problem in batch["problems"].items()}
        yield Batch(batch["images"], batch["labels"][readable], good, skipped)


def image_loader(
    dataset: LabelledImages, numbers: Sequence[int] | slice, batch_size: int, num_workers: int = 0
) -> DataLoader:
    """Batches of these samples, in this order, or of a slice of a stream, that accelerate can share out to processes.

    Returns:
        A loader of dictionaries: `images` (G, 3, H, W) of the G samples that are readable, `labels`, `indices` and
        `readable` (B,), and `problems`, number -> why it cannot be read. Those of a stream are always empty: accelerate
        reads streams on one process, and can send the others nothing but tensors.
    """
    workers = min(num_workers, 1) if dataset.streamed else num_workers
    return DataLoader(dataset.part(numbers), batch_size, num_workers=workers, collate_fn=_collate)


def _collate(samples: list[Sample]) -> dict[str, Any]:
    images = [sample.image for sample in samples if sample.image is not None]
    return {
        "images": torch.stack(images) if images else torch.empty(0),
        "labels": torch.tensor([sample.label for sample in samples]),
        "indices": torch.tensor([sample.index for sample in samples]),
        "readable": torch.tensor([sample.image is not None for sample in samples]),
        "problems": {sample.index: sample.problem for sample in samples if sample.image is None},
    }


def describe_transform(transform: Callable) -> str:
    """What is done to images before a model sees them: torchvision's and timm's transforms tell, all but one.

    Others, such as functions, are described anew each time: nothing is ever taken for them.
    """
    parts = getattr(transform, "transforms", [transform])
    told = all(type(part).__module__.startswith(("torchvision.", "timm.")) for part in parts)
    text = repr(transform)
    return text if told and "Lambda(" not in text else f"{type(transform).__name__} {uuid4()}"


def _place(source: str) -> str:
    """A path from the root; what is no path, as it is."""
    return str(Path(source).resolve()) if source and Path(source).exists() else source


def _short_hash(parts: Sequence[object], digits: int = 16) -> str:
    text = "\n".join(map(str, parts)).encode(errors="surrogateescape")  # names of files may be any bytes
    return hashlib.sha256(text).hexdigest()[:digits]
