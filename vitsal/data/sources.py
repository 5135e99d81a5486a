"""Images that can be read by number, as `NumberedImages` says: of folders, tar files and Hugging Face data sets."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from timm.data.readers import get_img_extensions

from vitsal.data.labels import by_name, is_hidden
from vitsal.errors import printable


@dataclass(frozen=True)
class FolderImages:
    """Images of a folder: their paths in it, and their labels."""

    root: str
    paths: list[str]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Path, int]:
        """The file, unopened, and its label."""
        return Path(self.root, self.paths[index]), self.labels[index]

    def name(self, index: int) -> str:
        """The path within the folder."""
        return printable(self.paths[index])

    def stamp(self, index: int) -> str:
        """Label, size and time of the file."""
        return f"{self.labels[index]} {file_stamp(os.path.join(self.root, self.paths[index]))}"


def file_stamp(path: str) -> str:
    """Size and time of a file; "missing" where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return "missing"
    return f"{found.st_size} {found.st_mtime_ns}"


def list_folder(folder: str) -> list[str]:
    """Paths of the images below a folder, in the order of their names; hidden files and folders are passed over."""
    return sorted(_images_below(folder), key=by_name)


def _images_below(folder: str, prefix: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Links are followed, but not into a folder that they lie in themselves: that would never end."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path)):
                yield from _images_below(entry.path, f"{prefix}{entry.name}/", above | {real})
            elif _is_image(entry.name):
                yield prefix + entry.name


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in get_img_extensions(as_set=True)


class _WholeInfo(tarfile.TarInfo):
    """Members of an archive whose end is marked: Python's tarfile takes a damaged header, or none, for the end too."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            or_none = "" if archive.offset else ", or no tar file at all"
            raise tarfile.ReadError(
                f"it is damaged or cut off at byte {archive.offset:,}{or_none} ({error})"
            ) from error


def open_archive(file: BinaryIO, mode: str) -> tarfile.TarFile:
    """Open a tar file that is read as a whole: one that is damaged, or has no end, raises `tarfile.ReadError`."""
    return tarfile.open(fileobj=file, mode=mode, tarinfo=_WholeInfo)


class Member(NamedTuple):
    """An image in a tar file: its path there, and its bytes within the file."""

    path: str
    offset: int
    size: int


def list_tar(path: str) -> list[Member]:
    """Images in a tar file, in the order of their names; a tar file in it counts as a folder, as timm has it.

    `tarfile.TarError` for a file that is damaged, or cut off.
    """
    with open(path, "rb") as file:
        return sorted(_images_in(file), key=lambda member: by_name(member.path))


def _images_in(file: Any, prefix: str = "", start: int = 0) -> Iterator[Member]:
    with open_archive(file, "r:") as archive:
        for member in archive:
            path = prefix + os.path.normpath(f"/{member.name}").lstrip("/")
            stem, ending = os.path.splitext(path)
            if not member.isreg() or any(map(is_hidden, path.split("/"))):
                continue
            if ending.lower() == ".tar":
                yield from _images_in(archive.extractfile(member), f"{stem}/", start + member.offset_data)
            elif _is_image(path):
                yield Member(path, start + member.offset_data, member.size)


@dataclass(frozen=True)
class TarImages:
    """Images of a tar file, and their labels. No file is kept open, so that processes cannot disturb each other."""

    path: str
    members: list[Member]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.members)

    def read(self, index: int) -> tuple[BytesIO, int]:
        """The image's bytes and its label."""
        with open(self.path, "rb") as file:
            file.seek(self.members[index].offset)
            return BytesIO(file.read(self.members[index].size)), self.labels[index]

    def name(self, index: int) -> str:
        """The path within the tar file."""
        return printable(self.members[index].path)

    def stamp(self, index: int) -> str:
        """Label, size and time of the tar file, and where the image lies in it."""
        return f"{self.labels[index]} {file_stamp(self.path)} {self.members[index].offset}"


@dataclass(frozen=True)
class HubImages:
    """Images of a Hugging Face data set, whose images are not decoded, with columns `image` and `label`."""

    table: Any

    def __len__(self) -> int:
        return len(self.table)

    def read(self, index: int) -> tuple[BytesIO | Path, int]:
        """The image's bytes, or its file, and its label; -1 where it has none."""
        row = self.table[index]
        image, label = row["image"] or {}, row["label"]
        source = BytesIO(image["bytes"]) if image.get("bytes") else Path(image.get("path") or "")
        return source, -1 if label is None else label

    def name(self, index: int) -> str:
        """Its file's path; a number where it has none."""
        return printable(self._paths[index] or f"sample {index:08d}")

    @cached_property
    def _paths(self) -> Sequence[str | None]:
        """Read without the images' bytes."""
        return self.table.select_columns("image").flatten()["image.path"]

    def stamp(self, index: int) -> str:
        """What Hugging Face tells data sets apart by, and the row."""
        return f"{self.table._fingerprint} {index}"
