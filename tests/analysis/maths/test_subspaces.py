"""Orthogonality numbers against cases with a known answer."""

import math

import numpy as np
import pytest

from analysis.maths.subspaces import (
    class_numbers,
    condition_number,
    gram,
    head_numbers,
    identity_deviation,
    overlaps,
    principal_angles,
    random_numbers,
    unit_rows,
)

RNG = np.random.default_rng(0)


def orthogonal(size: int) -> np.ndarray:
    return np.linalg.qr(RNG.standard_normal((size, size)))[0]


def test_deviation_from_a_scaled_identity() -> None:
    basis = 3 * orthogonal(6)[:4]
    assert identity_deviation(basis @ basis.T) == pytest.approx(0, abs=1e-12)
    same = np.ones((4, 6))
    assert identity_deviation(same @ same.T) == pytest.approx(math.sqrt(1 - 1 / 4))
    lengths = np.diag([1.0, 2.0])  # best scale 2.5 of diag(1, 4)
    assert identity_deviation(lengths @ lengths.T) == pytest.approx(1.5 * math.sqrt(2) / math.sqrt(17))
    assert math.isnan(identity_deviation(np.zeros((3, 3))))


def test_more_rows_than_columns_cannot_come_closer_than_their_rank() -> None:
    tight = math.sqrt(6 / 4) * np.linalg.qr(RNG.standard_normal((6, 4)))[0]  # a tight frame: 6 rows, rank 4
    assert identity_deviation(tight @ tight.T) == pytest.approx(math.sqrt(1 - 4 / 6))
    for _ in range(5):
        rows = RNG.standard_normal((6, 4))
        assert identity_deviation(rows @ rows.T) > math.sqrt(1 - 4 / 6)


def test_condition_number() -> None:
    assert condition_number(np.diag([4.0, 1.0, 2.0])[:, ::-1]) == pytest.approx(4)
    assert condition_number(5 * orthogonal(5)[:3]) == pytest.approx(1)
    assert condition_number(np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])) == math.inf
    assert condition_number(RNG.standard_normal((4, 3))) == math.inf
    assert condition_number(np.zeros((2, 3))) == math.inf


def test_overlap_is_the_cosine_between_the_maps() -> None:
    axes = np.eye(5)
    heads = np.stack([axes[[0, 1]], 3 * axes[[1, 2]], axes[[3, 4]], 2 * axes[[1, 0]]])
    # pairs (0,1) (0,2) (0,3) (1,2) (1,3) (2,3)
    np.testing.assert_allclose(overlaps(heads), [0.5, 0, 1, 0, 0.5, 0], atol=1e-15)
    first, second = (basis.T @ basis for basis in RNG.standard_normal((2, 3, 5)))
    heads = np.stack([np.linalg.cholesky(m + 1e-9 * np.eye(5)).T for m in (first, second)])
    cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
    assert overlaps(heads)[0] == pytest.approx(cosine, abs=1e-6)
    assert math.isnan(overlaps(np.stack([axes[[0, 1]], 0 * axes[[0, 1]]]))[0])


def test_principal_angles_between_heads() -> None:
    tilt = np.radians(30)
    first = np.array([[1.0, 0, 0, 0], [0, 1, 0, 0]])
    second = np.array([[0, 0, 0, 5.0], [math.cos(tilt), 0, math.sin(tilt), 0]])
    np.testing.assert_allclose(principal_angles(np.stack([first, second])), [[30, 90]], atol=1e-9)
    wide = RNG.standard_normal((3, 5, 8))
    angles = principal_angles(wide)
    assert len(angles) == 3
    for pair in angles:  # 2 x 5 - 8 angles are forced to be 0, the others are not
        np.testing.assert_allclose(pair[:2], 0, atol=1e-4)
        assert pair[2] > 1 and (np.diff(pair) >= 0).all()
    deficient = np.stack([first, np.array([[1.0, 0, 0, 0], [2, 0, 0, 0]])])
    np.testing.assert_allclose(principal_angles(deficient), [[0]], atol=1e-9)


def test_rotating_the_rows_of_a_head_changes_nothing() -> None:
    heads = RNG.standard_normal((3, 4, 10))
    rotated = np.stack([orthogonal(4) @ basis for basis in heads])
    assert head_numbers(heads) == pytest.approx(head_numbers(rotated))
    mixed = (orthogonal(12) @ heads.reshape(12, 10)).reshape(3, 4, 10)
    assert head_numbers(heads)["overlap"] != pytest.approx(head_numbers(mixed)["overlap"], rel=1e-3)


def test_perfect_heads_and_a_single_head() -> None:
    perfect = head_numbers(2 * orthogonal(8)[:6].reshape(3, 2, 8))
    expected = {"deviation": 0, "condition": 1, "overlap": 0, "angle": 90, "smallest_angle": 90}
    assert perfect == pytest.approx(expected, abs=1e-5)
    single = head_numbers(RNG.standard_normal((1, 2, 8)))
    assert single["deviation"] > 0 and single["condition"] > 1
    assert all(math.isnan(single[name]) for name in ("overlap", "angle", "smallest_angle"))


def test_class_embeddings_are_compared_as_unit_vectors() -> None:
    perfect = np.diag([1.0, 10.0, 0.1])
    expected = {"deviation": 0, "cosine": 0, "largest_cosine": 0, "condition": 1}
    assert class_numbers(perfect) == pytest.approx(expected, abs=1e-12)
    opposed = class_numbers(np.array([[1.0, 0], [-3.0, 0], [0, 2.0]]))
    assert opposed["cosine"] == pytest.approx(1 / 3) and opposed["largest_cosine"] == pytest.approx(1)
    assert opposed["condition"] == math.inf
    single = class_numbers(np.array([[1.0, 2.0]]))
    assert single["deviation"] == pytest.approx(0) and math.isnan(single["cosine"] + single["largest_cosine"])
    np.testing.assert_array_equal(unit_rows(np.array([[0.0, 0], [3, 4]])), [[0, 0], [0.6, 0.8]])


def test_random_matrices_are_what_theory_expects() -> None:
    H, P, D = 3, 20, 48
    random = random_numbers(head_numbers, (H, P, D), draws=40, seed=0)
    # E tr(G)^2 / P over E |G|^2 = P D (D + P + 1), and E |U_h U_g^T|^2 = P^2 D, for entries of variance 1
    assert random["deviation"]["value"] == pytest.approx(math.sqrt((P + 1) / (D + P + 1)), rel=0.02)
    assert random["overlap"]["value"] == pytest.approx(P / (D + P + 1), rel=0.03)
    for interval in random.values():
        assert interval["low"] <= interval["value"] <= interval["high"]
        assert interval["low"] < interval["high"]


def test_random_draws_are_seeded() -> None:
    first, again, other = (random_numbers(class_numbers, (4, 9), draws=5, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    dependent = random_numbers(class_numbers, (9, 4), draws=5, seed=0)  # nine vectors in four dimensions
    assert dependent["condition"] == {"value": math.inf, "low": math.inf, "high": math.inf}


def test_gram_stacks_the_heads() -> None:
    heads = RNG.standard_normal((2, 3, 7))
    np.testing.assert_allclose(gram(heads)[:3, 3:], heads[0] @ heads[1].T)
    assert gram(heads).shape == (6, 6)


def test_the_range_of_random_matrices_holds_95_percent() -> None:
    """Of a standard normal number: 1.96 on either side, to four standard errors of that percentile."""
    found = random_numbers(lambda drawn: {"first": float(drawn[0, 0])}, (1, 2), draws=6000, seed=0)["first"]
    assert found["low"] == pytest.approx(-1.96, abs=0.14) and found["high"] == pytest.approx(1.96, abs=0.14)
