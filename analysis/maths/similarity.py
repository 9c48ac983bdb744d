"""How alike what two models have learned is: CKA of tokens, overlaps and angles of subspaces, matching of heads.

**CKA** (Kornblith et al., ICML 2019, linear) of the same tokens in two layers, as a minibatch estimate (Nguyen et al.,
ICLR 2021): each window is a batch, and the unbiased HSIC of Song et al. (JMLR 2012, eq. 5) is averaged over batches,

    CKA = mean HSIC(K, L) / sqrt(mean HSIC(K, K) mean HSIC(L, L)),    K = X X^T, L = Y Y^T

1 for tokens that differ by a rotation and a scale; about 0 for independent ones, however few tokens and many directions
there are (the biased estimate is then near 1). Sums over batches are kept, so intervals need no rerun.

**Subspaces** of two heads: the overlap is the cosine between the maps U^T U and V^T V, |U V^T|^2 / (|U U^T| |V V^T|);
the angle is the mean of the principal angles. To compare with: V turned by a random rotation of the whole space, which
keeps how its heads lie to one another. Heads of two trainings have no order in common, so they are also matched one to
one for the largest sum of overlaps (Kuhn, Naval Research Logistics Quarterly 2, 1955), and so are those of turned ones.

Shapes: N tokens, D width, S and T layers of two models, H and G heads of two layers, P subspace dimension, M pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from whitebox.errors import DataError

Array = NDArray[np.float64]

LEAST = 4  # tokens that the unbiased HSIC takes


def grams(layers: Sequence[Tensor]) -> Tensor:
    """Z Z^T of centred tokens (N, D) of each layer, in float64, without its diagonal, (S, N, N)."""
    found = []
    for z_ND in layers:
        z_ND = z_ND.double()
        z_ND = z_ND - z_ND.mean(0)
        found.append((z_ND @ z_ND.mT).fill_diagonal_(0))
    return torch.stack(found)


def hsic(k_SNN: Tensor, l_TNN: Tensor) -> Tensor:
    """Unbiased HSIC of each pair of `grams`, (S, T).

    Raises:
        DataError: fewer than four tokens.
    """
    n = k_SNN.shape[-1]
    if n < LEAST:
        raise DataError(f"CKA takes at least {LEAST} tokens of a window; there are {n}.")
    k_SN, l_TN = k_SNN.sum(-1), l_TNN.sum(-1)
    total = k_SNN.flatten(1) @ l_TNN.flatten(1).T
    total = total + k_SN.sum(1)[:, None] * l_TN.sum(1) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k_SN @ l_TN.T)
    return total / (n * (n - 3))


def hsic_sums(first: Sequence[Tensor], second: Sequence[Tensor]) -> Array:
    """HSIC of each pair of layers, and of each layer with itself, in a row, (S T + S + T,); its sums make a CKA."""
    k_SNN, l_TNN = grams(first), grams(second)
    own = [hsic(each[None], each[None]).reshape(1) for each in (*k_SNN, *l_TNN)]
    return np.asarray(torch.cat([hsic(k_SNN, l_TNN).flatten(), *own]).cpu().numpy())


def cka(sums: Array, first: int, second: int) -> Array:
    """CKA of each pair of layers, (..., S T + S + T) -> (..., S T); NaN for tokens that are all alike.

    Args:
        first, second: numbers of layers, S and T.
    """
    cross, own, others = np.split(sums, [first * second, first * second + first], axis=-1)
    both = own[..., :, None] * others[..., None, :]
    root = np.sqrt(np.where(both > 0, both, np.nan)).reshape(cross.shape)
    return np.asarray(cross / root)


def head_overlaps(u_HPD: Array, v_GPD: Array) -> Array:
    """Overlap of each head of one layer with each of the other, (H, G); NaN where a head is zero."""
    cross = np.square(np.einsum("hpd,gqd->hgpq", u_HPD, v_GPD, optimize=True)).sum((2, 3))
    own, others = (np.linalg.norm(each @ each.transpose(0, 2, 1), axis=(1, 2)) for each in (u_HPD, v_GPD))
    both = own[:, None] * others
    return np.divide(cross, both, out=np.full(cross.shape, np.nan), where=both > 0)


def head_angles(u_HPD: Array, v_GPD: Array) -> Array:
    """Mean principal angle of each head of one layer with each of the other, degrees, (H, G); NaN where one is zero."""
    return np.array([[_mean_angle(u_PD, v_PD) for v_PD in v_GPD] for u_PD in u_HPD])


def _mean_angle(u_PD: Array, v_PD: Array) -> float:
    return float(np.degrees(subspace_angles(u_PD.T, v_PD.T)).mean()) if u_PD.any() and v_PD.any() else float("nan")


def matched(overlap_HG: Array) -> list[tuple[int, int]]:
    """Heads one to one, for the largest sum of overlaps; by the head of the first."""
    rows, columns = linear_sum_assignment(np.nan_to_num(overlap_HG), maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def head_numbers(u_HPD: Array, v_GPD: Array) -> dict[str, float]:
    """Overlap and angle of heads of the same number, and of those that are matched."""
    overlap_HG, angle_HG = head_overlaps(u_HPD, v_GPD), head_angles(u_HPD, v_GPD)
    same = [(head, head) for head in range(min(overlap_HG.shape))]
    found = {}
    for which, pairs in (("same", same), ("matched", matched(overlap_HG))):
        for what, values_HG in (("overlap", overlap_HG), ("angle", angle_HG)):
            found[f"{which}_{what}"] = float(np.mean([values_HG[pair] for pair in pairs]))
    return found


def random_head_numbers(u_HPD: Array, v_GPD: Array, draws: int, seed: int) -> dict[str, Any]:
    """`head_numbers` with the second layer turned at random: mean, 2.5 % and 97.5 % percentiles of each."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        q_DD, r_DD = np.linalg.qr(generator.standard_normal((v_GPD.shape[-1],) * 2))
        found.append(head_numbers(u_HPD, v_GPD @ (q_DD * np.sign(np.diagonal(r_DD)))))
    together = {name: np.array([each[name] for each in found]) for name in found[0]}
    return {
        name: dict(zip(("value", "low", "high"), (values.mean(), *np.percentile(values, (2.5, 97.5))), strict=True))
        for name, values in together.items()
    }
