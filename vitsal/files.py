"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from vitsal.errors import UserError


def write_whole(path: str | Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path`, then put it in its place: a kill leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part{os.getpid()}")  # several processes may write the same file
    save(unfinished)
    unfinished.chmod(0o644)  # safetensors writes files that their owner alone may read
    os.replace(unfinished, path)


def check_folder(path: str | Path) -> None:
    """Raise UserError if `path` is there and is no folder."""
    if Path(path).exists() and not Path(path).is_dir():
        raise UserError(f"{path} is a file, and a folder is needed; name another.")
