"""Per-image outcomes of an experiment, and their summary: accuracy with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from vitsal.analysis.intervals import Interval, bootstrap, wilson_interval
from vitsal.errors import UserError, first_few

SUMMARY_COLUMNS = ["target", "guide", "keep_ratio", "n", "correct", "top1", "ci_low", "ci_high"]


@dataclass(frozen=True)
class Outcomes:
    """What a target predicts for each image under each guide and keep ratio.

    Args:
        names: of the n images.
        labels: (n,) right classes.
        predictions: (guide, keep ratio) -> (n,) predicted classes.
        skipped: images that could not be read, and why.
        about: what it was computed from and by (`vitsal.experiments.Question.about`).
    """

    names: list[str]
    labels: np.ndarray
    predictions: Mapping[tuple[str, float], np.ndarray]
    skipped: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def guides(self) -> list[str]:
        """Names of the guides."""
        return list(dict.fromkeys(guide for guide, _ in self.predictions))

    def correct(self, guide: str, keep_ratio: float) -> np.ndarray:
        """Whether each image's prediction is right, (n,) bool; UserError for a guide or keep ratio not asked about."""
        if (guide, keep_ratio) not in self.predictions:
            known = first_few((f"{name!r} at {ratio:g}" for name, ratio in self.predictions))
            raise UserError(f"There are no outcomes of {guide!r} at keep ratio {keep_ratio:g}, but of {known}.")
        return np.asarray(self.predictions[guide, keep_ratio]) == np.asarray(self.labels)


def summarize(outcomes: Outcomes, target: str) -> pd.DataFrame:
    """One row per guide and keep ratio: number of images, accuracy (top1, a fraction), and its 95 % Wilson interval.

    Raises:
        UserError: there are no outcomes.
    """
    if not outcomes.names:
        raise UserError("No image could be evaluated, so there is no accuracy to tell.")
    rows = []
    for guide, ratio in outcomes.predictions:
        right = outcomes.correct(guide, ratio)
        correct, n = int(right.sum()), len(right)
        low, high = wilson_interval(correct, n)
        rows.append([target, guide, ratio, n, correct, correct / n, low, high])
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def paired_difference(outcomes: Outcomes, guide: str, other: str, keep_ratio: float, *, seed: int = 0) -> Interval:
    """Accuracy under one guide minus that under another: (difference, low, high), 95 % bootstrap over images."""
    hits = [outcomes.correct(name, keep_ratio) for name in (guide, other)]
    return bootstrap(hits, lambda ours, theirs: ours - theirs, seed)


def recovered_share(
    outcomes: Outcomes, guide: str, keep_ratio: float, *, chance: str, ideal: str, seed: int = 0
) -> Interval:
    """Share of the gap between chance and the true rollout that a guide recovers, and its 95 % bootstrap interval.

    (guide - chance) / (ideal - chance), in accuracy; 1 is as good as the ideal, and more is possible. Where the gap is
    small against what single images change, the interval is wide, and infinite where a resample has no gap. `seed` is
    that of the resampling; the others are names of guides, and the keep ratio at which to compare them.
    """

    def share(ours: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (ours - low) / (high - low)

    return bootstrap([outcomes.correct(name, keep_ratio) for name in (guide, chance, ideal)], share, seed)


def student_shares(outcomes: Outcomes) -> dict[tuple[str, float], Interval]:
    """(student's guide, keep ratio below 1) -> `recovered_share` of the gap from random to rollout, where both are."""
    if not {"random", "rollout"} <= set(outcomes.guides):
        return {}
    asked = [(name, ratio) for name, ratio in outcomes.predictions if name.startswith("student ") and ratio < 1]
    return {point: recovered_share(outcomes, *point, chance="random", ideal="rollout") for point in asked}
