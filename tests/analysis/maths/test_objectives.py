"""Objectives of ToST, CBSA and CRATE: against their formulas, finite differences, and layers that are exact steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from analysis.maths.coding_rate import coding_rate, compression_rate
from analysis.maths.moves import (
    Move,
    contraction,
    gradient_step,
    judge,
    over_distortions,
    path,
    sparsification,
    steepest,
    variational,
)
from analysis.maths.objectives import (
    given_representatives,
    projected,
    rates,
    sparse_rate,
    variational_gradient,
    variational_rates,
)
from whitebox.errors import ConfigError
from whitebox.models.attention import CBSA, TSSA
from whitebox.models.decoders.crate import ista
from whitebox.models.taps import record


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def memberships(heads: int, tokens: int) -> Tensor:
    return normal(heads, tokens, seed=5).softmax(0)


def slope_of(function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor, h: float = 1e-6) -> Tensor:
    """Central difference along a direction."""
    return (function(at + h * direction) - function(at - h * direction)) / (2 * h)


class TestVariationalBound:
    def test_it_is_a_bound_and_tight_where_coordinates_are_uncorrelated(self) -> None:
        w, pi, eps = normal(2, 30, 4), memberships(2, 30), 0.5

        def exact(w_HNP: Tensor) -> Tensor:
            """N_h / (2 N) log det of the members' second moment."""
            members = pi.sum(-1)
            moment = w_HNP.mT @ (pi.unsqueeze(-1) * w_HNP) * (4 / eps**2 / members[:, None, None])
            return members / 60 * torch.logdet(torch.eye(4, dtype=torch.float64) + moment)

        assert (variational_rates(w, pi, eps) > exact(w)).all()
        axes = torch.eye(4, dtype=torch.float64)[torch.arange(30) % 4] * normal(2, 30, 1, seed=2)
        torch.testing.assert_close(variational_rates(axes, pi, eps), exact(axes))

    def test_with_all_tokens_in_all_subspaces_it_bounds_the_rate(self) -> None:
        z, bases = normal(30, 8), normal(3, 4, 8, seed=1)
        w, ones = projected(z, bases), torch.ones(3, 30, dtype=torch.float64)
        assert variational_rates(w, ones, 0.3).sum() > compression_rate(z, bases, 0.3)
        alone = projected(z, bases[:, :1])  # one direction has no correlations
        torch.testing.assert_close(variational_rates(alone, ones, 0.3).sum(), compression_rate(z, bases[:, :1], 0.3))

    def test_the_gradient(self) -> None:
        z, bases, pi, direction = normal(20, 8), normal(3, 4, 8, seed=1), memberships(3, 20), normal(20, 8, seed=3)

        def value(z_ND: Tensor) -> Tensor:
            return variational_rates(projected(z_ND, bases), pi, 0.3).sum()

        found = variational_gradient(projected(z, bases), pi, bases, 0.3)
        torch.testing.assert_close((found * direction).sum(), slope_of(value, z, direction), rtol=1e-7, atol=1e-9)
        z.requires_grad_()
        torch.testing.assert_close(torch.autograd.grad(value(z), z)[0], found)

    def test_a_layer_with_tied_maps_is_its_exact_gradient_step(self) -> None:
        """TSSA with W = U and eps^2 = P is the gradient, so the cosine is 1."""
        layer = tied(TSSA(width=8, heads=2, head_dim=3))
        found = judge(tost_move(layer, math.sqrt(3), "normed"), torch.Generator().manual_seed(0))
        assert found["cosine"] == pytest.approx(1) and found["derived"] == pytest.approx(1)
        assert found["change"] < 0 and found["gradient"] <= found["change"] + 1e-9
        torch.testing.assert_close(torch.tensor(found["head_cosine"]), torch.ones(2, dtype=torch.float64))
        turned = judge(tost_move(tied(layer, -1.0), math.sqrt(3), "normed"), torch.Generator().manual_seed(0))
        assert turned["cosine"] == pytest.approx(-1) and turned["change"] > 0

    def test_heads_and_bias_add_up_to_the_update(self) -> None:
        torch.manual_seed(0)
        layer = TSSA(width=8, heads=2, head_dim=3).double()
        torch.nn.init.normal_(layer.output.bias)
        move = tost_move(layer, 0.3, "tokens")
        assert move.heads_HMD is not None
        torch.testing.assert_close(move.heads_HMD.sum(0) + layer.output.bias.detach(), move.update_MD)

    def test_eps(self) -> None:
        with pytest.raises(ConfigError, match="eps"):
            variational_rates(normal(1, 2, 3), memberships(1, 2), 0.0)


def tied(layer: TSSA, sign: float = 1.0) -> TSSA:
    """The output map is the basis, as in the derivation."""
    layer = layer.double()
    with torch.no_grad():
        layer.basis.copy_(normal(*layer.basis.shape, seed=4))
        layer.output.weight.copy_(sign * layer.basis.T)
        layer.output.bias.zero_()
    return layer


def tost_move(layer: TSSA, eps: float, at: str) -> Move:
    with record(layer, "*") as seen, torch.no_grad():
        layer(normal(1, 20, 8))
    heard = {name: value[0] for name, value in seen.items()}
    return variational(layer, heard["tokens"], heard["update"], heard["projected"], heard["membership"], eps, at)


class TestContraction:
    @pytest.fixture
    def layer(self) -> CBSA:
        torch.manual_seed(0)
        made = CBSA(width=8, heads=2, head_dim=3, pool=2).double()
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter)
        return made

    def heard(self, layer: CBSA) -> dict[str, Tensor]:
        with record(layer, "*") as seen, torch.no_grad():
            layer(normal(1, 4 * 6 + 2, 8), (4, 6))
        return {name: value[0] for name, value in seen.items()}

    def move(self, layer: CBSA, at: str = "tokens") -> Move:
        heard = self.heard(layer)
        seen = (heard[name] for name in ("tokens", "update", "projected", "attention"))
        return contraction(layer, *seen, (4, 6), 0.5, at)

    def test_the_objective_is_the_rate_of_the_layers_representatives(self, layer: CBSA) -> None:
        with record(layer, "*") as seen, torch.no_grad():
            layer(normal(1, 26, 8), (4, 6))
        own = seen["representatives"] + layer.representative_step * (seen["attention"] @ seen["projected"])
        expected = torch.stack([coding_rate(own[0, head], 0.5) for head in range(2)])
        for at in ("tokens", "normed"):
            move = self.move(layer, at)
            torch.testing.assert_close(move.terms(move.x_MD), expected.detach())

    def test_its_gradient_by_finite_differences(self, layer: CBSA) -> None:
        move, direction = self.move(layer), normal(26, 8, seed=3)
        slope = slope_of(move.value, move.x_MD, direction)
        torch.testing.assert_close(-(steepest(move, move.x_MD) * direction).sum(), slope, rtol=1e-6, atol=1e-8)

    def test_heads_and_bias_add_up_to_the_update(self, layer: CBSA) -> None:
        move = self.move(layer)
        assert move.heads_HMD is not None
        torch.testing.assert_close(move.heads_HMD.sum(0) + layer.output.bias.detach(), move.update_MD)

    def test_tokens_that_are_what_their_representatives_are_have_no_rate_given_them(self) -> None:
        same = normal(2, 1, 3).expand(2, 20, 3)
        weights = normal(2, 5, 20, seed=1).softmax(-1)
        assert rates(given_representatives(same, weights), 0.1).abs().max() < 1e-9
        apart = torch.cat([same, -same], dim=1)  # two groups, each with representatives of its own
        own = torch.block_diag(torch.full((3, 20), 1 / 20), torch.full((2, 20), 1 / 20)).double().expand(2, 5, 40)
        assert rates(given_representatives(apart, own), 0.1).abs().max() < 1e-9
        everyone = torch.full((2, 5, 40), 1 / 40, dtype=torch.float64)
        torch.testing.assert_close(given_representatives(apart, everyone), apart)


class TestSparseRate:
    def test_its_terms(self) -> None:
        z = normal(20, 6)
        found = sparse_rate(z, 0.1, 0.5)
        torch.testing.assert_close(found[0], coding_rate(z, 0.5))
        torch.testing.assert_close(found[1], -0.1 * z.abs().sum() / 20)
        assert sparse_rate(torch.zeros(5, 3), 0.1, 0.5).tolist() == [0, 0]

    def test_its_gradient_by_finite_differences(self) -> None:
        z, direction = normal(20, 6), normal(20, 6, seed=1)
        move = sparsification(z, F.relu(z), 0.3, 0.5)
        torch.testing.assert_close(
            (steepest(move, z) * direction).sum(), slope_of(move.value, z, direction), rtol=1e-6, atol=1e-8
        )

    def test_changes_are_in_nats(self) -> None:
        z = normal(20, 6)
        sparse = ista(z, torch.eye(6, dtype=torch.float64), 0.1, 0.5)
        found = judge(sparsification(z, sparse, 0.5, 0.5), torch.Generator().manual_seed(0))
        difference = sparse_rate(sparse, 0.5, 0.5) - sparse_rate(z, 0.5, 0.5)
        assert found["change"] == pytest.approx(float(difference.sum()))
        assert found["head_change"] == pytest.approx(difference.numpy())
        assert found["before"] == pytest.approx(float(sparse_rate(z, 0.5, 0.5).sum()))


class TestWays:
    def bowl(self, x: Tensor, update: Tensor, sense: int = -1) -> Move:
        return Move(x, update, lambda x_MD: -sense * x_MD.square().sum(-1), sense, unit=None if sense < 0 else 1.0)

    def test_the_gradient_step_is_minimised(self) -> None:
        x = normal(5, 4)
        far = self.bowl(x, 1.8 * x.norm() * F.normalize(normal(20, seed=1), dim=0).view(5, 4))
        assert gradient_step(far, steepest(far, x)) < 1e-3 * x.square().sum()  # halvings come to 1e-2

    @pytest.mark.parametrize("sense", [-1, 1])
    def test_a_path_on_a_bowl_is_straight(self, sense: int) -> None:
        x = normal(5, 4)
        half = 0.5 * x.norm() * F.normalize(normal(20, seed=1), dim=0).view(5, 4)
        for steps in (1, 7):
            found = path(self.bowl(x, half, sense), steps)
            torch.testing.assert_close(found, -sense * 0.25 * x.square().sum())

    def test_a_path_does_not_end_beyond_the_best_place(self) -> None:
        x = normal(5, 4)
        assert path(self.bowl(x, 10 * x), 100) < 0.01 * x.square().sum()
        flat = Move(x, x, lambda x_MD: 0 * x_MD.sum()[None] + 3, 1, unit=1.0)
        assert path(flat, 4) == 3

    def test_many_small_steps_reach_further_round_a_bend(self) -> None:
        x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
        valley = Move(x, 1.4 * x, lambda x_MD: x_MD[:, 0] ** 2 + 20 * x_MD[:, 1] ** 2, -1)
        assert path(valley, 64) < 0.5 * gradient_step(valley, steepest(valley, x))

    def test_over_distortions(self) -> None:
        x = normal(5, 4)
        moves = [self.bowl(x, -0.5 * x), self.bowl(x, 0.5 * x)]
        found = over_distortions(moves)
        assert found["range_cosine"] == pytest.approx([1, -1]) and found["range_change"] == pytest.approx([-75, 125])
        assert "range_derived" not in found
