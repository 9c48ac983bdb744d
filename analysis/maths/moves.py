"""What a layer did to its tokens, and the objective it should have improved: gradients, line searches, controls.

Shapes: M vectors that are moved (tokens, or class embeddings), N tokens, D width, H heads, P subspace dimension,
K classes, T terms of an objective (heads, or one), S draws, L multiples of an update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from analysis.maths.coding_rate import float64, in_heads, numerical_rank, second_moment
from analysis.maths.conventions import EPS, MULTIPLES, STEPS, UPDATES
from analysis.maths.objectives import rates, sparse_rate, variational_rates
from whitebox.models.attention import (
    CBSA,
    TSSA,
    SubspaceAttention,
    SubspaceLayer,
    UntiedSubspaces,
    attention_weights,
)

Array = NDArray[np.float64]

TRIED = (0.0, *(0.5**halved for halved in range(13)))  # of the longest gradient step, as in backtracking


@dataclass(frozen=True)
class Move:
    """What a layer did to the vectors of one window, and the objective it should have improved; all float64.

    Attributes:
        x_MD: vectors before. update_MD: what the layer added.
        terms: vectors (M, D) -> the objective's terms (T,); their sum is the objective.
        sense: -1 where the objective is to fall, 1 where it is to rise.
        unit: of a change; None: percent of the objective before.
        heads_HMD: what each head added, summing up to the update; None where that is not defined.
        derived_MD: the direction of the derivation, see above; None where it is not defined.
    """

    x_MD: Tensor
    update_MD: Tensor
    terms: Callable[[Tensor], Tensor]
    sense: int
    heads_HMD: Tensor | None = None
    derived_MD: Tensor | None = None
    unit: float | None = None

    def after(self, multiple: float = 1.0) -> Tensor:
        """The objective when the update is added ``multiple`` times, a scalar."""
        return self.value(self.x_MD + multiple * self.update_MD)

    def value(self, x_MD: Tensor) -> Tensor:
        """The objective, a scalar."""
        return self.terms(x_MD).sum()


def cosine(first_MD: Tensor, second_MD: Tensor) -> Tensor:
    """Between two moves of all vectors (Frobenius inner product), (..., M, D) -> (...); NaN where one is zero."""
    product = (first_MD * second_MD).sum((-2, -1))
    return product / (first_MD.norm(dim=(-2, -1)) * second_MD.norm(dim=(-2, -1)))


def ascent(move: Move) -> Tensor:
    """For each term the direction that improves it most: its gradient times ``sense``, (T, M, D)."""
    with torch.enable_grad():
        x_MD = move.x_MD.clone().requires_grad_()
        gradients = [torch.autograd.grad(term, x_MD, retain_graph=True)[0] for term in move.terms(x_MD)]
    return move.sense * torch.stack(gradients)


def random_update(update_MD: Tensor, generator: torch.Generator) -> Tensor:
    """A normal draw in which each vector moves as far as in ``update_MD``."""
    drawn_MD = torch.randn(update_MD.shape, generator=generator, dtype=torch.float64).to(update_MD.device)
    return F.normalize(drawn_MD, dim=-1) * update_MD.norm(dim=-1, keepdim=True)


def best_multiple(move: Move, values_L: Sequence[float]) -> tuple[float, float]:
    """Line search: the multiple of the update at which the objective is best, and the objective there.

    The best of MULTIPLES (whose objectives are ``values_L``), refined between its neighbours to 0.01.
    """
    return _best(MULTIPLES, values_L, lambda multiple: float(move.after(multiple)), move.sense)


def _best(
    places: Sequence[float], values: Sequence[float], value_at: Callable[[float], float], sense: int
) -> tuple[float, float]:
    """Where along a line an objective is best, and what it is there: the best of ``places``, refined to 1 %."""
    best = int(np.argmax(sense * np.asarray(values)))
    low, high = places[max(best - 1, 0)], places[min(best + 1, len(places) - 1)]
    refined = minimize_scalar(
        lambda place: -sense * value_at(place),
        bounds=(low, high),
        method="bounded",  # never reaches the bounds themselves
        options={"xatol": min(0.01, 0.01 * (high - low))},
    )
    value = -sense * float(refined.fun)
    if sense * (value - values[best]) > 0:
        return float(refined.x), value
    return places[best], values[best]


def gradient_step(move: Move, ascent_MD: Tensor) -> Tensor:
    """The best objective along the steepest direction at no more than the update's length, a scalar.

    Tried are the whole length, twelve halvings of it, and no step; between the neighbours of the best it is minimised.
    """
    length = ascent_MD.norm()
    if length == 0:
        return move.value(move.x_MD)
    step_MD = ascent_MD * (move.update_MD.norm() / length)
    places = sorted(TRIED)

    def value_at(factor: float) -> float:
        return float(move.value(move.x_MD + factor * step_MD))

    _, value = _best(places, [value_at(place) for place in places], value_at, move.sense)
    return torch.tensor(value, dtype=torch.float64)


def path(move: Move, steps: int) -> Tensor:
    """The best objective on a way of ``steps`` gradient steps of one length, together as long as the update, a scalar.

    Each goes along the gradient where it is: what a layer could reach that took many small steps.
    """
    x_MD, length = move.x_MD, move.update_MD.norm() / steps
    values = [move.value(x_MD)]
    for _ in range(steps):
        ascent_MD = steepest(move, x_MD)
        norm = ascent_MD.norm()
        if norm == 0:
            break
        x_MD = x_MD + ascent_MD * (length / norm)
        values.append(move.value(x_MD))
    return move.sense * (move.sense * torch.stack(values)).max()


def steepest(move: Move, x_MD: Tensor) -> Tensor:
    """The direction that improves the objective most, its gradient times ``sense``, (M, D)."""
    with torch.enable_grad():
        x_MD = x_MD.detach().clone().requires_grad_()
        return move.sense * torch.autograd.grad(move.value(x_MD), x_MD)[0]


def principal_subspace(z_ND: Tensor, dimension: int) -> Tensor:
    """The leading right singular vectors of tokens, (D, dimension); fewer where the tokens' rank is lower.

    Further directions would be arbitrary. The rank is that of float32 tokens, see `numerical_rank`.
    """
    energy_D, v_DD = torch.linalg.eigh(second_moment(z_ND))
    return v_DD[:, -min(dimension, int(numerical_rank(energy_D.clamp_min(0), len(z_ND)))) :]


def inside(q_KD: Tensor, v_DK: Tensor) -> Tensor:
    """Mean share of the vectors' energy that lies in a subspace with orthonormal basis V; a scalar in [0, 1]."""
    return ((q_KD @ v_DK).square().sum(-1) / q_KD.square().sum(-1)).mean()


def captured(q_KD: Tensor, z_ND: Tensor) -> Tensor:
    """Energy of tokens in the span of Q, over that in their own K leading directions; a scalar in [0, 1]."""
    u_DK, singular_K, _ = torch.linalg.svd(q_KD.mT, full_matrices=False)
    spanning = singular_K > singular_K.max() * 1e-12
    return (z_ND @ u_DK[:, spanning]).square().sum() / (z_ND @ principal_subspace(z_ND, len(q_KD))).square().sum()


def attended(layer: SubspaceAttention, q_HMP: Tensor, w_HNP: Tensor) -> Tensor:
    """U_h softmax(q w^T P^-1/2) w of each head, (H, M, D): what the layer's heads add up, before its step."""
    return attention_weights(q_HMP, w_HNP, layer.head_dim**-0.5) @ w_HNP @ constant(layer.bases, w_HNP)


Coordinates = Callable[[Tensor], Tensor]  # tokens (N, D) -> what the layer projects them on, (H, N, P)


def seen_by(layer: SubspaceLayer, tokens_ND: Tensor, update_ND: Tensor, at: str) -> tuple[Tensor, Coordinates]:
    """The tokens before a layer, as an objective takes them, and their coordinates in the layer's subspaces.

    Args:
        tokens_ND: what left the layer. update_ND: what it added to get there.
        at: ``tokens``: as they are, seen through the layer's LayerNorm; ``normed``: what it has made of them.
    """
    bases_HPD, z_ND = constant(layer.bases, tokens_ND), tokens_ND - update_ND
    if at == "tokens":
        return z_ND, lambda x_ND: in_heads(normed(layer.norm, x_ND), bases_HPD)
    return normed(layer.norm, z_ND), lambda x_ND: in_heads(x_ND, bases_HPD)


def normed(norm: nn.LayerNorm, x_ND: Tensor) -> Tensor:
    """What a model's LayerNorm makes of tokens, in float64; its parameters are constants."""
    weight_D, bias_D = (constant(each, x_ND) for each in (norm.weight, norm.bias))
    return F.layer_norm(x_ND, weight_D.shape, weight_D, bias_D, norm.eps)


def compression(
    layer: SubspaceLayer,
    tokens_ND: Tensor,
    update_ND: Tensor,
    projected_HNP: Tensor | None,
    eps: float = EPS,
    at: str = "tokens",
) -> Move:
    """The move of a layer that should have compressed tokens.

    Args:
        tokens_ND: what left the layer. update_ND: what it added to get there.
        projected_HNP: U_h^T LayerNorm(z), where the layer is a `SubspaceAttention`; else None.
        eps, at: see above.
    """
    x_ND, coordinates = seen_by(layer, tokens_ND, update_ND, at)
    heads_HND = derived_ND = None
    if isinstance(layer, SubspaceAttention) and projected_HNP is not None:
        attended_HND = attended(layer, projected_HNP, projected_HNP)
        heads_HND = constant(layer.step_size, x_ND) * attended_HND
        derived_ND = (attended_HND - projected_HNP @ constant(layer.bases, x_ND)).sum(0)
    return Move(x_ND, update_ND, lambda z_ND: rates(coordinates(z_ND), eps), -1, heads_HND, derived_ND)


def variational(
    layer: TSSA,
    tokens_ND: Tensor,
    update_ND: Tensor,
    projected_HNP: Tensor,
    membership_HN: Tensor,
    eps: float = EPS,
    at: str = "tokens",
) -> Move:
    """The move of a ToST layer, that should have lowered the variational bound of R^c; its memberships stay.

    ``derived`` is the layer's own direction with U in the place of the output map.
    """
    x_ND, coordinates = seen_by(layer, tokens_ND, update_ND, at)
    weights_HN1 = membership_HN.unsqueeze(-1)
    moments_H1P = (weights_HN1 * projected_HNP.square()).sum(-2, keepdim=True) / weights_HN1.sum(-2, keepdim=True)
    shrunk_HNP = -weights_HN1 * projected_HNP / (1 + moments_H1P)

    def terms(z_ND: Tensor) -> Tensor:
        return variational_rates(coordinates(z_ND), membership_HN, eps)

    derived_ND = (shrunk_HNP @ constant(layer.bases, x_ND)).sum(0)
    return Move(x_ND, update_ND, terms, -1, _of_heads(layer, shrunk_HNP), derived_ND)


def contraction(
    layer: CBSA,
    tokens_ND: Tensor,
    update_ND: Tensor,
    projected_HNP: Tensor,
    weights_HRN: Tensor,
    grid: tuple[int, int],
    eps: float = EPS,
    at: str = "tokens",
) -> Move:
    """The move of a CBSA layer, that should have lowered the rate of its representatives; who looks where stays.

    ``derived`` is what the derivation hands back to the tokens before the identity is dropped, with U in the place of
    the output map: sum_h U_h A_h^T (softmax - 1) r_h.

    Args:
        weights_HRN: A, of representatives over tokens.
        grid: h x w of the patches, which come first among the tokens.
    """
    x_ND, coordinates = seen_by(layer, tokens_ND, update_ND, at)
    step_H11 = constant(layer.representative_step, x_ND)

    def representatives(w_HNP: Tensor) -> Tensor:
        return layer.pooled(w_HNP[None], grid)[0] + step_H11 * (weights_HRN @ w_HNP)

    r_HRP = representatives(projected_HNP)
    contracted_HRP = attention_weights(r_HRP, r_HRP, layer.head_dim**-0.5) @ r_HRP
    back_HNP = weights_HRN.mT @ (contracted_HRP - r_HRP)
    heads_HND = _of_heads(layer, constant(layer.step_size, x_ND) * (weights_HRN.mT @ contracted_HRP))
    derived_ND = (back_HNP @ constant(layer.bases, x_ND)).sum(0)
    return Move(x_ND, update_ND, lambda z_ND: rates(representatives(coordinates(z_ND)), eps), -1, heads_HND, derived_ND)


def sparsification(x_ND: Tensor, sparse_ND: Tensor, sparsity: float, eps: float = EPS) -> Move:
    """The move of ISTA in a CRATE layer, that should have raised R(Z) - lambda |Z|_1.

    Args:
        x_ND: what it started from, normalised. sparse_ND: what it made of that.
    """
    return Move(x_ND, sparse_ND - x_ND, lambda z_ND: sparse_rate(z_ND, sparsity, eps), 1, unit=1.0)


def _of_heads(layer: UntiedSubspaces, w_HNP: Tensor) -> Tensor:
    """What each head adds through an output map of its own, without the bias, (H, N, D)."""
    map_HPD = constant(layer.output.weight, w_HNP).mT.unflatten(0, (layer.heads, layer.head_dim))
    return w_HNP @ map_HPD


def refinement(
    layer: SubspaceAttention, classes_KD: Tensor, update_KD: Tensor, projected_HNP: Tensor, patches_ND: Tensor
) -> Move:
    """The move of a cross-attention that should have brought class embeddings to the tokens' principal directions.

    Args:
        classes_KD: what left the layer. update_KD: what it added to get there.
        projected_HNP: U_h^T LayerNorm(z) of the tokens it attends to.
        patches_ND: the tokens, as unit vectors.
    """
    q_KD = classes_KD - update_KD
    v_DK = principal_subspace(patches_ND, len(q_KD))
    attended_HKD = attended(layer, q_KD @ constant(layer.bases, q_KD).mT, projected_HNP)
    heads_HKD = constant(layer.step_size, q_KD) * attended_HKD
    return Move(q_KD, update_KD, lambda x_KD: inside(x_KD, v_DK)[None], 1, heads_HKD, unit=100.0)


def judge(move: Move, generator: torch.Generator, draws: int = UPDATES, steps: int = STEPS) -> dict[str, Array]:
    """All numbers of one move, see above; of random updates (S,), of heads (H,) or (T,), along the update (L,).

    Args:
        steps: of `path`.
    """
    ascent_TMD = ascent(move)
    ascent_MD = ascent_TMD.sum(0)
    before_T, after_T = move.terms(move.x_MD), move.terms(move.x_MD + move.update_MD)
    before = before_T.sum()
    curve_L = torch.stack([move.after(multiple) for multiple in MULTIPLES])
    multiple, best = best_multiple(move, curve_L.tolist())
    random = [random_update(move.update_MD, generator) for _ in range(draws)]

    def change(after: Tensor, before: Tensor = before) -> Tensor:
        return changed(move, after, before)

    found = {
        "before": before * (move.unit or 1),
        "cosine": cosine(move.update_MD, ascent_MD),
        "change": change(after_T.sum()),
        "gradient": change(gradient_step(move, ascent_MD)),
        "path": change(path(move, steps)),
        "curve": change(curve_L),
        "multiple": torch.tensor(multiple),
        "best": change(torch.tensor(best, dtype=torch.float64)),
        "random_cosine": torch.stack([cosine(each_MD, ascent_MD) for each_MD in random]),
        "random_change": torch.stack([change(move.value(move.x_MD + each_MD)) for each_MD in random]),
        "head_change": change(after_T, before_T),
    }
    if move.derived_MD is not None:
        found["derived"] = cosine(move.derived_MD, ascent_MD)
    if move.heads_HMD is not None:
        found["head_cosine"] = cosine(move.heads_HMD, ascent_TMD)
    return {name: value.cpu().numpy() for name, value in found.items()}


def over_distortions(moves: Sequence[Move]) -> dict[str, Array]:
    """Cosine and change of one update, held against its objective at one eps after another, (E,) each."""
    directions = [steepest(move, move.x_MD) for move in moves]
    found = {
        "range_cosine": [cosine(move.update_MD, each_MD) for move, each_MD in zip(moves, directions, strict=True)],
        "range_change": [changed(move, move.after(), move.value(move.x_MD)) for move in moves],
    }
    derived = [
        cosine(move.derived_MD, each_MD)
        for move, each_MD in zip(moves, directions, strict=True)
        if move.derived_MD is not None
    ]
    if derived:
        found["range_derived"] = derived
    return {name: torch.stack(values).cpu().numpy() for name, values in found.items()}


def changed(move: Move, after: Tensor, before: Tensor) -> Tensor:
    """A change of an objective, in percent of what it was before, or in its own unit."""
    return 100 * (after - before) / before if move.unit is None else move.unit * (after - before)


def constant(parameter: Tensor, like: Tensor) -> Tensor:
    """A model's parameter in float64 beside ``like``, without its gradient."""
    return float64(parameter.detach()).to(like.device)
