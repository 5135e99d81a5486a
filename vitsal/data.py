"""Labelled images from any source that `timm.data` reads, in batches; broken images are skipped, counted and named."""

from __future__ import annotations

import os
import tarfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torchvision
from PIL import Image
from timm.data import ImageNetInfo, create_dataset
from timm.data.readers import create_reader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from vitsal.errors import UserError
from vitsal.scenes import DigitScenes

Transform = Callable[[Image.Image], Tensor]
STREAMS = ("hfids/", "wds/", "tfds/")
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
DATA_DIR_VARIABLE = "VITSAL_DATA_DIR"


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
    """Images of a source without random access: Hugging Face streaming, WebDataset shards, TensorFlow data sets."""

    def __init__(self, dataset: IterableDataset, first: int = 0, last: int | None = None) -> None:
        self.dataset, self.first, self.last = dataset, first, last

    def __iter__(self) -> Iterator[Sample]:
        numbered = enumerate(self.dataset)
        for index, (image, label) in islice(numbered, self.first, self.last):
            yield Sample(f"sample {index:08d}", image, int(label))


def open_data(source: str, transform: Transform, *, split: str = "validation") -> IndexedImages | StreamedImages:
    """Open a data set.

    Args:
        source: "digits", the embedded scenes; "imagenette", downloaded by torchvision; a folder with one folder of
            images per class, or a tar file of such a folder; or a timm name: "hfds/..." (Hugging Face), "hfids/..."
            (the same, streamed), "wds/..." (WebDataset shards). Folders named by WordNet id mean ImageNet's classes.
        transform: PIL image -> (3, H, W), such as `model_transform(model)`.
        split: which part of it, for sources that have parts.

    Raises:
        UserError: nothing there, or no images in it.
    """
    if source == "digits":
        scenes = DigitScenes("train" if split == "train" else "test")
        return IndexedImages(scenes.__getitem__, scenes.filename, len(scenes), transform)
    if source == "imagenette":
        return _open_folder(_imagenette(split), transform)
    if source.startswith(STREAMS):
        return StreamedImages(_open_timm(source, create_dataset, split, transform=transform, is_training=False))
    if source.startswith("hfds/"):
        reader = _open_timm(source, create_reader, split)
        return IndexedImages(reader.__getitem__, reader.filename, len(reader), transform)
    return _open_folder(Path(source), transform)


def _open_folder(path: Path, transform: Transform) -> IndexedImages:
    if not path.exists():
        raise UserError(
            f"There is no data at {str(path)!r}. Give a folder with one folder of images per class, a tar file, "
            "'digits', 'imagenette', or a timm data set name that begins with hfds/, hfids/ or wds/."
        )
    try:
        reader = create_reader("", root=str(path))
    except (RuntimeError, ValueError, tarfile.TarError) as error:  # nothing in the folder, in the tar file; no tar file
        raise UserError(f"{path} holds no images: {error}") from error
    class_to_idx = reader.class_name_to_idx if path.is_file() else reader.class_to_idx  # timm's tar and folder readers
    if "" in class_to_idx:
        raise UserError(f"{path} holds images that lie in no class folder; their class is the name of their folder.")
    return IndexedImages(
        reader.__getitem__, reader.filename, len(reader.samples), transform, imagenet_labels(class_to_idx)
    )


def imagenet_labels(class_to_idx: dict[str, int]) -> dict[int, int] | None:
    """Folder index -> ImageNet-1k class, where all folders are named by WordNet ids of ImageNet; otherwise None."""
    imagenet = {wnid: index for index, wnid in enumerate(ImageNetInfo().label_names())}
    if not class_to_idx.keys() <= imagenet.keys():
        return None
    return {index: imagenet[wnid] for wnid, index in class_to_idx.items()}


def _open_timm(source: str, opener: Callable, split: str, **options: Any) -> Any:
    """`prefix/name` as timm takes it; for WebDataset, `wds/` and a local path or a URL of shards."""
    prefix, name = source.split("/", 1)
    root = name if prefix == "wds" else None
    try:
        return opener("wds/" if prefix == "wds" else source, root=root, split=split, **options)
    except ImportError as error:
        raise UserError(f"{source!r} needs a library that is not installed: pip install 'vitsal[hub]'.") from error
    except (OSError, RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise UserError(f"The data set {source!r}, split {split!r}, cannot be opened: {error}") from error


def _imagenette(split: str) -> Path:
    """Folder of Imagenette's part, of whatever image size is there; downloaded by torchvision where there is none."""
    part = "train" if split == "train" else "val"
    for folder in sorted(data_dir().glob(f"imagenette2*/{part}")):
        return folder
    try:
        torchvision.datasets.Imagenette(str(data_dir()), split=part, size="320px", download=True)
    except OSError as error:
        raise UserError(
            f"Imagenette is not in {data_dir()} and cannot be downloaded ({error}). Give a folder as data, or "
            f"name the folder that holds imagenette2-320 in the environment variable {DATA_DIR_VARIABLE}."
        ) from error
    return data_dir() / "imagenette2-320" / part


def data_dir() -> Path:
    """Where downloads go: VITSAL_DATA_DIR, or `data` in the course's folder, or in the current one."""
    course = Path(__file__).parent.parent
    default = course if (course / "notebooks").is_dir() else Path.cwd()
    return Path(os.environ.get(DATA_DIR_VARIABLE) or default / "data")


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
        return StreamedImages(dataset.dataset, first, limit)
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
