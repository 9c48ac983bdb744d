"""How two labellings of the same things agree, whatever the labels are called, from their table of joint counts.

    NMI   2 I(A; B) / (H(A) + H(B))                                   Vinh et al. 2010, JMLR 11, table 2, NMI_sum
    ARI   (sum_ab C(n_ab, 2) - E) / ((sum_a C(n_a, 2) + sum_b C(n_b, 2)) / 2 - E),
          E = sum_a C(n_a, 2) sum_b C(n_b, 2) / C(n, 2)               Hubert and Arabie 1985, J. Classification 2

NMI: 1 the same up to names, 0 independent; not corrected for chance. ARI: 1 the same, 0 as by chance, below it worse.
NaN where both are one label, or nothing was counted. Shapes: ... any leading axes, A B labels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


def normalised_mutual_information(counts_AB: ArrayLike) -> Float:
    """NMI of tables (..., A, B), in [0, 1]."""
    counts = np.asarray(counts_AB, dtype=np.float64)
    n = counts.sum((-2, -1))
    share_AB = counts / np.where(n > 0, n, 1.0)[..., None, None]
    first, second, both = (
        _entropy(p, a) for p, a in ((share_AB.sum(-1), -1), (share_AB.sum(-2), -1), (share_AB, (-2, -1)))
    )
    total = first + second
    return _ratio(np.maximum(2 * (total - both), 0.0), total)


def adjusted_rand_index(counts_AB: ArrayLike) -> Float:
    """ARI of tables (..., A, B), at most 1."""
    counts = np.asarray(counts_AB, dtype=np.float64)
    n = counts.sum((-2, -1))
    together = _pairs(counts).sum((-2, -1))
    first, second = _pairs(counts.sum(-1)).sum(-1), _pairs(counts.sum(-2)).sum(-1)
    expected = _ratio(first * second, _pairs(n))
    most = (first + second) / 2
    return _ratio(together - expected, most - expected, scale=most)


def _pairs(counts: Float) -> Float:
    return np.asarray(counts * (counts - 1) / 2)


def _entropy(shares: Float, axes: int | tuple[int, ...]) -> Float:
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logs).sum(axes))


def _ratio(above: Float, below: Float, scale: Float | None = None) -> Float:
    """Quotient; NaN where what is below is nothing but rounding."""
    least = 0.0 if scale is None else 1e-12 * scale
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > least)
