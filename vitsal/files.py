"""Files that are whole or not there, and one writer at a time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from vitsal.errors import UserError, quoted

ABANDONED = 3600  # seconds after which nobody writes at an unfinished file any more
LONGEST_PATH = 3_000  # characters, of 4,096 bytes from the root
LONGEST_NAME = 230  # bytes of a name, of 255: while a file is written, and locked, its name is a little longer


def write_whole(path: str | Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path`, then put it in its place: a kill leaves the old file or the new one.

    What killed runs have left of earlier attempts is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part{os.getpid()}")  # several processes may write the same file
    for old in path.parent.glob(f"{escape(path.name)}.part[0-9]*"):
        if time.time() - old.stat().st_mtime > ABANDONED:
            old.unlink(missing_ok=True)
    try:
        save(unfinished)
        unfinished.chmod(0o644)  # safetensors writes files that their owner alone may read
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path, *, busy: str = "") -> Iterator[None]:
    """Be the only process that writes something; who holds the hidden file `.<name>.lock` beside it is.

    A lock that a killed process held is free.

    Args:
        path: what is written, a file or a folder.
        busy: a sentence for whoever finds the lock taken, who is then refused; without one, he waits, and is told so.

    Raises:
        UserError: another process holds the lock, and `busy` is given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), poll_interval=0.01)
    try:
        lock.acquire(timeout=0 if busy else 2)
    except Timeout:
        if busy:
            raise UserError(busy) from None
        print(f"Another run is writing {path}; waiting for it.", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_folder(path: str | Path) -> None:
    """Raise UserError if `path` is there and is no folder."""
    if Path(path).exists() and not Path(path).is_dir():
        raise UserError(f"{path} is a file, and a folder is needed; name another.")


def check_output(path: str | Path, *inputs: str | Path | None) -> None:
    """Raise UserError if no file can be written at `path`, or if it would take the place of an input, by whatever name.

    Args:
        path: the file to be.
        inputs: files that are read, or words that may name one.
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

    Args:
        path: the folder to be.
        inputs: folders that are read, or words that may name one.
        within: whether it may lie in one of them.
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
