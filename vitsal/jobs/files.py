"""Files that are whole or not there, and one writer at a time."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vitsal.errors import UserError

ABANDONED = 3600  # seconds after which nobody writes at an unfinished file any more


def write_whole(path: str | Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path`, then put it in its place: a kill leaves the old file or the new one.

    What killed runs have left of earlier attempts is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part{os.getpid()}")  # several processes may write the same file
    for old in path.parent.glob(f"{escape(path.name)}.part[0-9]*"):
        with suppress(FileNotFoundError):  # another process has finished it meanwhile
            if time.time() - old.stat().st_mtime > ABANDONED:
                old.unlink()
    try:
        save(unfinished)
        unfinished.chmod(0o644)  # safetensors writes files that their owner alone may read
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path, *, busy: str = "") -> Iterator[None]:
    """Be the only process that writes a file or folder; who holds the hidden file `.<name>.lock` beside it is.

    A lock that a killed process held is free. Whoever finds it taken waits, and is told so; or, given a sentence in
    `busy`, is refused with that.

    Raises:
        UserError: another process holds the lock, and `busy` is given; or no file can be made there.
    """
    path = Path(os.path.realpath(path))  # one lock, by whatever name
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"), poll_interval=0.01)
    try:
        held = lock.acquire(timeout=0 if busy else 2)
    except Timeout:
        if not os.path.exists(lock.lock_file):
            raise UserError(f"Nothing can be written at {path}: the folder takes no new files.") from None
        if busy:
            raise UserError(busy) from None
        print(f"Another run is writing {path}; waiting for it.", file=sys.stderr, flush=True)
        held = lock.acquire()
    with held:
        yield


def check_folder(path: str | Path) -> None:
    """Raise UserError if `path` is there and is no folder."""
    if Path(path).exists() and not Path(path).is_dir():
        raise UserError(f"{path} is a file, and a folder is needed; name another.")


def check_own_folder(path: str | Path, files: Sequence[str], mark: str) -> None:
    """Raise UserError if a folder holds some of these files, and not the one that tells that they may be replaced."""
    check_folder(path)
    there = [name for name in files if Path(path, name).exists()]
    if there and not Path(path, mark).exists():
        raise UserError(f"{path} holds {', '.join(there)}, and no {mark}: name another folder.")


def read_json(path: str | Path, advice: str) -> dict[str, Any]:
    """Read a JSON object; `advice` is a sentence that says what to do where it cannot be read.

    Raises:
        UserError: there is none, or it is damaged, nested too deeply, or no object.
    """
    try:
        value = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}). {advice}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} cannot be read (it holds no JSON object). {advice}")
    return value
