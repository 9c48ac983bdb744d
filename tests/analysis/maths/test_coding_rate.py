"""Coding rates, rate reduction, spectra and ranks against closed forms; the released scripts: test_rank_analysis.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.maths.coding_rate import (
    coding_rate,
    components_for,
    compression_rate,
    effective_rank,
    eigenvalues,
    numerical_rank,
    principal_directions,
    projected_rates,
    rate_of_moment,
    rate_reduction,
    second_moment,
    stable_rank,
)
from whitebox.errors import ConfigError, DataError, ModelError

EPS = 0.5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int, seed: int = 1) -> Tensor:
    return torch.linalg.qr(normal(size, size, seed=seed))[0]


def by_singular_values(z_ND: Tensor, eps: float, dimension: int | None = None) -> float:
    """The definition, through an SVD in float64."""
    N, D = z_ND.shape
    singular = np.linalg.svd(z_ND.double().numpy(), compute_uv=False)
    return float(0.5 * np.log1p((dimension or D) / (N * eps**2) * singular**2).sum())


class TestCodingRate:
    @pytest.mark.parametrize("shape", [(30, 8), (8, 30), (12, 12), (1, 5), (5, 1)])
    def test_definition_on_either_side(self, shape: tuple[int, int]) -> None:
        z_ND = normal(*shape)
        assert coding_rate(z_ND, EPS).item() == pytest.approx(by_singular_values(z_ND, EPS), rel=1e-12)
        assert coding_rate(z_ND, EPS, 3).item() == pytest.approx(by_singular_values(z_ND, EPS, 3), rel=1e-12)

    def test_orthogonal_columns_of_one_length(self) -> None:
        N, D, variance = 40, 6, 2.5
        z_ND = torch.linalg.qr(normal(N, D))[0] * math.sqrt(N * variance)
        expected = D / 2 * math.log(1 + D * variance / EPS**2)
        assert coding_rate(z_ND, EPS).item() == pytest.approx(expected, rel=1e-12)

    def test_isotropic_gaussian(self) -> None:
        D = 8
        expected = D / 2 * math.log(1 + D / EPS**2)
        assert coding_rate(normal(50_000, D), EPS).item() == pytest.approx(expected, rel=1e-3)

    def test_one_token_and_zero_tokens(self) -> None:
        z_1D = normal(1, 7)
        expected = 0.5 * math.log(1 + 7 * z_1D.square().sum().item() / EPS**2)
        assert coding_rate(z_1D, EPS).item() == pytest.approx(expected, rel=1e-12)
        assert coding_rate(torch.zeros(9, 4), EPS).item() == 0

    def test_invariances(self) -> None:
        z_ND = normal(20, 6)
        rate = coding_rate(z_ND, EPS)
        for other in (z_ND @ rotation(6), z_ND.flip(0), torch.cat([z_ND, z_ND]), rotation(20) @ z_ND, -z_ND):
            assert coding_rate(other, EPS).item() == pytest.approx(rate.item(), rel=1e-12)

    def test_leading_axes(self) -> None:
        z = normal(2, 3, 10, 4)
        rates = coding_rate(z, EPS)
        assert rates.shape == (2, 3) and rates.dtype == torch.float64
        assert rates[1, 2].item() == pytest.approx(coding_rate(z[1, 2], EPS).item(), rel=1e-14)

    def test_collapsed_float32_tokens_where_the_published_form_is_wrong(self) -> None:
        z_ND = (100 * normal(600, 4) @ normal(4, 32, seed=2)).float()
        N, D = z_ND.shape
        expected = by_singular_values(z_ND, 0.1)
        published = 0.5 * torch.logdet(torch.eye(N) + D / (N * 0.1**2) * z_ND @ z_ND.T)
        assert coding_rate(z_ND, 0.1).item() == pytest.approx(expected, rel=1e-6)
        assert not abs(published.item() / expected - 1) < 0.1

    @pytest.mark.parametrize("eps", [0, -0.1, math.inf, math.nan])
    def test_impossible_eps(self, eps: float) -> None:
        with pytest.raises(ConfigError, match=rf"eps={eps!r} is impossible: it must be above 0 and finite"):
            coding_rate(normal(5, 3), eps)

    def test_an_eps_that_double_precision_cannot_resolve_says_what_it_can(self) -> None:
        z_ND = 1e3 * normal(5, 3)
        with pytest.raises(
            ConfigError, match=r"eps=1e-06 is too small for double precision.*need (\S+) or more"
        ) as error:
            coding_rate(z_ND, 1e-6)
        enough = float(str(error.value).split("need ")[1].split()[0])
        assert coding_rate(z_ND, 1.1 * enough).item() == pytest.approx(by_singular_values(z_ND, 1.1 * enough), rel=1e-6)

    def test_no_tokens(self) -> None:
        with pytest.raises(DataError, match="no tokens"):
            coding_rate(torch.zeros(0, 3), EPS)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_tokens_that_are_no_numbers(self, value: float) -> None:
        z_ND = normal(5, 3)
        z_ND[2, 1] = value
        for measure in (
            lambda: coding_rate(z_ND, EPS),
            lambda: eigenvalues(second_moment(z_ND)),
            lambda: principal_directions(second_moment(z_ND), 2),
        ):
            with pytest.raises(ModelError, match="NaN or infinity"):
                measure()


class TestProjected:
    def test_definition(self) -> None:
        z_ND, bases_HPD = normal(30, 8), normal(2, 5, 8, seed=3)
        rates_H = projected_rates(z_ND, bases_HPD, EPS)
        for rate, basis_PD in zip(rates_H, bases_HPD, strict=True):
            assert rate.item() == pytest.approx(by_singular_values(z_ND @ basis_PD.T, EPS), rel=1e-12)
        wide_H = projected_rates(z_ND, bases_HPD, EPS, 8)
        assert wide_H[1].item() == pytest.approx(by_singular_values(z_ND @ bases_HPD[1].T, EPS, 8), rel=1e-12)
        assert compression_rate(z_ND, bases_HPD, EPS).item() == pytest.approx(rates_H.sum().item(), rel=1e-14)

    def test_an_orthonormal_subspace_holds_at_most_the_full_rate(self) -> None:
        z_ND, turned_DD = normal(30, 8), rotation(8)
        full = coding_rate(z_ND, EPS).item()
        parts_H = projected_rates(z_ND, turned_DD.unflatten(0, (2, 4)), EPS, 8)
        assert (parts_H < full).all() and parts_H.sum() > full  # Fischer's inequality
        assert projected_rates(z_ND, turned_DD[None], EPS).item() == pytest.approx(full, rel=1e-12)

    def test_rotations_inside_a_head_change_nothing_others_do(self) -> None:
        z_ND, bases_HPD = normal(30, 8), normal(3, 4, 8, seed=3)
        rates_H = projected_rates(z_ND, bases_HPD, EPS)
        torch.testing.assert_close(projected_rates(z_ND, rotation(4) @ bases_HPD, EPS), rates_H, rtol=1e-12, atol=0)
        mixed = (rotation(12) @ bases_HPD.flatten(0, 1)).unflatten(0, (3, 4))
        assert (projected_rates(z_ND, mixed, EPS) - rates_H).abs().max() > 0.01

    def test_subspaces_larger_than_the_width(self) -> None:
        z_ND, bases_HPD = normal(30, 4), normal(2, 9, 4, seed=3)
        expected = by_singular_values(z_ND @ bases_HPD[0].T, EPS)
        assert projected_rates(z_ND, bases_HPD, EPS)[0].item() == pytest.approx(expected, rel=1e-12)

    def test_gradient(self) -> None:
        z_ND, bases_HPD = normal(6, 4).requires_grad_(), normal(2, 3, 4, seed=3)
        (gradient_ND,) = torch.autograd.grad(compression_rate(z_ND, bases_HPD, EPS), z_ND)
        a = 3 / (6 * EPS**2)
        expected_ND = torch.zeros_like(gradient_ND)
        for basis_PD in bases_HPD:
            w_NP = z_ND.detach() @ basis_PD.T
            expected_ND += a * w_NP @ torch.linalg.inv(torch.eye(3) + a * w_NP.T @ w_NP) @ basis_PD
        torch.testing.assert_close(gradient_ND, expected_ND, rtol=1e-10, atol=1e-12)
        assert torch.autograd.gradcheck(lambda z: coding_rate(z, EPS), z_ND)


class TestRateReduction:
    def test_orthogonal_classes(self) -> None:
        parts = [normal(n, 2, seed=n) for n in (5, 9, 3)]
        z_ND, classes_N = torch.block_diag(*parts), torch.tensor([4] * 5 + [0] * 9 + [7] * 3)
        N, D = z_ND.shape
        expected = sum(
            0.5 * np.log1p(D / (N * EPS**2) * s**2).sum()
            - len(part) / N * 0.5 * np.log1p(D / (len(part) * EPS**2) * s**2).sum()
            for part in parts
            for s in [np.linalg.svd(part.numpy(), compute_uv=False)]
        )
        assert rate_reduction(z_ND, classes_N, EPS).item() == pytest.approx(float(expected), rel=1e-12)

    def test_a_single_class_reduces_nothing(self) -> None:
        assert rate_reduction(normal(2, 9, 4), torch.full((9,), 3), EPS).tolist() == [0, 0]

    def test_never_negative_and_zero_for_alike_classes(self) -> None:
        z_ND = normal(40, 6)
        assert rate_reduction(z_ND, torch.arange(40) % 3, EPS) > 0
        assert rate_reduction(torch.cat([z_ND, z_ND]), torch.arange(80) // 40, EPS).item() == pytest.approx(
            0, abs=1e-12
        )

    def test_no_tokens(self) -> None:
        with pytest.raises(DataError, match="no tokens"):
            rate_reduction(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), EPS)


class TestRanks:
    def test_extremes(self) -> None:
        values = torch.tensor([[1.0, 1, 1, 1], [5, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
        assert effective_rank(values).tolist() == pytest.approx([4, 1, 0])
        assert stable_rank(values).tolist() == pytest.approx([4, 1, 0])
        assert numerical_rank(values, 10).tolist() == [4, 1, 0]
        for share, expected in ((0.5, [2, 1, 0]), (0.9, [4, 1, 0]), (1.0, [4, 1, 0])):
            assert components_for(values, share).tolist() == expected

    def test_two_directions(self) -> None:
        values = torch.tensor([9.0, 1.0], dtype=torch.float64)  # singular values 3 and 1
        assert effective_rank(values).item() == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))
        assert stable_rank(values).item() == pytest.approx(10 / 9)
        assert [components_for(values, share).item() for share in (0.89, 0.9, 0.91)] == [1, 1, 2]

    def test_a_share_that_is_missed_by_rounding_only_is_reached(self) -> None:
        values = torch.full((10,), 0.1, dtype=torch.float64)
        assert [components_for(values, share).item() for share in (0.1, 0.5, 0.9)] == [1, 5, 9]

    def test_eigenvalues_are_squared_singular_values(self) -> None:
        z_ND = normal(20, 6)
        expected = np.linalg.svd(z_ND.numpy(), compute_uv=False) ** 2
        np.testing.assert_allclose(eigenvalues(second_moment(z_ND)).numpy(), expected, rtol=1e-10)
        directions_DK = principal_directions(second_moment(z_ND), 2)
        np.testing.assert_allclose((z_ND @ directions_DK).square().sum(0), expected[:2], rtol=1e-10)

    def test_rank_of_float32_tokens(self) -> None:
        z_ND = (normal(200, 5) @ normal(5, 32, seed=2)).float()
        values = eigenvalues(second_moment(z_ND))
        assert (values >= 0).all()
        assert numerical_rank(values, 200).item() == np.linalg.matrix_rank(z_ND.numpy()) == 5
        noisy_ND = z_ND + 1e-3 * normal(200, 32, seed=4).float()
        assert numerical_rank(eigenvalues(second_moment(noisy_ND)), 200).item() == 32

    def test_threads_are_left_as_they_were(self) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(before + 1)
        try:
            coding_rate(normal(5, 3), EPS), eigenvalues(second_moment(normal(5, 3)))
            assert torch.get_num_threads() == before + 1
        finally:
            torch.set_num_threads(before)

    def test_the_moment_serves_the_rate(self) -> None:
        z_ND = normal(20, 6)
        assert torch.equal(rate_of_moment(second_moment(z_ND), 20, 6, EPS), coding_rate(z_ND, EPS))
