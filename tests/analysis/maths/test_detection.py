"""AUROC, average precision and FPR95 from counts in bins, beside scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from analysis.maths.detection import counted, detection, edges_of, edges_of_shares, roc


def drawn(shift: float, count: int = 4000) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    generator = np.random.default_rng(0)
    foreign_N = generator.random(count) < 0.1
    return generator.standard_normal(count) + shift * foreign_N, foreign_N


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5, -1.0])
def test_a_bin_a_value_is_exact(shift: float) -> None:
    score_N, foreign_N = drawn(shift)
    score_N = score_N.round(1)  # with ties
    auroc, ap, fpr95 = detection(counted(score_N, foreign_N, np.unique(score_N)))
    assert auroc == pytest.approx(roc_auc_score(foreign_N, score_N))
    assert ap == pytest.approx(average_precision_score(foreign_N, score_N))
    fpr, tpr, _ = roc_curve(foreign_N, score_N, drop_intermediate=False)
    assert fpr95 == pytest.approx(fpr[np.argmax(tpr >= 0.95)])


@pytest.mark.parametrize("far", [0.0, 3.0, 1000.0])
def test_bins_of_another_sample_are_near(far: float) -> None:
    score_N, foreign_N = drawn(1.0)
    score_N = score_N + far * foreign_N
    edges = edges_of(np.random.default_rng(1).standard_normal(5000))
    auroc, ap, _ = detection(counted(score_N, foreign_N, edges))
    assert auroc == pytest.approx(roc_auc_score(foreign_N, score_N), abs=1e-3)
    assert ap == pytest.approx(average_precision_score(foreign_N, score_N), abs=5e-3)


@pytest.mark.parametrize("size", [1.0, 1e-2, 1e-4])
def test_shares_of_any_size(size: float) -> None:
    generator = np.random.default_rng(0)
    foreign_N = generator.random(20_000) < 0.1
    score_N = size * np.clip(generator.normal(0.3 + 0.1 * foreign_N, 0.1), 0, 1)
    auroc, ap, fpr = detection(counted(score_N, foreign_N, edges_of_shares()))
    exact = roc_auc_score(foreign_N, score_N), average_precision_score(foreign_N, score_N)
    np.testing.assert_allclose((auroc, ap), exact, atol=0.003)
    threshold = np.quantile(score_N[foreign_N], 0.05)
    assert fpr == pytest.approx((score_N[~foreign_N] >= threshold).mean(), abs=0.01)


def test_known_cases() -> None:
    np.testing.assert_allclose(detection([[5, 0], [0, 3]]), [1, 1, 0])  # foreign ones are above all others
    np.testing.assert_allclose(detection([[0, 3], [5, 0]]), [0, 3 / 8, 1])
    np.testing.assert_allclose(detection([[6, 2]]), [0.5, 0.25, 1])  # all tied
    assert np.isnan(detection([[5, 0], [1, 0]])).all() and np.isnan(detection([[0, 5]])).all()


def test_many_at_once() -> None:
    counts = np.random.default_rng(0).integers(0, 9, (3, 4, 12, 2)).astype(float)
    np.testing.assert_allclose(detection(counts)[1, 2], detection(counts[1, 2]))


def test_the_curve_encloses_the_area() -> None:
    score_N, foreign_N = drawn(1.5)
    counts = counted(score_N, foreign_N, np.unique(score_N))
    curve = roc(counts, 2001)
    assert curve[-1] == 1 and np.trapezoid(curve, np.linspace(0, 1, 2001)) == pytest.approx(
        detection(counts)[0], abs=2e-3
    )


def test_a_sample_of_one_value() -> None:
    assert np.isfinite(edges_of(np.zeros(5))).all() and (np.diff(edges_of(np.zeros(5))) > 0).all()
