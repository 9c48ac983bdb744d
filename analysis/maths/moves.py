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
from torch import Tensor

from analysis.maths.coding_rate import float64, numerical_rank, projected_rates, second_moment
from analysis.maths.conventions import MULTIPLES
from whitebox.models.attention import SubspaceAttention, SubspaceLayer, attention_weights

Array = NDArray[np.float64]

EPS = 0.1  # as in rank-analysis
DRAWS = 4  # random updates of each window and layer
TRIED = (0.0, *(0.5**halved for halved in range(13)))  # of the longest gradient step, as in backtracking


@dataclass(frozen=True)
class Move:
    """What a layer did to the vectors of one window, and the objective it should have improved; all float64.

    Attributes:
        x_MD: vectors before. update_MD: what the layer added.
        terms: vectors (M, D) -> the objective's terms (T,); their sum is the objective.
        sense: -1 where the objective is to fall, 1 where it is to rise.
        heads_HMD: what each head added, summing up to the update; None where that is not defined.
        derived_MD: the direction of the derivation, see above; None where it is not defined.
    """

    x_MD: Tensor
    update_MD: Tensor
    terms: Callable[[Tensor], Tensor]
    sense: int
    heads_HMD: Tensor | None = None
    derived_MD: Tensor | None = None

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
    best = int(np.argmax(move.sense * np.asarray(values_L)))
    bounds = MULTIPLES[max(best - 1, 0)], MULTIPLES[min(best + 1, len(MULTIPLES) - 1)]
    refined = minimize_scalar(
        lambda multiple: -move.sense * float(move.after(multiple)),
        bounds=bounds,
        method="bounded",  # never reaches the bounds themselves
        options={"xatol": 0.01},
    )
    value = -move.sense * float(refined.fun)
    if move.sense * (value - values_L[best]) > 0:
        return float(refined.x), value
    return MULTIPLES[best], values_L[best]


def gradient_step(move: Move, ascent_MD: Tensor) -> Tensor:
    """The best objective along the steepest direction at no more than the update's length, a scalar.

    Tried are the whole length and twelve halvings of it, and no step.
    """
    length = ascent_MD.norm()
    if length == 0:
        return move.value(move.x_MD)
    step_MD = ascent_MD * (move.update_MD.norm() / length)
    tried = [move.value(move.x_MD + scale * step_MD) for scale in TRIED]
    return move.sense * (move.sense * torch.stack(tried)).max()


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
    bases_HPD, weight_D, bias_D = (
        constant(each, tokens_ND) for each in (layer.bases, layer.norm.weight, layer.norm.bias)
    )

    def normed(x_ND: Tensor) -> Tensor:
        return F.layer_norm(x_ND, weight_D.shape, weight_D, bias_D, layer.norm.eps)

    def rates(x_ND: Tensor) -> Tensor:
        return projected_rates(normed(x_ND) if at == "tokens" else x_ND, bases_HPD, eps)

    z_ND = tokens_ND - update_ND
    heads_HND = derived_ND = None
    if isinstance(layer, SubspaceAttention) and projected_HNP is not None:
        attended_HND = attended(layer, projected_HNP, projected_HNP)
        heads_HND = constant(layer.step_size, z_ND) * attended_HND
        derived_ND = (attended_HND - projected_HNP @ bases_HPD).sum(0)
    return Move(z_ND if at == "tokens" else normed(z_ND), update_ND, rates, -1, heads_HND, derived_ND)


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
    return Move(q_KD, update_KD, lambda x_KD: inside(x_KD, v_DK)[None], 1, heads_HKD)


def judge(move: Move, generator: torch.Generator, draws: int = DRAWS) -> dict[str, Array]:
    """All numbers of one move, see above; of random updates (S,), of heads (H,) or (T,), along the update (L,)."""
    ascent_TMD = ascent(move)
    ascent_MD = ascent_TMD.sum(0)
    before_T, after_T = move.terms(move.x_MD), move.terms(move.x_MD + move.update_MD)
    before = before_T.sum()
    curve_L = torch.stack([move.after(multiple) for multiple in MULTIPLES])
    multiple, best = best_multiple(move, curve_L.tolist())
    random = [random_update(move.update_MD, generator) for _ in range(draws)]

    def change(after: Tensor, before: Tensor = before) -> Tensor:
        """In percent of a rate before; in percentage points of a share."""
        return 100 * (after - before) / (before if move.sense < 0 else 1)

    found = {
        "before": before if move.sense < 0 else 100 * before,
        "cosine": cosine(move.update_MD, ascent_MD),
        "change": change(after_T.sum()),
        "gradient": change(gradient_step(move, ascent_MD)),
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


def constant(parameter: Tensor, like: Tensor) -> Tensor:
    """A model's parameter in float64 beside ``like``, without its gradient."""
    return float64(parameter.detach()).to(like.device)
