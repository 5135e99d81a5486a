"""Tar files, read to their end or refused."""

from __future__ import annotations

import tarfile
from typing import BinaryIO, Self


class _WholeInfo(tarfile.TarInfo):
    """Members of an archive whose end is marked: Python's tarfile takes a damaged header, or none, for the end too."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            or_none = "" if tarfile_.offset else ", or no tar file at all"
            raise tarfile.ReadError(
                f"it is damaged or cut off at byte {tarfile_.offset:,}{or_none} ({error})"
            ) from error


def open_archive(file: BinaryIO, mode: str) -> tarfile.TarFile:
    """Open a tar file that is read as a whole: one that is damaged, or has no end, raises `tarfile.ReadError`."""
    return tarfile.open(fileobj=file, mode=mode, tarinfo=_WholeInfo)
