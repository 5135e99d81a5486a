"""The numbered notebooks of a folder, and the numbers that they leave behind."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vitsal.errors import UserError
from vitsal.jobs.files import locked, write_whole

NOTEBOOK_NAME = re.compile(r"(\d\d)_.+\.ipynb")
HEADLINES = "headlines.json"


def find_notebooks(folder: str | Path, numbers: Sequence[int] = ()) -> list[Path]:
    """The numbered notebooks of a folder, in order; only those with these numbers, if any are given.

    Raises:
        UserError: no notebooks there, or none of a number.
    """
    found = {
        int(match[1]): path
        for path in sorted(Path(folder).glob("*.ipynb"))
        if (match := NOTEBOOK_NAME.match(path.name))
    }
    if not found:
        raise UserError(f"There are no numbered notebooks in {str(folder)!r}; run this in the course's top folder.")
    for number in numbers:
        if number not in found:
            raise UserError(f"There is no notebook {number}. There are: {', '.join(map(str, found))}.")
    return [path for number, path in found.items() if not numbers or number in numbers]


def save_headlines(output_dir: str | Path, notebook: str, numbers: Mapping[str, object]) -> None:
    """Add a notebook's headline numbers, text -> value, to `headlines.json` in its output folder, which is in order.

    Raises:
        UserError: the file that is there is damaged; it is left as it is.
    """
    path = Path(output_dir, HEADLINES)
    with locked(path):  # several notebooks may write at a time
        headlines = {**read_headlines(output_dir), notebook: dict(numbers)}
        whole = json.dumps(dict(sorted(headlines.items())), indent=1) + "\n"
        write_whole(path, lambda part: part.write_text(whole))


def read_headlines(output_dir: str | Path) -> dict[str, dict[str, object]]:
    """The headline numbers that the notebooks of one run left: notebook -> text -> value.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(output_dir, HEADLINES)
    if not path.exists():
        return {}
    try:
        headlines = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and run the notebooks again.") from error
    if not isinstance(headlines, dict) or not all(isinstance(numbers, dict) for numbers in headlines.values()):
        raise UserError(f"{path} holds no headline numbers; remove it, and run the notebooks again.")
    return headlines
