"""CKA, overlaps and angles of subspaces, matching: cases whose answer is known, and formulas written out."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from torch import Tensor

from analysis.maths.similarity import (
    cka,
    grams,
    head_angles,
    head_numbers,
    head_overlaps,
    hsic,
    hsic_sums,
    matched,
    random_head_numbers,
)
from analysis.maths.subspaces import overlaps
from whitebox.errors import DataError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def value(x: Tensor, y: Tensor) -> float:
    return float(cka(hsic_sums([x], [y]), 1, 1)[0])


class TestCKA:
    def test_of_a_rotation_a_scale_and_a_shift_it_is_1(self) -> None:
        x = normal(30, 8)
        assert value(x, x) == pytest.approx(1)
        assert value(x, 3 * x @ rotation(8) + normal(8, seed=2)) == pytest.approx(1)

    def test_of_independent_tokens_it_is_0_on_average_where_the_biased_one_is_not(self) -> None:
        found = [value(normal(20, 50, seed=seed), normal(20, 50, seed=1000 + seed)) for seed in range(60)]
        assert abs(np.mean(found)) < 0.02
        k, m = (x - x.mean(0) for x in (normal(20, 50), normal(20, 50, seed=1000)))
        biased = (k.T @ m).square().sum() / ((k.T @ k).norm() * (m.T @ m).norm())
        assert biased > 0.6

    def test_of_many_tokens_it_is_that_of_kornblith(self) -> None:
        x = normal(1000, 4)
        y = x @ normal(4, 5, seed=1) + normal(1000, 5, seed=2)
        k, m = (each - each.mean(0) for each in (x, y))
        expected = (k.T @ m).square().sum() / ((k.T @ k).norm() * (m.T @ m).norm())
        assert value(x, y) == pytest.approx(float(expected), abs=0.01)

    def test_the_unbiased_estimate_by_its_definition(self) -> None:
        """Over all quadruples of different tokens (Song et al. 2012, eq. 4)."""
        x, y = normal(6, 3), normal(6, 2, seed=1)
        k, m = (each @ each.T for each in (x, y))
        terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(6), 4)]
        torch.testing.assert_close(hsic(grams([x]), grams([y]))[0, 0], torch.stack(terms).mean())

    def test_all_pairs_of_layers_at_once(self) -> None:
        first, second = [normal(12, 3), normal(12, 4, seed=1)], [normal(12, 5, seed=2), normal(12, 3)]
        found = cka(hsic_sums(first, second), 2, 2).reshape(2, 2)
        assert found == pytest.approx(np.array([[value(x, y) for y in second] for x in first]))
        assert found[0, 1] == pytest.approx(1)

    def test_what_it_cannot_tell(self) -> None:
        assert np.isnan(value(torch.ones(5, 3), normal(5, 3)))
        with pytest.raises(DataError, match="at least 4 tokens of a window; there are 3"):
            value(normal(3, 2), normal(3, 2))


class TestHeads:
    def test_the_same_subspaces_in_another_order(self) -> None:
        """Other bases of the same subspaces, permuted: angles 0, and the permutation is found."""
        u = normal(3, 4, 20).numpy()
        turned = np.stack([rotation(4, seed).numpy() @ each for seed, each in enumerate(u)])
        v = turned[[2, 0, 1]]
        overlap = head_overlaps(u, v)
        assert matched(overlap) == [(0, 1), (1, 2), (2, 0)]
        found = head_numbers(u, v)
        assert found["matched_overlap"] == pytest.approx(1) and found["matched_angle"] == pytest.approx(0, abs=1e-5)
        assert found["same_overlap"] < 0.6 and found["same_angle"] > 40

    def test_overlaps_and_angles_by_their_formulas(self) -> None:
        u, v = normal(2, 3, 10).numpy(), normal(3, 3, 10, seed=1).numpy()
        expected = np.trace(u[1].T @ u[1] @ v[2].T @ v[2]) / (
            np.linalg.norm(u[1].T @ u[1]) * np.linalg.norm(v[2].T @ v[2])
        )
        assert head_overlaps(u, v).shape == (2, 3) and head_overlaps(u, v)[1, 2] == pytest.approx(expected)
        assert head_overlaps(u, u)[0, 1] == pytest.approx(overlaps(u)[0])
        assert head_angles(u, v)[1, 2] == pytest.approx(np.degrees(subspace_angles(u[1].T, v[2].T)).mean())
        assert len(matched(head_overlaps(u, v))) == 2

    def test_orthogonal_and_empty_heads(self) -> None:
        axes = np.eye(6).reshape(3, 2, 6)
        assert head_overlaps(axes[:1], axes)[0] == pytest.approx([1, 0, 0])
        assert head_angles(axes[:1], axes)[0] == pytest.approx([0, 90, 90])
        assert np.isnan(head_overlaps(axes, 0 * axes)).all() and np.isnan(head_angles(axes, 0 * axes)).all()

    def test_random_rotations_are_what_independent_subspaces_are(self) -> None:
        u, v = normal(3, 4, 40).numpy(), normal(3, 4, 40, seed=1).numpy()
        found = random_head_numbers(u, u, draws=40, seed=0)
        own = head_numbers(u, v)
        for name, each in found.items():
            assert each["low"] < own[name] < each["high"], name
        assert found["matched_overlap"]["value"] > found["same_overlap"]["value"]  # matching alone gains something
        assert found == random_head_numbers(u, u, draws=40, seed=0) != random_head_numbers(u, u, draws=40, seed=1)
