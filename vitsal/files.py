"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: str | Path, save: Callable[[Path], object]) -> None:
    """Let `save` write a file beside `path`, then put it in its place: a kill leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part{os.getpid()}")  # several processes may write the same file
    save(unfinished)
    unfinished.chmod(0o644)  # safetensors writes files that their owner alone may read
    os.replace(unfinished, path)
