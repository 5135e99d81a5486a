"""Errors that say what was wrong, with which value, and what to do about it."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user gave cannot be used; the message says why and what can.

    The command line prints the message alone, as one paragraph, and exits with status 2.
    """


def check_choice(kind: str, value: object, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`.

    Raises:
        UserError: otherwise, with the known values and the nearest of them.
    """
    known = list(known)
    if value in known:
        return str(value)
    raise UserError(f"Unknown {kind} {value!r}.{suggestion(value, known)} Known: {', '.join(known)}.")


def suggestion(value: object, known: Iterable[str]) -> str:
    """Return ' Did you mean ...?' with the nearest known names, or '' where none is near."""
    near = difflib.get_close_matches(str(value), list(known), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


def check_number(kind: str, value: object, low: float, high: float, *, open_end: str) -> float:
    """Return `value` as a float if it lies between `low` and `high`.

    Args:
        kind: the name to use in the message, such as "keep ratio".
        value: what the user gave.
        low, high: the interval's ends.
        open_end: which end does not belong to the interval, "low" or "high".

    Raises:
        UserError: `value` is no number, or outside the interval.
    """
    interval = f"({low:g}, {high:g}]" if open_end == "low" else f"[{low:g}, {high:g})"
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise UserError(f"The {kind} must be a number in {interval}; got {value!r}.")
    inside = low < value <= high if open_end == "low" else low <= value < high
    if not inside:
        raise UserError(f"The {kind} must lie in {interval}; got {value:g}.")
    return float(value)
