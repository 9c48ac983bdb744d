import numpy as np
import pytest

from analysis.maths.intervals import estimates, mean_interval


def test_the_interval_of_a_normal_sample_is_two_standard_errors() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(1.966 * values.std(ddof=1) / 20, rel=0.001)


def test_axes_are_independent_and_missing_values_are_left_out() -> None:
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan], [4.0, 6.0, np.nan], [4.0, 7.0, np.nan]])
    mean, low, high = mean_interval(values)
    np.testing.assert_array_equal(mean, [3.0, 6.0, np.nan])
    np.testing.assert_array_equal(np.isnan(low), [False, False, True])
    assert low[1] < 6 < high[1]


def test_so_many_columns_that_they_come_in_parts() -> None:
    values = np.random.default_rng(0).normal(size=(8, 20, 30))
    mean, low, high = mean_interval(values, resamples=50)
    assert mean.shape == low.shape == high.shape == (20, 30)
    last = mean_interval(values[:, -1, -1], resamples=50)
    assert (mean[-1, -1], low[-1, -1], high[-1, -1]) == pytest.approx([float(each) for each in last])


def test_two_samples_have_no_interval() -> None:
    assert np.isnan(mean_interval([[1.0, 2.0], [2.0, 3.0]])[1:]).all()


def test_a_mean_that_is_infinite_has_no_interval() -> None:
    values = np.array([[1.0, np.inf, np.inf], [2.0, 1.0, -np.inf], [4.0, np.nan, 1.0], [3.0, 2.0, 1.0]])
    mean, low, high = mean_interval(values)
    np.testing.assert_array_equal(mean, [2.5, np.inf, np.nan])
    np.testing.assert_array_equal(np.isnan([low, high]), [[False, True, True]] * 2)


def test_samples_of_a_unit_count_as_one() -> None:
    values = np.random.default_rng(0).normal(size=12)
    units = [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    _, low, high = mean_interval(values, unit_N=units)
    _, low_of_means, high_of_means = mean_interval(values.reshape(4, 3).mean(1))
    assert (low, high) == (pytest.approx(float(low_of_means)), pytest.approx(float(high_of_means)))


def test_same_seed_same_interval() -> None:
    values = np.arange(10.0) ** 2
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1) != mean_interval(values, seed=2)


def test_nested_estimates() -> None:
    found = estimates(np.array([[1.0, 10.0], [1.0, 12.0], [1.0, 17.0]]))
    assert found[0]["value"] == 1.0 and np.isnan(found[0]["low"])
    assert found[1]["low"] < found[1]["value"] == 13.0 < found[1]["high"]
