"""Guides compared image by image: paired differences, and how much of a gap a student recovers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from vitsal.outcomes import Outcomes

REPEATS = 2_000
Interval = tuple[float, float, float]


def paired_difference(outcomes: Outcomes, guide: str, other: str, keep_ratio: float, *, seed: int = 0) -> Interval:
    """Accuracy under one guide minus that under another: (difference, low, high), 95 % bootstrap over images."""
    hits = [outcomes.correct(name, keep_ratio) for name in (guide, other)]
    return _bootstrap(hits, lambda ours, theirs: ours - theirs, seed)


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

    def share(ours: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return (ours - low) / (high - low)

    return _bootstrap([outcomes.correct(name, keep_ratio) for name in (guide, chance, ideal)], share, seed)


def _bootstrap(hits: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], seed: int) -> Interval:
    """Value of a statistic of accuracies on all images, and its percentiles over resamples of the images.

    Images differ only in which guides are right on them, so that a resample is one draw of how often each such pattern
    occurs: exactly the bootstrap over images (Efron 1979), and as cheap for a million of them.

    Args:
        hits: for each guide, (n,) bool.
        statistic: takes the guides' accuracies, (R,) each -> (R,).
        seed: of the resampling.
    """
    patterns, counts = np.unique(np.stack(hits, axis=1), axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=REPEATS)
    values = statistic(*(np.vstack([counts, draws]) @ patterns / counts.sum()).T)
    low, high = np.nanpercentile(values[1:], [2.5, 97.5], method="nearest")  # of infinities there is no mean
    return float(values[0]), float(low), float(high)
