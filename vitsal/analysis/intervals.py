"""Intervals: of proportions, and of what is computed from many images, by bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, sem, t as student_t

REPEATS = 2_000  # resamples


class Interval(NamedTuple):
    """A value, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927)."""
    interval = binomtest(correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean over rows, and half the width of its 95 % interval by Student's t: (n, ...) -> (...) twice.

    One row alone says nothing of the spread: its half width is not a number.
    """
    mean, n = values.mean(axis=0), len(values)
    return mean, student_t.ppf(0.975, n - 1) * sem(values) if n > 1 else np.full_like(mean, np.nan)


def bootstrap(hits: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], seed: int) -> Interval:
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
    return Interval(float(values[0]), float(low), float(high))


def difference(ours: np.ndarray, theirs: np.ndarray, seed: int) -> Interval:
    """Accuracy of one minus that of another on the same images, and its `bootstrap` interval: (n,) bool twice."""
    return bootstrap([ours, theirs], lambda one, other: one - other, seed)
