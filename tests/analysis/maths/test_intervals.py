import numpy as np
import pytest

from analysis.maths.intervals import estimates, mean_interval


def test_the_interval_of_a_normal_sample_is_two_standard_errors() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)


def test_axes_are_independent_and_missing_values_are_left_out() -> None:
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    mean, low, high = mean_interval(values)
    np.testing.assert_array_equal(mean, [2.0, 5.0, np.nan])
    np.testing.assert_array_equal(np.isnan(low), [False, False, True])
    assert low[1] == high[1] == 5.0


def test_one_sample_has_no_interval() -> None:
    assert np.isnan(mean_interval([[1.0, 2.0]])[1:]).all()


def test_same_seed_same_interval() -> None:
    values = np.arange(10.0)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_nested_estimates() -> None:
    found = estimates(np.array([[1.0, 10.0], [1.0, 10.0]]))
    assert found == [{"value": 1.0, "low": 1.0, "high": 1.0}, {"value": 10.0, "low": 10.0, "high": 10.0}]


def test_as_many_are_drawn_as_there_are() -> None:
    """Of 0 and 1, two draws mean 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: the middle 40 % are 1/2."""
    assert [float(end) for end in mean_interval([0.0, 1.0], level=0.4)] == [0.5, 0.5, 0.5]
