"""Probes, clusters, how they agree with labels, and the geometry of classes: beside scikit-learn, and known cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, log_loss, normalized_mutual_info_score
from sklearn.neighbors import NearestCentroid

from analysis.maths.agreement import adjusted_rand_index, normalised_mutual_information
from analysis.maths.coding_rate import coding_rate, rate_reduction
from analysis.maths.collapse import collapse, collapse_without_each, rates
from analysis.maths.probes import STRENGTHS, class_means, clusters, fitted, linear_probe, lloyd
from analysis.maths.resampling import jackknifed
from whitebox.errors import DataError

Float = NDArray[np.float64]
Int = NDArray[np.int64]


@pytest.fixture(scope="module")
def tokens() -> tuple[Float, Int]:
    """Of four classes, one of them rare, whose names are not their numbers."""
    generator = np.random.default_rng(0)
    label_N = np.repeat([1, 3, 4, 6], [120, 90, 80, 12])
    means_KD = 1.2 * generator.standard_normal((7, 8))
    return means_KD[label_N] + generator.standard_normal((len(label_N), 8)) * np.arange(1, 9), label_N


class TestProbe:
    @pytest.mark.parametrize("strength", [1e-1, 1e-3])
    def test_has_the_minimum_of_scikit_learn(self, tokens: tuple[Float, Int], strength: float) -> None:
        z_ND, label_N = tokens
        ours = fitted(z_ND, label_N, strength)
        theirs = LogisticRegression(C=1 / (strength * len(z_ND)), tol=1e-9, max_iter=10_000).fit(z_ND, label_N)
        np.testing.assert_array_equal(ours.classes_C, theirs.classes_)
        np.testing.assert_allclose(ours.weight_DC.T, theirs.coef_, atol=3e-3)
        logits_NC = ours.scores(z_ND)
        shares_NC = np.exp(logits_NC - logits_NC.max(1, keepdims=True))
        expected = log_loss(label_N, theirs.predict_proba(z_ND))
        assert log_loss(label_N, shares_NC / shares_NC.sum(1, keepdims=True)) == pytest.approx(expected, rel=1e-4)

    def test_chooses_its_strength_on_what_is_held_out(self, tokens: tuple[Float, Int]) -> None:
        z_ND, label_N = tokens
        held_N = np.arange(len(z_ND)) % 4 == 0
        losses = []
        scaled_ND = (z_ND - z_ND.mean(0)) / z_ND.std(0)
        for strength in STRENGTHS:
            model = LogisticRegression(C=1 / (strength * (~held_N).sum()), tol=1e-9, max_iter=10_000)
            model.fit(scaled_ND[~held_N], label_N[~held_N])
            losses.append(log_loss(label_N[held_N], model.predict_proba(scaled_ND[held_N])))
        found = linear_probe(z_ND, label_N, held_N)
        assert found.strength == STRENGTHS[int(np.argmin(losses))] != STRENGTHS[-1]
        whole = LogisticRegression(C=1 / (found.strength * len(z_ND)), tol=1e-9, max_iter=10_000).fit(
            scaled_ND, label_N
        )
        assert (found.read(z_ND) == whole.predict(scaled_ND)).mean() > 0.99

    def test_separable_classes_are_told_apart(self) -> None:
        label_N = np.arange(60) % 3
        z_ND = np.eye(5)[label_N] + 1e-3 * np.random.default_rng(0).standard_normal((60, 5))
        assert (linear_probe(z_ND, label_N, np.arange(60) < 12).read(z_ND) == label_N).all()

    def test_a_dimension_without_spread_says_nothing(self, tokens: tuple[Float, Int]) -> None:
        z_ND, label_N = tokens
        more_ND = np.concatenate([z_ND, np.full((len(z_ND), 1), 7.0)], axis=1)
        held_N = np.arange(len(z_ND)) % 4 == 0
        found, before = linear_probe(more_ND, label_N, held_N), linear_probe(z_ND, label_N, held_N)
        np.testing.assert_allclose(found.weight_DC[-1], 0, atol=1e-9)
        assert (found.read(more_ND) == before.read(z_ND)).all()

    def test_needs_two_classes_and_something_held_out(self, tokens: tuple[Float, Int]) -> None:
        z_ND, label_N = tokens
        with pytest.raises(DataError, match="A probe tells classes apart, and the labelled patches have 1"):
            linear_probe(z_ND, np.zeros_like(label_N), label_N > 1)
        with pytest.raises(DataError, match="choose its regularisation"):
            linear_probe(z_ND, label_N, np.zeros(len(z_ND), bool))


def test_nearest_class_means_are_those_of_scikit_learn(tokens: tuple[Float, Int]) -> None:
    z_ND, label_N = tokens
    expected = NearestCentroid().fit(z_ND, label_N).predict(z_ND)
    np.testing.assert_array_equal(class_means(z_ND, label_N).read(z_ND), expected)


class TestClusters:
    def test_from_the_same_centres_those_of_scikit_learn(self) -> None:
        generator = np.random.default_rng(1)
        z_ND = generator.standard_normal((300, 4)) + 6 * generator.standard_normal((5, 4))[np.arange(300) % 5]
        theirs = KMeans(5, init=z_ND[:5], n_init=1, tol=0).fit(z_ND)
        centres_SD, spread = lloyd(z_ND, z_ND[:5])
        np.testing.assert_allclose(centres_SD, theirs.cluster_centers_, atol=1e-6)
        assert spread == pytest.approx(theirs.inertia_, rel=1e-6)

    def test_finds_what_is_apart(self) -> None:
        label_N = np.arange(200) % 4
        z_ND = 10 * np.eye(6)[label_N] + 0.1 * np.random.default_rng(0).standard_normal((200, 6))
        found_N = clusters(z_ND, 4, seed=0).read(z_ND)
        assert adjusted_rand_score(label_N, found_N) == 1
        assert (clusters(z_ND, 4, seed=0).read(z_ND) == found_N).all()

    def test_fewer_points_than_clusters(self) -> None:
        z_ND = np.eye(3)[np.arange(12) % 2]
        assert len(clusters(z_ND, 5, seed=0).classes_C) == 2


def _table(a_N: Int, b_N: Int) -> Float:
    table = np.zeros((a_N.max() + 1, b_N.max() + 1))
    np.add.at(table, (a_N, b_N), 1)
    return table


class TestAgreement:
    def test_equals_scikit_learn(self) -> None:
        generator = np.random.default_rng(0)
        for clustered in (2, 5, 9):
            a_N, b_N = generator.integers(0, clustered, 400), generator.integers(0, 5, 400)
            a_N = np.where(generator.random(400) < 0.5, b_N % clustered, a_N)
            table = _table(a_N, b_N)
            assert normalised_mutual_information(table) == pytest.approx(normalized_mutual_info_score(b_N, a_N))
            assert adjusted_rand_index(table) == pytest.approx(adjusted_rand_score(b_N, a_N))

    def test_names_do_not_matter(self) -> None:
        label_N = np.arange(50) % 5
        table = _table(np.array([3, 0, 4, 1, 2])[label_N], label_N)
        assert normalised_mutual_information(table) == pytest.approx(1) and adjusted_rand_index(table) == 1

    def test_independent_labels(self) -> None:
        table = np.full((4, 5), 1000.0)
        assert normalised_mutual_information(table) == pytest.approx(0, abs=1e-12)
        assert adjusted_rand_index(table) == pytest.approx(0, abs=1e-3)

    def test_one_label_says_nothing(self) -> None:
        for table in ([[7.0]], [[0.0, 0.0], [0.0, 0.0]]):
            assert np.isnan(normalised_mutual_information(table)) and np.isnan(adjusted_rand_index(table))

    def test_many_tables_at_once(self) -> None:
        tables = np.random.default_rng(0).integers(0, 30, (3, 4, 5)).astype(float)
        for number in (normalised_mutual_information, adjusted_rand_index):
            np.testing.assert_allclose(number(tables), [number(each) for each in tables])


def _literal_nc1(z_ND: Float, label_N: Int) -> float:
    """tr(Sigma_W Sigma_B^+) / K with the matrices of the definition."""
    classes = np.unique(label_N)
    means = np.stack([z_ND[label_N == c].mean(0) for c in classes])
    within = np.mean([np.cov(z_ND[label_N == c].T, bias=True) for c in classes], axis=0)
    apart = means - means.mean(0)
    between = apart.T @ apart / len(classes)
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10))) / len(classes)


class TestCollapse:
    def test_collapsed_classes_have_nc1_0(self) -> None:
        label_N = np.arange(40) % 4
        simplex_KD = np.eye(4, 6) - 0.25 * np.ones((4, 1)) @ np.eye(4, 6).sum(0, keepdims=True)
        np.testing.assert_allclose(collapse(3 + 2 * simplex_KD[label_N], label_N), 0, atol=1e-12)

    def test_equals_the_definition(self, tokens: tuple[Float, Int]) -> None:
        z_ND, label_N = tokens
        found = collapse(z_ND, label_N)
        assert found[0] == pytest.approx(_literal_nc1(z_ND, label_N), rel=1e-9)
        wide_ND = np.concatenate([z_ND, np.random.default_rng(1).standard_normal((len(z_ND), 400))], axis=1)
        assert collapse(wide_ND, label_N)[0] == pytest.approx(_literal_nc1(wide_ND, label_N), rel=1e-6)

    def test_neither_a_shift_nor_a_rotation_nor_a_scale_matters(self, tokens: tuple[Float, Int]) -> None:
        z_ND, label_N = tokens
        turn_DD, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((8, 8)))
        np.testing.assert_allclose(collapse(4 * z_ND @ turn_DD + 100, label_N), collapse(z_ND, label_N), rtol=1e-8)

    def test_lengths_and_angles(self) -> None:
        label_N = np.arange(4) % 4
        square_KD = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
        _, lengths, angles = collapse(square_KD, label_N)
        assert lengths == pytest.approx(0) and angles == pytest.approx((2 * abs(-1 + 1 / 3) + 4 * abs(1 / 3)) / 6)
        _, lengths, _ = collapse(square_KD * [[3], [3], [1], [1]], label_N)
        assert lengths == pytest.approx(0.5)

    def test_what_has_no_classes_apart_is_unknown(self) -> None:
        assert np.isnan(collapse(np.ones((6, 3)), np.zeros(6, int))).all()
        assert np.isnan(collapse(np.ones((6, 3)), np.arange(6) % 2)).all()

    def test_without_each_group(self, tokens: tuple[Float, Int]) -> None:
        z_ND, label_N = tokens
        group_N = np.arange(len(z_ND)) % 3
        found = collapse_without_each(z_ND, label_N, group_N)
        np.testing.assert_allclose(found[1], collapse(z_ND[group_N != 1], label_N[group_N != 1]))
        group_N[label_N == label_N[0]] = 2
        found = collapse_without_each(z_ND, label_N, group_N)
        assert np.isnan(found[2]).all() and not np.isnan(found[:2]).any()


class TestRates:
    def test_are_those_of_the_tokens_of_a_class(self, tokens: tuple[Float, Int]) -> None:
        z_ND, label_N = tokens
        group_N = np.arange(len(z_ND)) % 3
        whole, left = rates(z_ND, label_N, group_N, 7, eps=0.1)

        def expected(chosen_N: NDArray[np.bool_]) -> list[float]:
            z, labels = torch.from_numpy(z_ND[chosen_N]), torch.from_numpy(label_N[chosen_N])
            own = [coding_rate(z[labels == c], 0.1).item() if (labels == c).any() else np.nan for c in range(7)]
            return [coding_rate(z, 0.1).item(), rate_reduction(z, labels, 0.1).item(), *own]

        np.testing.assert_allclose(whole, expected(np.ones(len(z_ND), bool)), rtol=1e-9)
        for each in range(3):
            np.testing.assert_allclose(left[each], expected(group_N != each), rtol=1e-9)

    def test_fewer_tokens_than_dimensions(self) -> None:
        z_ND, label_N = np.random.default_rng(0).standard_normal((12, 30)), np.arange(12) % 2
        whole, left = rates(z_ND, label_N, np.arange(12) // 4, 2, eps=0.1)
        assert whole[2] == pytest.approx(coding_rate(torch.from_numpy(z_ND[label_N == 0]), 0.1).item())
        kept = (np.arange(12) // 4 != 1) & (label_N == 1)
        assert left[1, 3] == pytest.approx(coding_rate(torch.from_numpy(z_ND[kept]), 0.1).item())


class TestJackknife:
    def test_of_a_mean_it_is_students_interval(self) -> None:
        from scipy.stats import t

        values = np.random.default_rng(0).standard_normal(12)
        left = (values.sum() - values) / 11
        found = jackknifed(values.mean()[None], left[:, None])
        low, high = t.interval(0.95, 11, values.mean(), values.std(ddof=1) / np.sqrt(12))
        assert (found.low_M[0], found.high_M[0]) == (pytest.approx(low), pytest.approx(high))

    def test_two_units_or_a_value_that_is_not_defined_without_one_have_none(self) -> None:
        assert np.isnan(jackknifed([1.0], [[1.0], [2.0]]).low_M).all()
        left = [[1.1], [0.9], [1.2], [0.8], [1.05]]
        wide, narrow = jackknifed([1.0], left, most=3), jackknifed([1.0], left)
        assert wide.high_M > narrow.high_M and wide.df_M == 2 and narrow.df_M == 4
        assert np.isnan(jackknifed([1.0], left, most=2).low_M).all()
        found = jackknifed([1.0], [[1.0], [2.0], [np.nan], [3.0]])
        assert found.value_M[0] == 1 and np.isnan(found.low_M).all()
