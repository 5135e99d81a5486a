"""Per-image outcomes of an experiment: their summary, accuracy with its interval; and a file of them for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitsal.analysis.intervals import Interval, bootstrap, difference, wilson_interval
from vitsal.errors import UserError, check_file, first_few
from vitsal.jobs.files import write_whole
from vitsal.reduction.reduction import Reduction, as_reduction

LEVERS = list(Reduction().columns)
NOT_USED = {name: value for name, value in Reduction().columns.items() if name != "keep_ratio"}  # by dropping alone
SUMMARY_COLUMNS = ["target", "guide", *LEVERS, "n", "correct", "top1", "ci_low", "ci_high"]
CELL = ["guide", *LEVERS]
COLUMNS = ["image", "label", *CELL, "prediction"]  # of a file


@dataclass(frozen=True)
class Outcomes:
    """What a target predicts for each image under each guide and reduction.

    Args:
        names: of the n images.
        labels: (n,) right classes.
        predictions: (guide, reduction) -> (n,) predicted classes; a keep ratio stands for the reduction that is nothing
            more (`vitsal.Reduction.key`).
        skipped: images that could not be read, and why.
        about: what it was computed from and by (`vitsal.experiments.Question.about`).
    """

    names: list[str]
    labels: np.ndarray
    predictions: Mapping[tuple[str, float | Reduction], np.ndarray]
    skipped: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def guides(self) -> list[str]:
        """Names of the guides."""
        return list(dict.fromkeys(guide for guide, _ in self.predictions))

    def correct(self, guide: str, reduction: float | Reduction) -> np.ndarray:
        """Whether each image's prediction is right, (n,) bool; UserError for a guide or reduction not asked about."""
        asked = as_reduction(reduction)
        if (guide, asked.key) not in self.predictions:
            known = first_few((f"{name!r} ({as_reduction(key)})" for name, key in self.predictions))
            raise UserError(f"There are no outcomes of {guide!r} ({asked}), but of {known}.")
        return np.asarray(self.predictions[guide, asked.key]) == np.asarray(self.labels)


def summarize(outcomes: Outcomes, target: str) -> pd.DataFrame:
    """One row per guide and reduction: number of images, accuracy (top1, a fraction), and its 95 % Wilson interval.

    Where nothing is merged, merge is "none", and so is soften; the target's own input size is "own"; what is not kept
    is "dropped" or "coarse" (rest).

    Raises:
        UserError: there are no outcomes.
    """
    if not outcomes.names:
        raise UserError("No image could be evaluated, so there is no accuracy to tell.")
    rows = []
    for guide, key in outcomes.predictions:
        right = outcomes.correct(guide, key)
        correct, n = int(right.sum()), len(right)
        low, high = wilson_interval(correct, n)
        rows.append([target, guide, *as_reduction(key).columns.values(), n, correct, correct / n, low, high])
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def paired_difference(
    outcomes: Outcomes, guide: str, other: str, reduction: float | Reduction, *, seed: int = 0
) -> Interval:
    """Accuracy under one guide minus that under another: (difference, low, high), 95 % bootstrap over images."""
    return difference(*(outcomes.correct(name, reduction) for name in (guide, other)), seed)


def recovered_share(
    outcomes: Outcomes, guide: str, reduction: float | Reduction, *, chance: str, ideal: str, seed: int = 0
) -> Interval:
    """Share of the gap between chance and the true rollout that a guide recovers, and its 95 % bootstrap interval.

    (guide - chance) / (ideal - chance), in accuracy; 1 is as good as the ideal, and more is possible. Where the gap is
    small against what single images change, the interval is wide, and infinite where a resample has no gap. `seed` is
    that of the resampling; the others are names of guides, and the reduction at which to compare them.
    """

    def share(ours: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (ours - low) / (high - low)

    return bootstrap([outcomes.correct(name, reduction) for name in (guide, chance, ideal)], share, seed)


def student_shares(outcomes: Outcomes) -> dict[tuple[str, float | Reduction], Interval]:
    """(student's guide, reduction that drops patches) -> `recovered_share` from random to rollout, where both are."""
    if not {"random", "rollout"} <= set(outcomes.guides):
        return {}
    students = [point for point in outcomes.predictions if point[0].startswith("student ")]
    asked = [(name, key) for name, key in students if as_reduction(key).guided]
    return {point: recovered_share(outcomes, *point, chance="random", ideal="rollout") for point in asked}


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


def with_levers(table: pd.DataFrame) -> pd.DataFrame:
    """A table with a column for every lever: those written before there was more than dropping lack some."""
    return table.assign(**{name: value for name, value in NOT_USED.items() if name not in table})


def read_outcomes(path: str | Path) -> Outcomes:
    """The outcomes in a file of `save_outcomes`.

    Raises:
        UserError: there is no such file, it is damaged, or not one of outcomes.
    """
    check_file("outcomes", path)
    try:
        table = pd.read_parquet(path, page_checksum_verification=True)
        table = with_levers(table)[COLUMNS]
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
