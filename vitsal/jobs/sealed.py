"""JSON that says itself whether it is whole: beside what it holds stands the checksum of that."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitsal.errors import UserError
from vitsal.jobs.files import read_json, write_whole
from vitsal.jobs.identity import question_hash

SEAL = "checksum"


def write_sealed(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write what JSON can hold, and its checksum: whole or not at all."""
    text = json.dumps({**content, SEAL: question_hash(content)}, indent=1)
    write_whole(path, lambda part: part.write_text(text))


def read_sealed(path: str | Path, advice: str) -> dict[str, Any]:
    """What `write_sealed` wrote; `advice` is a sentence that says what to do where it cannot be read.

    Raises:
        UserError: there is none, or it is damaged.
    """
    content = read_json(path, advice)
    if content.pop(SEAL, None) != question_hash(content):
        raise UserError(f"{path} is damaged: its checksum does not fit. {advice}")
    return content
