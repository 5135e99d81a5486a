"""Outputs that can be written, and are no inputs: checked before any work begins, and without torch."""

from __future__ import annotations

import os
from pathlib import Path

from vitsal.errors import UserError, quoted

LONGEST_PATH = 3_000  # characters, of 4,096 bytes from the root
LONGEST_NAME = 230  # bytes of a name, of 255: while a file is written, and locked, its name is a little longer


def check_output(path: str | Path, *inputs: str | Path | None) -> None:
    """Raise UserError if no file can be written at `path`, or if it would take the place of an input, by whatever name.

    Inputs are files that are read, or words that may name one.
    """
    path = Path(path)
    _check_writable(path)
    if path.is_dir():
        raise UserError(f"The output {path} is a folder; name a file.")
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise UserError(f"The output {path} is no file that can be written; name another.")
    for source in filter(None, inputs):
        if path.exists() and os.path.exists(source) and path.samefile(source):
            raise UserError(f"The output {path} is the source itself ({source}); name another file.")


def check_output_folder(path: str | Path, *inputs: str | Path | None, within: bool = False) -> None:
    """Raise UserError if nothing can be written into a folder at `path`, or if it is, or lies in, a folder of inputs.

    Inputs are folders that are read, or words that may name one; `within` allows that it lies in one of them.
    """
    path = Path(path)
    _check_writable(path / "file")
    place = Path(os.path.realpath(path))
    for source in filter(None, inputs):
        if os.path.isdir(source) or isinstance(source, Path):  # a word may also be a name in timm or on the hub
            read = Path(os.path.realpath(source))
            if place == read or (not within and place.is_relative_to(read)):
                where = "is" if place == read else "lies in"
                raise UserError(f"The output folder {path} {where} {source}, which is read; name another folder.")


def _check_writable(path: Path) -> None:
    """Raise UserError if nothing can be written under this name, by what is known before it is tried."""
    too_long = len(str(path)) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts)
    if too_long or "\0" in str(path):
        raise UserError(f"{quoted(str(path))} is too long for the name of a file, or holds a null character.")
    if str(path).startswith("~"):  # pandas would take it for the home folder, and others would not
        raise UserError(f"{path} begins with ~, which only a shell turns into a folder; write the folder's name.")
    try:
        above = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), path)
        if not above.exists():
            raise UserError(f"Nothing can be written at {path}: {above} is a link that leads nowhere.")
    except OSError as error:
        raise UserError(f"Nothing can be written at {quoted(str(path))}: {error.strerror}.") from error
    if not above.is_dir():
        raise UserError(f"Nothing can be written at {path}: {above} is a file, and a folder is needed.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"Nothing can be written at {path}: the folder {above} cannot be written to.")
