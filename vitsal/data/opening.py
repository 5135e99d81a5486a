"""Opening a data set from any source that `timm.data` reads, or one of this course's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision
from PIL import Image
from timm.data import create_dataset
from timm.data.readers import create_reader, get_img_extensions
from torch.utils.data import IterableDataset

from vitsal.data.images import IndexedImages, LabelledImages, StreamedImages
from vitsal.data.labels import find_classes
from vitsal.data.pictures import Transform, decode, to_rgb
from vitsal.data.places import SPLITS, check_data
from vitsal.data.scenes import DigitScenes
from vitsal.data.shards import open_shards
from vitsal.data.sources import FolderImages, HubImages, TarImages, list_folder, list_tar
from vitsal.errors import UserError, printable

DATA_DIR_VARIABLE = "VITSAL_DATA_DIR"


def open_data(source: str, transform: Transform, *, split: str = "validation") -> LabelledImages:
    """Open a data set.

    Args:
        source: "digits", the embedded scenes; "imagenette", downloaded by torchvision; a folder with one folder of
            images per class, or a tar file of such a folder; or a timm name: "hfds/..." (Hugging Face), "hfids/..."
            (the same, streamed), "wds/..." (WebDataset shards). Folders named by WordNet id mean ImageNet's classes.
        transform: PIL image -> (3, H, W), such as `model_transform(model)`.
        split: which part of it; one of `SPLITS` for "digits" and "imagenette"; without meaning for folders and tar
            files, of which the part itself is to be named; for the others, what their library takes.

    Raises:
        UserError: nothing there, no images in it, images in no folder, parts in the place of classes, an unknown split,
            shards that are missing or are commands.
    """
    check_data(source, split)
    if source.startswith(("hfids/", "wds/", "tfds/")):
        return _open_stream(source, transform, split)
    if source.startswith("hfds/"):
        return _open_hub(source, transform, split)
    if source == "digits":
        scenes = DigitScenes("train", 10_000) if split == "train" else DigitScenes("test")  # made as they are needed
        return IndexedImages(scenes, transform, f"digits, {split}", len(scenes.classes))
    if source == "imagenette":
        return _open_files(str(_imagenette(split)), transform, f"imagenette, {split}")
    return _open_files(source, transform, source)


def open_pictures(source: str, limit: int, *, split: str = "validation") -> dict[str, Image.Image]:
    """A few pictures of a data set, as `open_data` takes it, before any transform: name -> picture, RGB.

    They are `limit` at most, spread evenly, or the first of a stream; those that cannot be read are left out.
    UserError where nothing is there, or no images are in it.
    """
    dataset = open_data(source, to_rgb, split=split)
    samples = dataset.part(dataset.numbers(limit))
    return {dataset.name(sample.index): sample.image for sample in samples if sample.image is not None}


def _open_files(path: str, transform: Transform, source: str) -> IndexedImages:
    """A folder, or a tar file."""
    folder = os.path.isdir(path)
    try:
        found = list_folder(path) if folder else list_tar(path)
    except Exception as error:  # of the file system, of tarfile
        raise UserError(f"{printable(path)} holds no images that can be read: {error}.") from error
    paths = found if folder else [member.path for member in found]
    parts = sorted({path.split("/")[0] for path in paths})
    if len(parts) > 1 and set(parts) <= set(SPLITS):
        one = f"name one: {path}/{parts[0]}" if folder else "make a tar file of each, and name one"
        raise UserError(f"{printable(path)} holds parts, not classes ({', '.join(parts)}); {one}.")
    if not found:
        raise UserError(f"{printable(path)} holds no images ({', '.join(get_img_extensions())}).")
    labels, classes = find_classes(paths, printable(path))
    images = (FolderImages if folder else TarImages)(path, found, labels)
    return IndexedImages(images, transform, source, **classes)


def _open_hub(source: str, transform: Transform, split: str) -> IndexedImages:
    reader = _open_library(source, split, lambda: create_reader(source, split=split))
    label = reader.dataset.features.get("label")
    if not str(getattr(label, "dtype", "")).startswith(("int", "uint")):
        raise UserError(f"The data set {source!r} has no column 'label' of whole numbers.")
    return IndexedImages(HubImages(reader.dataset), transform, f"{source}, {split}", len(reader.class_to_idx) or None)


def _open_stream(source: str, transform: Transform, split: str) -> StreamedImages:
    """Every process gets the whole stream: who takes which batch, and that none is counted twice, is up to accelerate.

    Left alone, timm gives each process its share of the shards, rounded so that samples are lost or repeated.
    """
    kind, name = source.split("/", 1)
    label = f"{source}, {split}"
    if kind == "wds":
        shards = _open_library(source, split, lambda: open_shards(name, split, transform))
        return StreamedImages(shards, label, stamp=shards.stamp, transform=transform)
    stream = _open_library(source, split, lambda: _timm_stream(source, split, transform))
    dataset, stamp, classes = _Stream(stream, label), _version(stream.reader), stream.reader.class_to_idx
    return StreamedImages(dataset, label, stamp=stamp, transform=transform, num_classes=len(classes) or None)


def _timm_stream(source: str, split: str, transform: Transform) -> IterableDataset:
    if source.startswith("tfds/") and ":" in source and not source.rpartition(":")[2].replace(".", "").isdecimal():
        raise UserError("A namespace before the name stands for code from elsewhere, which is not run.")
    hub = source.startswith("hfids/")
    options = {"input_img_mode": "", "num_samples": 1} if hub else {}  # `decode` makes RGB; training needs the number
    prepare = torchvision.transforms.Compose([decode, transform])
    stream = create_dataset(source, root=None, split=split, transform=prepare, is_training=False, **options)
    if hub:
        stream.reader.builder.as_streaming_dataset(split=split)  # timm would find an unknown split while reading
    stream.reader.dist_rank, stream.reader.dist_num_replicas = 0, 1
    return stream


def _version(reader: Any) -> str:
    """What a library tells versions of its data sets apart by: TensorFlow's by their names."""
    builder = reader.builder
    files = getattr(builder.config, "data_files", None) or {}
    states = {part: getattr(listed, "origin_metadata", None) for part, listed in files.items()}
    return getattr(builder.info, "full_name", f"{builder.hash} {builder.config_id} {states}")


@dataclass
class _Stream:
    """A library's stream that ends with its last sample, or with an error that says where it broke."""

    stream: IterableDataset
    source: str

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        number = 0
        try:
            for image, label in self.stream:
                yield image, -1 if label is None else label
                number += 1
        except Exception as error:  # of every library and file format
            raise UserError(
                f"The data set {self.source} breaks off: its sample {number:,} cannot be read: {error}. A stream "
                "leaves nothing out; with hfds/ in the place of hfids/, broken images are skipped and named."
            ) from error


def _open_library(source: str, split: str, opener: Callable[[], Any]) -> Any:
    """What a library opens, whatever it raises told as one error."""
    try:
        return opener()
    except ImportError as error:
        needed = "tensorflow-datasets" if source.startswith("tfds/") else "'vitsal[hub]'"
        raise UserError(f"{source!r} needs a library that is not installed: pip install {needed}.") from error
    except Exception as error:  # of every library and file format
        told = " ".join(str(error).split())
        raise UserError(f"The data set {source!r}, split {split!r}, cannot be opened: {told}") from error


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
    course = Path(__file__).parents[2]
    default = course if (course / "notebooks").is_dir() else Path.cwd()
    return Path(os.environ.get(DATA_DIR_VARIABLE) or default / "data")
