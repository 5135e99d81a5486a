"""Outcomes as a file that others can read: what a target predicted for each image, without images or weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from vitsal.errors import UserError, check_file
from vitsal.experiments.outcomes import Outcomes
from vitsal.jobs.files import write_whole

CELL = ["guide", "keep_ratio"]
COLUMNS = ["image", "label", *CELL, "prediction"]


def save_outcomes(outcomes: Outcomes, path: str | Path) -> None:
    """Write outcomes as Parquet: one row per guide, keep ratio and image, with what they are about.

    Any tool that reads Parquet can read the rows; `read_outcomes` gives the outcomes back.
    """
    same = {"image": outcomes.names, "label": np.asarray(outcomes.labels)}
    parts = [
        pd.DataFrame(same | {"guide": guide, "keep_ratio": ratio, "prediction": np.asarray(predicted)})
        for (guide, ratio), predicted in outcomes.predictions.items()
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
        table = pd.read_parquet(path, page_checksum_verification=True)[COLUMNS]
        groups = dict(tuple(table.groupby(CELL, sort=False)))
        first = next(iter(groups.values()))
        if any(list(rows.image) != list(first.image) for rows in groups.values()):
            raise ValueError("its images are not the same for all guides and keep ratios")
    except (OSError, ValueError, KeyError, StopIteration) as error:
        raise UserError(f"{path} cannot be read as outcomes ({error}); name another, or move it.") from error
    predictions = {cell: rows.prediction.to_numpy() for cell, rows in groups.items()}
    return Outcomes(list(first.image), first.label.to_numpy(), predictions, **table.attrs)
