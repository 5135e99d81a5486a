"""What the folders of a data set mean as classes: ImageNet's by WordNet id, or numbered in order; never a guess."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from timm.data import ImageNetInfo
from timm.utils.misc import natural_key
from torch import Tensor, nn

from vitsal.data.images import LabelledImages
from vitsal.errors import UserError, first_few

IMAGENET_CLASSES = 1_000


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the data's own: `.ipynb_checkpoints`, `._image.jpg`, `__MACOSX`, ..."""
    return name.startswith(".") or name == "__MACOSX"


def by_name(name: str) -> tuple:
    """Key to sort names by, as timm does: "2" before "10"."""
    return natural_key(name), name


def find_classes(paths: Sequence[str], source: str) -> tuple[list[int], dict[str, Any]]:
    """Labels of images, from the folders that they lie in, and what `IndexedImages` keeps of their classes.

    The class is the part of the path that is a WordNet id of ImageNet-1k, if every path has one such part. If none has,
    it is the last folder, and folders are numbered in the order of their names. Messages call the data set `source`.
    Where the class of some cannot be told, theirs is -1, and `unclear` says why: who needs no labels may go on.
    UserError for images that lie in no folder.
    """
    if not all("/" in path for path in paths):
        raise UserError(f"{source} holds images that lie in no class folder; their class is the name of their folder.")
    imagenet = {wnid: index for index, wnid in enumerate(ImageNetInfo().label_names())}
    ids = [{part for part in path.split("/")[:-1] if part in imagenet} for path in paths]
    if not any(ids):
        names = [path.split("/")[-2] for path in paths]
        ordered = sorted(set(names), key=by_name)
        numbers = {name: number for number, name in enumerate(ordered)}
        return [numbers[name] for name in names], {"num_classes": len(ordered), "folders": tuple(ordered)}
    labels = [imagenet[min(found)] if len(found) == 1 else -1 for found in ids]
    folders = {path.rpartition("/")[0] for path, label in zip(paths, labels, strict=True) if label < 0}
    unclear = folders and (
        f"{source} has folders named by WordNet ids of ImageNet, and others that are not, or not by one alone: "
        f"{first_few(sorted(folders))}. The class of their images cannot be told: rename or remove them."
    )
    return labels, {"num_classes": IMAGENET_CLASSES, "unclear": unclear or ""}


def check_classes(dataset: LabelledImages, target: nn.Module) -> None:
    """Refuse data whose classes cannot be the target's; say so where they are its own by nothing but their order.

    Streams, whose number of classes nobody knows beforehand, pass; their labels are looked at one by one.
    UserError where the class of some images cannot be told, or the target has another number of classes.
    """
    if dataset.unclear:
        raise UserError(dataset.unclear)
    known, folders = dataset.num_classes, dataset.folders
    if known is None:
        return
    if known != target.num_classes:
        named = f" ({first_few(folders)})" if folders else " (ImageNet's)" if known == IMAGENET_CLASSES else ""
        remedy = " or name the folders by WordNet ids of ImageNet" if target.num_classes == IMAGENET_CLASSES else ""
        raise UserError(
            f"The data {dataset.source!r} has {known:,} classes{named}, and the target tells {target.num_classes:,} "
            f"apart, so its labels are not the target's: choose a target with {known:,} classes{remedy}."
        )
    if folders:
        numbered = first_few([f"{number} {name}" for number, name in enumerate(folders)])
        warnings.warn(
            f"The classes of {dataset.source!r} are numbered in the order of their folders' names, and taken for the "
            f"target's: {numbered}.",
            stacklevel=2,
        )


def check_labels(labels: Tensor, target: nn.Module) -> None:
    """Raise UserError if the target has not all of the classes that the data names."""
    low, high = labels.min().item(), labels.max().item()
    if low < 0:
        raise UserError(f"The data has label {low}: this part of it is not labelled; choose another split.")
    if high >= target.num_classes:
        raise UserError(
            f"The data has class {high}, but the target knows classes 0 to {target.num_classes - 1}: "
            "data and target do not belong together."
        )
