"""Opening a data set from any source that `timm.data` reads, or one of this course's own."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torchvision
from PIL import Image
from timm.data import ImageNetInfo, create_dataset
from timm.data.readers import create_reader

from vitsal.errors import UserError
from vitsal.images import IndexedImages, StreamedImages, Transform, spread, to_rgb
from vitsal.scenes import DigitScenes

STREAMS = ("hfids/", "wds/", "tfds/")
DATA_DIR_VARIABLE = "VITSAL_DATA_DIR"
TRAIN_SCENES = 10_000  # made on the fly: a limit makes only what is needed of them


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
        scenes = DigitScenes("train", TRAIN_SCENES) if split == "train" else DigitScenes("test")
        return IndexedImages(scenes.__getitem__, scenes.filename, len(scenes), transform, source=f"digits, {split}")
    if source == "imagenette":
        return _open_folder(_imagenette(split), transform, f"imagenette, {split}")
    if source.startswith(STREAMS):
        return _open_stream(source, transform, split)
    if source.startswith("hfds/"):
        reader = _open_timm(source, create_reader, split)
        name = f"{source}, {split}"
        return IndexedImages(reader.__getitem__, reader.filename, len(reader), transform, source=name)
    return _open_folder(Path(source), transform, source)


def open_pictures(source: str, limit: int, *, split: str = "validation") -> dict[str, Image.Image]:
    """A few pictures of a data set as they are, before any transform: name -> picture, RGB.

    Args:
        source, split: as `open_data` takes them.
        limit: how many at most, spread evenly over the data, or the first of a stream; those that cannot be read are
            left out.

    Raises:
        UserError: nothing there, or no images in it.
    """
    dataset = open_data(source, to_rgb, split=split)
    streamed = isinstance(dataset, StreamedImages)
    samples = islice(dataset, limit) if streamed else (dataset[index] for index in spread(len(dataset), limit))
    return {dataset.name(sample.index): sample.image for sample in samples if sample.image is not None}


def _open_stream(source: str, transform: Transform, split: str) -> StreamedImages:
    """Every process gets the whole stream: who takes which batch, and that none is counted twice, is up to accelerate.

    Left alone, timm gives each process its share of the shards, rounded so that samples are lost or repeated.
    """
    stream = _open_timm(source, create_dataset, split, transform=transform, is_training=False)
    stream.reader.dist_rank, stream.reader.dist_num_replicas = 0, 1
    return StreamedImages(stream, f"{source}, {split}", transform=transform)


def _open_folder(path: Path, transform: Transform, source: str) -> IndexedImages:
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
    labels = imagenet_labels(class_to_idx)
    return IndexedImages(reader.__getitem__, reader.filename, len(reader.samples), transform, labels, source)


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
