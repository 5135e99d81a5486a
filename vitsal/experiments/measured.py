"""Outcomes as a file that others can read: what a target predicted for each image, without images or weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from vitsal.errors import UserError, check_file
from vitsal.experiments.outcomes import LEVERS, NOT_USED, Outcomes
from vitsal.jobs.files import write_whole
from vitsal.reduction.reduction import Reduction, as_reduction

CELL = ["guide", *LEVERS]
COLUMNS = ["image", "label", *CELL, "prediction"]


def save_outcomes(outcomes: Outcomes, path: str | Path) -> None:
    """Write outcomes as Parquet: one row per guide, reduction and image, with what they are about.

    Any tool that reads Parquet can read the rows; `read_outcomes` gives the outcomes back.
    """
    same = {"image": outcomes.names, "label": np.asarray(outcomes.labels)}
    parts = [
        pd.DataFrame(same | {"guide": guide, "prediction": np.asarray(predicted)} | as_reduction(key).columns)
        for (guide, key), predicted in outcomes.predictions.items()
    ]
    table = pd.concat(parts, ignore_index=True)[COLUMNS].astype({"label": "int32", "prediction": "int32"})
    table.attrs = {"about": dict(outcomes.about), "skipped": dict(outcomes.skipped)}
    write_whole(Path(path), partial(table.to_parquet, index=False, compression="zstd", write_page_checksum=True))


def read_outcomes(path: str | Path) -> Outcomes:
    """The outcomes in a file of `save_outcomes`.

    Raises:
        UserError: there is no such file, it is damaged, or not one of outcomes.
    """
    check_file("outcomes", path)
    try:
        table = pd.read_parquet(path, page_checksum_verification=True)
        # files of before there was more than dropping have no such columns
        table = table.assign(**{name: value for name, value in NOT_USED.items() if name not in table})[COLUMNS]
        groups = dict(tuple(table.groupby(CELL, sort=False)))
        first = next(iter(groups.values()))
        if any(list(rows.image) != list(first.image) for rows in groups.values()):
            raise ValueError("its images are not the same for all guides and reductions")
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise UserError(f"{path} cannot be read as outcomes ({error}); name another, or move it.") from error
    predictions = {
        (guide, Reduction.from_columns(*levers).key): rows.prediction.to_numpy()
        for (guide, *levers), rows in groups.items()
    }
    return Outcomes(list(first.image), first.label.to_numpy(), predictions, **table.attrs)
