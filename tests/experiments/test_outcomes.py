"""Paired comparisons: by hand, against an independent bootstrap, and that pairing narrows the interval."""

import re

import numpy as np
import pytest

from vitsal.errors import UserError
from vitsal.experiments.outcomes import Outcomes, paired_difference, recovered_share


def outcomes_of(**right):
    """Outcomes at keep ratio 0.5 in which the guide's name tells which images are right; class 1 is the label."""
    count = len(next(iter(right.values())))
    predictions = {(guide, 0.5): [int(hit) for hit in hits] for guide, hits in right.items()}
    names = [str(index) for index in range(count)]
    return Outcomes(names=names, labels=[1] * count, predictions=predictions)


def test_difference_by_hand():
    value, low, high = paired_difference(outcomes_of(a=[1, 1, 1, 0], b=[1, 0, 0, 0]), "a", "b", 0.5)
    assert value == pytest.approx(0.5)
    assert (low, high) == pytest.approx((0, 1))  # resamples of (0, 1, 1, 0)


@pytest.mark.parametrize(("guide", "ratio"), [("c", 0.5), ("a", 0.3)])
def test_what_was_not_asked_about_is_said(guide, ratio):
    said = f"There are no outcomes of '{guide}' (keep {ratio}), but of 'a' (keep 0.5), 'b' (keep 0.5)."
    with pytest.raises(UserError, match=re.escape(said)):
        outcomes_of(a=[1, 1], b=[1, 0]).correct(guide, ratio)


def test_equal_guides_differ_by_nothing():
    hits = np.random.default_rng(0).integers(2, size=50)
    assert paired_difference(outcomes_of(a=hits, b=hits), "a", "b", 0.5) == (0, 0, 0)


def test_interval_is_that_of_the_paired_values():
    """2.5 and 97.5 percentile of the mean are about 1.96 standard errors of the paired difference away."""
    rng = np.random.default_rng(1)
    theirs = rng.random(400) < 0.6
    ours = np.where(rng.random(400) < 0.1, ~theirs, theirs)
    value, low, high = paired_difference(outcomes_of(a=ours, b=theirs), "a", "b", 0.5)
    difference = ours.astype(float) - theirs
    error = 1.96 * difference.std() / 20
    assert value == pytest.approx(difference.mean())
    assert (value - low, high - value) == pytest.approx((error, error), rel=0.15)


def test_share_by_hand():
    """Chance 1 of 10 right, ideal 9, guide 7: three quarters of the gap."""
    hits = {name: [1] * right + [0] * (10 - right) for name, right in {"a": 7, "chance": 1, "ideal": 9}.items()}
    value, low, high = recovered_share(outcomes_of(**hits), "a", 0.5, chance="chance", ideal="ideal")
    assert value == pytest.approx(0.75)
    assert 0 < low < 0.75 < high <= 1


@pytest.mark.parametrize(("guide", "share"), [("ideal", 1), ("chance", 0)])
def test_share_of_the_ends(guide, share):
    rng = np.random.default_rng(0)
    known = outcomes_of(chance=rng.random(100) < 0.3, ideal=rng.random(100) < 0.8)
    assert recovered_share(known, guide, 0.5, chance="chance", ideal="ideal") == pytest.approx((share,) * 3)


def test_share_without_a_gap_has_an_infinite_or_unknown_interval():
    value, _, _ = recovered_share(
        outcomes_of(a=[1, 0], chance=[1, 0], ideal=[0, 1]), "a", 0.5, chance="chance", ideal="ideal"
    )
    assert not np.isfinite(value)


def test_seed_decides_the_resamples():
    rng = np.random.default_rng(0)
    known = outcomes_of(a=rng.random(30) < 0.3, b=rng.random(30) < 0.8)
    one, again, other = (paired_difference(known, "a", "b", 0.5, seed=seed) for seed in (0, 0, 5))
    assert one == again
    assert one != other


def test_interval_is_that_of_resampled_images():
    """Against the bootstrap as textbooks write it, which draws images one by one."""
    rng = np.random.default_rng(2)
    hits = {"a": rng.random(200) < 0.7, "chance": rng.random(200) < 0.3, "ideal": rng.random(200) < 0.8}
    value, low, high = recovered_share(outcomes_of(**hits), "a", 0.5, chance="chance", ideal="ideal")
    shares = []
    for _ in range(4000):
        rows = rng.integers(200, size=200)
        ours, worst, best = (hits[name][rows].mean() for name in ("a", "chance", "ideal"))
        shares.append((ours - worst) / (best - worst))
    ours, worst, best = (hits[name].mean() for name in ("a", "chance", "ideal"))
    assert value == pytest.approx((ours - worst) / (best - worst))
    assert (low, high) == pytest.approx(tuple(np.percentile(shares, [2.5, 97.5])), abs=0.02)


@pytest.mark.slow
def test_a_million_images_need_no_memory():
    rng = np.random.default_rng(0)
    theirs = rng.random(1_000_000) < 0.5
    ours = theirs | (rng.random(1_000_000) < 0.02)
    value, low, high = paired_difference(outcomes_of(a=ours, b=theirs), "a", "b", 0.5)
    assert value == pytest.approx(0.01, abs=0.001)
    assert 0.0003 < high - low < 0.0005
