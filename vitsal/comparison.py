"""Guides compared image by image: paired differences, and how much of a gap a student recovers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vitsal.outcomes import Outcomes

REPEATS = 2_000
Interval = tuple[float, float, float]


def paired_difference(outcomes: Outcomes, guide: str, other: str, keep_ratio: float, *, seed: int = 0) -> Interval:
    """Accuracy under one guide minus that under another: (difference, low, high), 95 % bootstrap over images."""
    ours, theirs = (outcomes.correct(name, keep_ratio).astype(float) for name in (guide, other))
    return _bootstrap(lambda rows: ours[rows].mean(1) - theirs[rows].mean(1), len(ours), seed)


def recovered_share(
    outcomes: Outcomes, guide: str, keep_ratio: float, *, chance: str, ideal: str, seed: int = 0
) -> Interval:
    """Share of the gap between chance and the true rollout that a guide recovers, and its 95 % bootstrap interval.

    (guide - chance) / (ideal - chance), in accuracy; 1 is as good as the ideal, and more is possible. Where the gap is
    small against what single images change, the interval is wide, and infinite where a resample has no gap.

    Args:
        outcomes: with all three guides.
        guide, chance, ideal: names of guides.
        keep_ratio: at which to compare.
        seed: of the resampling.
    """
    ours, low, high = (outcomes.correct(name, keep_ratio).astype(float) for name in (guide, chance, ideal))

    def share(rows: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (ours[rows].mean(1) - low[rows].mean(1)) / (high[rows].mean(1) - low[rows].mean(1))

    return _bootstrap(share, len(ours), seed)


def _bootstrap(statistic: Callable[[np.ndarray], np.ndarray], n: int, seed: int) -> Interval:
    """Value on all images, and the percentiles of resamples: `statistic` maps rows (R, n) -> (R,)."""
    draws = statistic(np.random.default_rng(seed).integers(n, size=(REPEATS, n)))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(statistic(np.arange(n)[None])[0]), float(low), float(high)
