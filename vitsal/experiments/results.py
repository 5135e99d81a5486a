"""The results table: tidy rows that say what they were computed from; tables of different things are never mixed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from vitsal.errors import UserError
from vitsal.experiments.outcomes import (
    LEVERS,
    NOT_USED,
    SUMMARY_COLUMNS,
    Outcomes,
    paired_difference,
    summarize,
    with_levers,
)
from vitsal.jobs.files import locked, write_whole
from vitsal.jobs.identity import checksum, question_hash

POINT = ["target", "guide", *LEVERS]
SAMPLE = ["limit", "data_id", "precision"]  # the same in all of a table, so that its rows can be compared
ENVIRONMENT = ["device", "vitsal", "torch", "timm"]
DIFFERENCE = ["minus", "difference", "difference_low", "difference_high"]
CHECKSUM = "checksum"  # of the row's other columns: a damaged row is noticed
IDENTITY = ["target_id", "guide_id", "seed", "data", *SAMPLE, *ENVIRONMENT]
RESULT_COLUMNS = [*SUMMARY_COLUMNS, *DIFFERENCE, *IDENTITY, CHECKSUM]
WHOLE = {"limit": "Int64", "seed": "Int64"}
TEXT = dict.fromkeys(["target", "guide", *LEVERS[1:], "minus", *IDENTITY, CHECKSUM], "str")  # a hash may look like 1e5


def results_table(outcomes: Outcomes, target: str) -> pd.DataFrame:
    """Summary of outcomes with all that identifies them: one row per guide and reduction.

    Columns: those of `summarize`; the paired difference to the first guide (`minus`), in accuracy, with its 95 %
    bootstrap interval; name and weights of the target (`target_id`), a hash of the guide's own weights and settings
    (`guide_id`), its seed where it has one; source and fingerprint of the data, limit, precision; device and versions
    of the last run; a checksum of the row. `target` is what to call the target.

    Raises:
        UserError: there are no outcomes.
    """
    table, first = summarize(outcomes, target), outcomes.guides[0]
    pairs = [(first, *paired_difference(outcomes, guide, first, key)) for guide, key in outcomes.predictions]
    table[DIFFERENCE] = pd.DataFrame(pairs, index=table.index)
    table = table.merge(identity_table(outcomes.about, target), how="left", on=["target", "guide"])
    return table.assign(**{CHECKSUM: row_checksums(table)})[RESULT_COLUMNS]


def row_checksums(table: pd.DataFrame) -> list[str]:
    """For each row the checksum of all that it says, in the order of the columns; of levers, those that are used."""
    columns = [column for column in RESULT_COLUMNS if column != CHECKSUM]
    rows = table[columns].astype("string").fillna("").itertuples(index=False)
    said = ([value for name, value in zip(columns, row, strict=True) if value != NOT_USED.get(name)] for row in rows)
    return [checksum(chr(31).join(row)) for row in said]


def identity_table(about: Mapping[str, Any], target: str) -> pd.DataFrame:
    """What identifies results, `Question.about`, as a table: one row per guide, before or after they are computed."""
    same = {column: about[column] for column in ["target_id", "data", *SAMPLE, *ENVIRONMENT]}
    rows = [{"target": target, "guide": name, **ids, **same} for name, ids in about["guides"].items()]
    return pd.DataFrame(rows).astype(WHOLE)


def add_results(table: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """Add rows to the table at `path` (CSV, with a Parquet copy beside it), which is returned whole.

    The same point again replaces its row. Whoever reads the files sees the old ones or the whole new ones; of several
    who write, one waits for the other.

    Raises:
        UserError: the file is no results table, or holds results of other weights, data, images or precision under the
            same names; it is left as it is.
    """
    path = Path(path)
    with locked(path):
        there = read_results(path)
        check_same(there, table, path)
        points = pd.MultiIndex.from_frame(table[POINT])
        older = there[~pd.MultiIndex.from_frame(there[POINT]).isin(points)]
        whole = pd.concat([older, table], ignore_index=True) if len(older) else table.reset_index(drop=True)
        write_whole(path, partial(whole.to_csv, index=False))
        write_whole(path.with_suffix(".parquet"), partial(whole.to_parquet, index=False, write_page_checksum=True))
    return whole


def read_results(path: str | Path) -> pd.DataFrame:
    """The table at `path`, CSV; an empty one where there is none.

    Raises:
        UserError: the file is no results table, or a row of it is damaged.
    """
    path = Path(path)
    if path.suffix != ".csv":
        raise UserError(f"A results table is written as CSV, with a Parquet copy beside it; name {path} *.csv.")
    if not path.exists():
        if path.with_suffix(".parquet").exists():
            raise UserError(f"There is a {path.with_suffix('.parquet')} without its table; name another, or move it.")
        return pd.DataFrame(columns=RESULT_COLUMNS)
    copy = _points_of_copy(path.with_suffix(".parquet"))  # first: who writes meanwhile only adds to the table
    try:
        types = TEXT | WHOLE
        table = pd.read_csv(path, float_precision="round_trip", dtype=types, keep_default_na=False, na_values=[""])
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a results table ({error}); name another, or move it.") from error
    table = with_levers(table)
    if set(table.columns) != set(RESULT_COLUMNS):
        raise UserError(f"{path} is no results table of vitsal, and is left as it is; name another, or move it.")
    table = table[RESULT_COLUMNS]
    _check_whole(table, copy, path)
    return table


def _points_of_copy(path: Path) -> pd.DataFrame:
    """Which rows the Parquet copy has; none where there is no copy, or a damaged one: it is written anew."""
    try:
        return pd.read_parquet(path, columns=POINT, page_checksum_verification=True)
    except (OSError, ValueError, KeyError, NotImplementedError):
        return pd.DataFrame(columns=POINT)


def _check_whole(table: pd.DataFrame, copy: pd.DataFrame, path: Path) -> None:
    """Raise UserError for rows that are damaged, stand twice, or are in the copy alone, which is written last."""
    fits = (table[CHECKSUM] == row_checksums(table)) & ~table.duplicated(POINT)
    wrong = "" if fits.all() else f"in line {', '.join(str(number + 2) for number in table.index[~fits])}"
    lost = len(set(copy.itertuples(index=False)) - set(table[POINT].itertuples(index=False)))
    wrong = wrong or (lost and f"and lacks {lost} rows that its Parquet copy has")
    if wrong:
        raise UserError(
            f"{path} is damaged or was changed by hand {wrong}, and is left as it is. Remove both files: the journal "
            "beside them holds what their rows were computed from."
        )


def check_same(there: pd.DataFrame, now: pd.DataFrame, path: str | Path) -> None:
    """Raise UserError if results that are to be added cannot stand in one table with those that are there."""
    groups = [([], column) for column in SAMPLE] + [(["target"], "target_id"), (["target", "guide"], "guide_id")]
    for names, column in groups:
        both = pd.concat([part[[*names, column]].astype("string").fillna("all") for part in (there, now)])
        for name, values in both.groupby(names) if names else [((), both)]:
            old, *others = dict.fromkeys(values[column])
            if others:
                what = " of " + ", ".join(name) if name else ""
                raise UserError(
                    f"{path} holds other results ({column}{what}: {old} there, {others[0]} now), and is left as it is. "
                    "Name another output, or move it."
                )


def results_file(folder: str | Path, name: str, table: pd.DataFrame) -> Path:
    """A file in `folder` that belongs to what results are computed from: its name holds a hash of that."""
    identity = table[["target", "target_id", "guide", "guide_id", *SAMPLE]].drop_duplicates().astype(str)
    return Path(folder, f"{name}-{question_hash(identity.to_dict('list'))}.csv")


def table_for(
    about: Mapping[str, Any], target: str, path: Path | None = None, there: pd.DataFrame | None = None
) -> Path:
    """Where results that identify themselves so (`identity_table`) can be added: `path`, or a file in `runs`.

    `there` is what `read_results` has found in the table, if it was read before.

    Raises:
        UserError: what is there is no results table, or one of other things.
    """
    identity = identity_table(about, target)
    path = path or results_file("runs", "drop-curve", identity)
    check_same(read_results(path) if there is None else there, identity, path)
    return path


def save_results(outcomes: Mapping[str, Outcomes], folder: str | Path, name: str) -> pd.DataFrame:
    """Add the results of targets, name -> outcomes, to the table in `folder` that belongs to them, and return theirs.

    Raises:
        UserError: see `results_table` and `add_results`.
    """
    table = pd.concat([results_table(known, target) for target, known in outcomes.items()], ignore_index=True)
    add_results(table, results_file(folder, name, table))
    return table
