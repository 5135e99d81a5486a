"""What was measured on real models and photographs: the files of `data/measured`, which come with the course."""

from __future__ import annotations

from pathlib import Path

from vitsal.errors import UserError

MEASURED = Path("data", "measured")


def measured_file(name: str) -> Path:
    """A file of `data/measured`, such as "deit_tiny-nips2017.parquet"; how each was made, the README there tells.

    It is looked for in the folder that holds the package, in the working folder, and in those above it.

    Raises:
        UserError: there is no such file.
    """
    places = (Path(__file__).parents[2], Path.cwd(), *Path.cwd().parents)
    found = next((place / MEASURED / name for place in places if (place / MEASURED / name).is_file()), None)
    if found is None:
        raise UserError(
            f"There is no {MEASURED / name} here or above: run this in a clone of the course, which brings it."
        )
    return found
