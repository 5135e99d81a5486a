"""Intervals of means: by hand, and against scipy's own."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from vitsal.analysis.intervals import mean_interval


def test_mean_interval_by_hand():
    """Rows 1, 2, 6: mean 3, standard deviation sqrt(7), and Student's t for 2 degrees of freedom, 4.3027."""
    mean, half = mean_interval(np.array([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]]))
    assert mean.tolist() == [3.0, 5.0]
    assert half == pytest.approx([4.302653 * np.sqrt(7 / 3), 0.0])


def test_mean_interval_is_that_of_scipys_test():
    values = np.random.default_rng(0).normal(size=(9, 4, 2))
    mean, half = mean_interval(values)
    known = ttest_1samp(values, 0).confidence_interval(0.95)
    np.testing.assert_allclose(mean - half, known.low)
    np.testing.assert_allclose(mean + half, known.high)


def test_one_row_tells_nothing_of_the_spread():
    mean, half = mean_interval(np.array([[1.0, 2.0]]))
    assert mean.tolist() == [1.0, 2.0]
    assert np.isnan(half).all()
