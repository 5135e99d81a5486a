"""Errors that say what was wrong, with which value, and what to do about it."""

from __future__ import annotations

import difflib
import numbers
import os
import re
from collections.abc import Iterable
from pathlib import Path

LARGEST_COUNT = 10**9  # of images and the like: more is a slip, and beyond 2**63 an error of torch's
LARGEST_SEED = 2**32 - 1  # what numpy takes; torch and zlib take no less
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # as torch says it


class UserError(ValueError):
    """Something the user gave cannot be used; the message says why and what can.

    The command line prints the message alone, as one paragraph, and exits with status 2.
    """


def check_choice(kind: str, value: object, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`; otherwise raise UserError, with these and the nearest of them."""
    known = list(known)
    if value in known:
        return str(value)
    raise UserError(f"Unknown {kind} {quoted(value)}.{suggestion(value, known)} Known: {', '.join(known)}.")


def quoted(value: object) -> str:
    """A value as messages quote it."""
    return cut(repr(value))


def cut(text: str, most: int = 200) -> str:
    """A text without its middle, where it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def suggestion(value: object, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' with the nearest known names, or '' where none is near."""
    near = difflib.get_close_matches(str(value)[:100], list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def first_few(names: Iterable[str], most: int = 5, between: str = ", ") -> str:
    """The first few names, printable, and how many more there are."""
    names = list(names)
    shown = [printable(name) for name in names[:most]]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(shown) + more


def printable(text: object) -> str:
    """A text from outside, such as a file's name, fit to be shown and written down: line breaks, terminals' codes, and
    bytes that are no UTF-8, as their escapes.
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def check_number(kind: str, value: object, low: float, high: float, *, open_end: str) -> float:
    """Return `value` as a float if it is a number between `low` and `high`; otherwise raise UserError.

    Args:
        kind: the name to use in the message, such as "keep ratio".
        open_end: which end does not belong to the interval, "low" or "high".
    """
    interval = f"({low:g}, {high:g}]" if open_end == "low" else f"[{low:g}, {high:g})"
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or value != value:  # nan
        raise UserError(f"The {kind} must be a number in {interval}; got {quoted(value)}.")
    inside = low < value <= high if open_end == "low" else low <= value < high
    if not inside:
        raise UserError(f"The {kind} must lie in {interval}; got {_rounded(value)}.")
    return float(value)


def check_whole(kind: str, value: object, low: int, high: int) -> int:
    """Return `value` if it is a whole number from `low` to `high`; otherwise raise UserError, naming its `kind`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= value <= high:
        raise UserError(f"The {kind} must be a whole number from {low} to {high}; got {quoted(value)}.")
    return int(value)


def _rounded(value: numbers.Real) -> str:
    try:
        return f"{value:g}"
    except OverflowError:  # a whole number beyond all floating point
        return quoted(value)


def check_file(kind: str, path: str | Path) -> None:
    """Raise UserError if there is no file of this kind, such as "image"; opening a FIFO, say, would wait for ever."""
    if not os.path.isfile(path):
        raise UserError(f"There is no {kind} file at {printable(path)}.")


def tell(error: BaseException) -> str:
    """What the command line says of an error, whatever raised it: one paragraph, without a traceback."""
    if isinstance(error, UserError):
        return cut(_own_words(error), 2_000)
    if is_out_of_memory(error):
        return "The memory does not suffice for this. Try a smaller batch, image size, model or limit."
    if isinstance(error, OSError) and error.strerror:
        where = f" ({cut(str(error.filename))})" if error.filename else ""
        return f"The operating system refused: {error.strerror}{where}."
    words = f"{type(error).__name__}: {cut(_own_words(error), 500)}".rstrip(": .")
    return f"This did not work: {words}. If it should have worked, --debug shows where it stopped."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, of the machine or of a GPU."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY)


def _own_words(error: BaseException) -> str:
    """An error's message; of one out of a process that reads images, which torch hands on with that process's
    traceback, the last line, which says what it was.
    """
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        text = re.sub(r"^[\w.]+: ", "", text.splitlines()[-1])
    return " ".join(text.splitlines())
