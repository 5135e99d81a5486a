"""Files that are whole or not there, and one writer at a time."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from vitsal.errors import UserError, quoted

ABANDONED = 3600  # seconds after which nobody writes at an unfinished file any more
LONGEST_NAME = 230  # bytes of a name, of 255: while a file is written, and locked, its name is a little longer


def write_whole(path: str | Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path`, then put it in its place: a kill leaves the old file or the new one.

    What killed runs have left of earlier attempts is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part{os.getpid()}")  # several processes may write the same file
    for old in path.parent.glob(f"{escape(path.name)}.part*"):
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
    """Hold `<path>.lock` while something is written that no other process may write at the same time.

    A lock that a killed process held is free.

    Args:
        path: what is written, a file or a folder.
        busy: a sentence for whoever finds the lock taken, who is then refused; without one, he waits, and is told so.

    Raises:
        UserError: another process holds the lock, and `busy` is given.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
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
    """Raise UserError if no file can be written at `path`, or if it would take the place of an input.

    Args:
        path: the file to be.
        inputs: what is read: files, folders whose files are meant, or words that may name one.
    """
    path = Path(path)
    _check_writable(path)
    if path.is_dir():
        raise UserError(f"The output {path} is a folder; name a file.")
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise UserError(f"The output {path} is no file that can be written; name another.")
    for source in _existing(inputs):
        if path.exists() and any(path.samefile(file) for file in _files(source)):
            what = "the source itself" if source.is_file() else f"one of the files of {source}"
            raise UserError(f"The output {path} is {what}; name another file.")


def check_output_folder(path: str | Path, *inputs: str | Path | None, within: bool = False) -> None:
    """Raise UserError if nothing can be written into a folder at `path`, or if it is, or lies in, a folder of inputs.

    Args:
        path: the folder to be.
        inputs: folders that are read, or words that may name one.
        within: whether it may lie in one of them.
    """
    path = Path(path)
    _check_writable(path / "file")
    place = path.resolve()
    for source in map(Path.resolve, _existing(inputs)):
        if place == source or (not within and place.is_relative_to(source)):
            where = "is" if place == source else "lies in"
            raise UserError(f"The output folder {path} {where} {source}, which is read; name another folder.")


def _check_writable(path: Path) -> None:
    """Raise UserError if nothing can be written under this name, by what is known before it is tried."""
    if "\0" in str(path) or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise UserError(f"{quoted(str(path))} is too long for the name of a file, or holds a null character.")
    try:
        above = next((folder for folder in path.absolute().parents if folder.exists()), path)
    except OSError as error:
        raise UserError(f"Nothing can be written at {quoted(str(path))}: {error.strerror}.") from error
    if not above.is_dir():
        raise UserError(f"Nothing can be written at {path}: {above} is a file, and a folder is needed.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"Nothing can be written at {path}: the folder {above} cannot be written to.")


def _existing(inputs: Iterable[str | Path | None]) -> list[Path]:
    """Paths, and those words that name something here; others are names of the hub, or of timm."""
    found = []
    for source in filter(None, inputs):
        with suppress(OSError, ValueError):
            found += [Path(source)] if isinstance(source, Path) or Path(source).exists() else []
    return found


def _files(source: Path) -> Iterator[Path]:
    """The file itself, or all files of a folder, as far down as it goes."""
    yield from (file for file in ([source] if source.is_file() else source.rglob("*")) if file.is_file())
