"""Labelled images in batches; those that cannot be read are skipped, counted and named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from vitsal.data.pictures import BROKEN_IMAGE, Transform, decode, spread


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


def describe_transform(transform: Callable) -> str:
    """What is done to images before a model sees them: torchvision's and timm's transforms tell, all but one.

    Others, such as functions, are described anew each time: nothing is ever taken for them.
    """
    parts = getattr(transform, "transforms", [transform])
    told = all(type(part).__module__.startswith(("torchvision.", "timm.")) for part in parts)
    text = repr(transform)
    return text if told and "Lambda(" not in text else f"{type(transform).__name__} {uuid4()}"


def data_place(dataset: IndexedImages | StreamedImages) -> str:
    """Where the data lies: its source, a path from the root; a stream's shards too."""
    path = Path(dataset.source)
    place = str(path.resolve()) if dataset.source and path.exists() else dataset.source
    return place if isinstance(dataset, IndexedImages) else f"{place} {_short_hash([dataset.stamp])}"


def sample_keys(dataset: IndexedImages, indices: Sequence[int]) -> dict[int, str]:
    """Number of a sample -> 16 hexadecimal digits that tell its name, content and label."""
    return {index: _short_hash([dataset.name(index), dataset.stamp(index)]) for index in indices}


def data_fingerprint(dataset: IndexedImages | StreamedImages, keys: Mapping[int, str] | None = None) -> str:
    """First 12 hexadecimal digits of the SHA-256 of all samples, or those with these keys, and what is done to them.

    Each sample with its name and stamp (`IndexedImages`). For a stream, whose samples cannot be listed, its source and
    its shards stand.
    """
    if isinstance(dataset, StreamedImages):
        return f"stream of {dataset.source} {_short_hash([dataset.stamp, describe_transform(dataset.transform)])}"
    keys = sample_keys(dataset, range(len(dataset))) if keys is None else keys
    return _short_hash([describe_transform(dataset.transform), *keys.values()], 12)


def _short_hash(parts: Sequence[object], digits: int = 16) -> str:
    text = "\n".join(map(str, parts)).encode(errors="surrogateescape")  # names of files may be any bytes
    return hashlib.sha256(text).hexdigest()[:digits]
