"""Intervals over seeds."""

import intervals
import numpy as np
import pytest
from scipy import stats


def test_students_interval_is_scipys():
    values = [0.81, 0.83, 0.86]
    found = intervals.student(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found == pytest.approx((np.mean(values), *expected))


def test_one_seed_has_no_interval():
    mean, low, high = intervals.student([0.5])
    assert mean == 0.5
    assert np.isnan([low, high]).all()


def test_an_interval_over_seeds_is_wider_than_one_over_pairs():
    """Where all epochs of a seed agree, only seeds count."""
    held = np.repeat(np.random.default_rng(0).integers(0, 2, (10, 1)), 100, axis=1)
    _, low, high = intervals.bootstrap(held.mean(1))
    assert high - low > 0.4
