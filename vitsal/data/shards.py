"""WebDataset shards: found, checked and read whole, or refused. Nothing is skipped, and nothing is executed.

webdataset itself opens `pipe:` as a shell command, and timm's reader logs what is missing or damaged and goes on.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any, BinaryIO
from urllib.parse import urlparse
from urllib.request import url2pathname

from vitsal.data.labels import is_hidden
from vitsal.data.pictures import BrokenImage, Transform, decode
from vitsal.data.sources import file_stamp, open_archive
from vitsal.errors import UserError, check_choice, printable

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")  # of files' endings
INFO_FILES = ("_info.json", "info.json")
MOST_SHARDS = 100_000


@dataclass
class ShardImages:
    """Images, transformed, and labels of shards, in their order, each once."""

    shards: list[str]  # paths and URLs
    label_key: str  # the field of each sample's JSON that holds its label; "" where a file `.cls` does
    transform: Transform  # PIL image -> (3, H, W)

    @property
    def stamp(self) -> str:
        """Where the shards are; size and time of those that are files."""
        return "\n".join(
            url if _is_remote(url) else f"{os.path.realpath(_path(url))} {file_stamp(_path(url))}"
            for url in self.shards
        )

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        for shard in self.shards:
            for sample in _samples(shard):
                image, label = self._read(sample, shard)
                if label >= 0 or not self.label_key:  # below zero in JSON: by timm's convention, no part of the data
                    yield self.transform(image), label

    def _read(self, sample: dict[str, Any], shard: str) -> tuple[Any, int]:
        try:
            content = next(sample[key] for key in IMAGE_KEYS if key in sample)
            label = json.loads(sample["json"])[self.label_key] if self.label_key else sample["cls"]
            return decode(BytesIO(content)), int(label)
        except StopIteration:
            problem = f"it has no image ({', '.join(IMAGE_KEYS)})"
        except BrokenImage as error:
            problem = str(error)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            problem = f"it has no label that is a number ({error})"
        raise UserError(
            f"Sample {printable(sample['__key__'])} of the shard {printable(shard)} cannot be read: {problem}. A "
            "stream leaves nothing out: mend the shard, or unpack it into a folder, whose broken images are skipped."
        )


def open_shards(root: str, split: str, transform: Transform) -> ShardImages:
    """Find the shards of a data set in a folder or below a URL; all of them must be there.

    Its split is a name that `_info.json` beside the shards knows, or the shards' names, such as "val-{000..099}.tar".

    Raises:
        UserError: an unknown split, a shard that is missing, or one that is neither a file nor on the web.
    """
    import webdataset

    webdataset.utils.enforce_security = True  # its own lock, behind ours
    _check_scheme(root)
    names, label_key = _shard_names(root, split)
    shards = [os.path.join(root, name) for name in names]
    for shard in shards:
        _check_scheme(shard)
        if not _is_remote(shard) and not os.path.isfile(_path(shard)):
            raise UserError(f"There is no shard {printable(shard)}, one of the {len(shards):,} of split {split!r}.")
    return ShardImages(shards, label_key, transform)


def _shard_names(root: str, split: str) -> tuple[list[str], str]:
    """Names of a split's shards, and the field that holds labels."""
    if "tar" in split or ".." in split:  # timm's rule for what is a pattern, and no name
        return _expand(split.partition("|")[0]), ""  # timm's "pattern|number of samples"
    splits = _read_info(root)
    part = splits[check_choice("split", split, splits)]
    names = part.get("filenames") if isinstance(part, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"The info file in {printable(root)} lists no files for split {split!r}.")
    return names, str(part.get("alt_label") or "")


def _expand(pattern: str) -> list[str]:
    """Names that a pattern with braces stands for, a bounded number of them."""
    from braceexpand import braceexpand

    ranges = re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern)  # braceexpand would make each as a whole
    names, made = [], sum(abs(int(last) - int(first)) for first, last in ranges)
    if pattern.count("{") <= math.log2(MOST_SHARDS) and made < MOST_SHARDS:
        names = [name for part in pattern.split("::") for name in islice(braceexpand(part), MOST_SHARDS + 1)]
    if not 0 < len(names) <= MOST_SHARDS:
        raise UserError(f"The split {pattern!r} stands for no list of 1 to {MOST_SHARDS:,} shards.")
    return names


def _read_info(root: str) -> dict[str, Any]:
    """Splits that the info file beside the shards names."""
    for name in INFO_FILES:
        url = os.path.join(root, name)
        if _is_remote(url) or os.path.isfile(_path(url)):
            with _open(url) as file:
                info = json.loads(file.read())
            if not isinstance(info, dict) or not isinstance(info.get("splits"), dict):
                raise UserError(f"{printable(url)} names no splits.")
            return info["splits"]
    raise UserError(
        f"There is no {INFO_FILES[0]} in {printable(root)} that says which shards this part has; name them as the "
        "split, such as 'val-{000..099}.tar'."
    )


def _samples(shard: str) -> Iterator[dict[str, Any]]:
    """Samples of a shard: files of one name, by their ending."""
    from webdataset.tariterators import group_by_keys

    try:
        yield from group_by_keys(_files(shard))
    except Exception as error:  # of tarfile, of every compression, of the web
        raise UserError(
            f"The shard {printable(shard)} cannot be read to its end: {error.args[0] if error.args else error}. "
            "Fetch or write it again."
        ) from error


def _files(shard: str) -> Iterator[dict[str, Any]]:
    with _open(shard) as file, open_archive(file, "r|*") as archive:
        for member in archive:
            archive.members = []  # or all that has been read stays in memory
            if member.isreg() and not any(map(_is_meta, member.name.split("/"))):
                yield {"fname": member.name, "data": archive.extractfile(member).read(), "__url__": shard}


def _is_meta(name: str) -> bool:
    """Whether a member is no sample: hidden, or WebDataset's `__notes__`."""
    return (is_hidden(name) and name != ".") or (name.startswith("__") and name.endswith("__"))


def _check_scheme(url: str) -> None:
    scheme = urlparse(url).scheme
    if scheme not in ("", "file", "http", "https"):
        raise UserError(
            f"{printable(url)!r} is neither a file nor a web address: shards are read from files, http and https, and "
            f"nothing that begins with {scheme + ':'!r} is opened or run."
        )


def _is_remote(url: str) -> bool:
    return urlparse(url).scheme in ("http", "https")


def _path(url: str) -> str:
    return url2pathname(urlparse(url).path) if urlparse(url).scheme == "file" else url


def _open(url: str) -> BinaryIO:
    """A file, or what curl fetches from the web."""
    from webdataset.gopen import gopen

    return gopen(url) if _is_remote(url) else open(_path(url), "rb")
