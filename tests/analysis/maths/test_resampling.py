"""Resampling of units and seeds: against formulas by hand, and what it does where little is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, ttest_1samp, ttest_rel
from scipy.stats import t as student

from analysis.maths.multiplicity import holm
from analysis.maths.resampling import drawn, estimated, interval, sampled, summed
from whitebox.errors import ConfigError, DataError

Float = NDArray[np.float64]


def mean(sums: Float) -> Float:
    """Sums of (value, 1) -> their mean, (..., 1)."""
    total, count = sums[..., :1], sums[..., 1:]
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def values(*shape: int, seed: int = 0) -> Float:
    """(..., N, 2): normal values, and ones."""
    found = np.random.default_rng(seed).normal(3.0, 2.0, shape)
    return np.stack([found, np.ones(shape)], -1)


def width(found: object) -> float:
    return float((found.high_M - found.low_M)[0])  # type: ignore[attr-defined]


def test_one_training_has_students_interval_of_its_images() -> None:
    counts = values(12)
    found = estimated(counts, mean)
    low, high = ttest_1samp(counts[:, 0], 0).confidence_interval()
    assert found.value_M[0] == pytest.approx(counts[:, 0].mean())
    assert width(found) == pytest.approx(high - low)
    assert found.df_M[0] == 11 and np.isnan(found.sd_M[0]) and np.isnan(found.seed_M[0])


def test_images_of_a_unit_count_as_one() -> None:
    counts = values(30)
    unit_N = np.arange(30) // 5
    found = estimated(counts, mean, unit_N)
    low, high = ttest_1samp(counts[:, 0].reshape(6, 5).mean(1), 0).confidence_interval()
    assert width(found) == pytest.approx(high - low) and found.df_M[0] == 5
    shuffled = np.random.default_rng(1).permutation(30)
    again = estimated(counts[shuffled], mean, unit_N[shuffled])
    assert width(again) == pytest.approx(width(found))


def test_several_trainings_are_a_level_of_their_own() -> None:
    """The two-way layout by hand: mean squares of seeds, units, and what is left."""
    counts = values(3, 8)
    cells_SU = counts[..., 0]
    found = estimated(counts, mean)
    seeds, units = cells_SU.shape
    square_a = units * cells_SU.mean(1).var(ddof=1)
    square_b = seeds * cells_SU.mean(0).var(ddof=1)
    rest = cells_SU - cells_SU.mean(0) - cells_SU.mean(1)[:, None] + cells_SU.mean()
    square_ab = (rest**2).sum() / ((seeds - 1) * (units - 1))
    square = max(square_a + square_b - square_ab, square_a, square_b)
    df = max(square**2 / (square_a**2 / 2 + square_b**2 / 7), 2)
    half = student.ppf(0.975, df) * np.sqrt(square / cells_SU.size)
    assert width(found) == pytest.approx(2 * half) and found.df_M[0] == pytest.approx(df)
    assert found.sd_M[0] == pytest.approx(cells_SU.mean(1).std(ddof=1))
    assert found.values_SM[:, 0] == pytest.approx(cells_SU.mean(1))


def test_two_trainings_say_nothing_of_their_spread() -> None:
    counts = values(2, 20)
    found = estimated(counts, mean)
    low, high = ttest_1samp(counts[..., 0].mean(0), 0).confidence_interval()
    assert width(found) == pytest.approx(high - low) and np.isfinite(found.sd_M[0]) and np.isnan(found.seed_M[0])


def test_fewer_than_three_units_have_no_interval() -> None:
    for counts, unit_N in ((values(2), None), (values(3, 20), np.arange(20) // 10), (values(5), [0] * 5)):
        found = estimated(counts, mean, unit_N)
        assert np.isfinite(found.value_M).all()
        assert np.isnan([found.low_M, found.high_M, found.p_M]).all()


def test_a_score_that_few_units_have_has_their_number() -> None:
    """Of 9 images one class is in four: its interval has 3 degrees of freedom; in two: none."""
    counts = values(9)
    counts[4:] = 0
    assert estimated(counts, mean).df_M[0] == 3
    counts[2:] = 0
    assert np.isnan(estimated(counts, mean).low_M[0])


def test_no_spread_is_no_certainty() -> None:
    found = estimated(np.ones((9, 2)), mean)
    assert found.value_M[0] == 1 and np.isnan(found.low_M[0])


def test_ends_follow_the_skew_and_stay_where_values_can_be() -> None:
    skewed = np.random.default_rng(2).lognormal(0, 1.5, 60)
    found = estimated(np.stack([skewed, np.ones(60)], -1), mean)
    assert (found.high_M - found.value_M)[0] > 1.1 * (found.value_M - found.low_M)[0]
    cut = estimated(np.stack([skewed, np.ones(60)], -1), mean, within=(skewed.mean() - 0.01, skewed.mean() + 0.01))
    assert cut.low_M[0] == pytest.approx(skewed.mean() - 0.01) and cut.high_M[0] == pytest.approx(skewed.mean() + 0.01)


class TestDifferences:
    def test_one_training_each_is_the_paired_t_test(self) -> None:
        ours, theirs = values(15), values(15, seed=1)
        theirs[..., 0] += ours[..., 0]
        found = interval(sampled(ours, mean).minus(sampled(theirs, mean), matched=True))
        expected = ttest_rel(ours[:, 0], theirs[:, 0]).confidence_interval()
        assert width(found) == pytest.approx(expected.high - expected.low)

    def test_p_is_below_005_where_the_interval_misses_0(self) -> None:
        seen = set()
        for seed in range(60):
            counts = values(3, 6, seed=seed)
            counts[..., 0] -= 1.6
            found = estimated(counts, mean)
            missed = bool(found.low_M[0] > 0 or found.high_M[0] < 0)
            assert (found.p_M[0] < 0.05) == missed
            seen.add(missed)
        assert seen == {True, False}

    def test_seeds_that_differ_add_up(self) -> None:
        ours, theirs = sampled(values(3, 10), mean), sampled(values(4, 10, seed=1), mean)
        found = interval(ours.minus(theirs, matched=False))
        assert found.value_M[0] == pytest.approx(ours.value_M[0] - theirs.value_M[0])
        spread = ours.values_SM.var(ddof=1) / 3 + theirs.values_SM.var(ddof=1) / 4
        assert found.seed_M[0] == pytest.approx(np.sqrt(spread)) and found.df_M[0] >= 2
        one = interval(ours.minus(sampled(values(10, seed=1), mean), matched=False))
        assert np.isnan(one.seed_M[0]) and np.isfinite(one.low_M[0])

    def test_draws_are_the_same_for_all_models(self) -> None:
        counts = values(40)
        found = interval(sampled(counts, mean).minus(sampled(counts, mean), matched=True))
        assert found.value_M[0] == 0 and np.isnan(found.low_M[0])

    def test_an_end_near_0_is_named(self) -> None:
        skewed = np.random.default_rng(5).lognormal(0, 1, 50)
        draws = estimated(np.stack([skewed, np.ones(50)], -1), mean, resamples=200)
        moved = skewed - draws.low_M[0]
        near = estimated(np.stack([moved, np.ones(50)], -1), mean, resamples=200)
        assert near.error_M2[0, 0] > abs(near.low_M[0])
        far = estimated(np.stack([moved + 9, np.ones(50)], -1), mean, resamples=200)
        assert far.error_M2[0, 0] < abs(far.low_M[0])

    def test_the_monte_carlo_error_is_the_spread_over_seeds_of_the_draws(self) -> None:
        skewed = np.random.default_rng(5).lognormal(0, 1, 50)
        counts = np.stack([skewed, np.ones(50)], -1)
        found = [estimated(counts, mean, resamples=2000, seed=seed) for seed in range(40)]
        spread = np.std([each.low_M[0] for each in found])
        assert spread == pytest.approx(np.mean([each.error_M2[0, 0] for each in found]), rel=0.4)


def test_draws_are_with_replacement() -> None:
    weights = drawn(np.random.default_rng(0), 1000, 7)
    assert (weights.sum(1) == 7).all() and weights.mean() == 1 and weights.max() > 3


def test_sums_of_units() -> None:
    counts = np.arange(12.0).reshape(1, 6, 2)
    np.testing.assert_array_equal(summed(counts, list("baabba"))[0], [[0 + 6 + 8, 1 + 7 + 9], [2 + 4 + 10, 3 + 5 + 11]])


def test_what_cannot_be() -> None:
    with pytest.raises(DataError, match="6 images and 5 units"):
        sampled(values(6), mean, [1] * 5)
    with pytest.raises(DataError, match="no images"):
        sampled(np.zeros((0, 2)), mean)
    with pytest.raises(ConfigError, match="resamples"):
        sampled(values(6), mean, resamples=0)
    with pytest.raises(ConfigError, match="level"):
        interval(sampled(values(6), mean), level=1.0)


def test_holm() -> None:
    p = np.array([0.01, 0.04, 0.03, np.nan, 0.005])
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, np.nan, 0.02])
    assert holm([[0.5, 0.9], [0.7, 0.8]]).max() == 1.0
    known = p[~np.isnan(p)]
    assert (holm(known) >= false_discovery_control(known)).all()
