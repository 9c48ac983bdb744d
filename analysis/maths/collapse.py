"""The geometry of classes: neural collapse, and rates of the tokens of each class; with jackknife values of groups.

With the mean mu_c of the tokens of class c, mu the mean of these means, m_c = mu_c - mu, and each of K classes counting
alike (Papyan, Han and Donoho, PNAS 117, 2020, where classes are as large as each other):

    Sigma_W = mean over c of the covariance of the tokens of class c,    Sigma_B = mean over c of m_c m_c^T
    NC1     = tr(Sigma_W Sigma_B^+) / K            0: the tokens of a class have become one point
    NC2     equal lengths: sd_c |m_c| / mean_c |m_c|; equal angles: mean over pairs of |cos(m_c, m_c') + 1 / (K - 1)|.
            Both 0: the means are a simplex as wide as can be

A and P with the rows m_c and P = (A A^T)^+: Sigma_B^+ = K A^T P P A, so NC1 = mean over c of E_c |P A (z - mu_c)|^2,
which needs no matrix of D x D. Everything is float64.

Rates are those of `analysis.maths.coding_rate`: R(Z_c) of each class, R(Z) of all, Delta R = R - sum_c N_c / N R(Z_c).

Shapes: N tokens, D width, C classes, G groups of tokens that belong together, M numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from analysis.maths.coding_rate import coding_rate, rate_of_moment
from analysis.maths.probes import sums_of

Float = NDArray[np.float64]
Int = NDArray[np.int64]

NUMBERS = ("nc1", "lengths", "angles")


def collapse(z_ND: Float, label_N: Int) -> Float:
    """NC1 and both NC2, (3,); NaN with fewer than two classes, or where all class means are the same.

    Args:
        label_N: any integers; classes are those that occur.
    """
    classes_C, index_N = np.unique(label_N, return_inverse=True)
    if len(classes_C) < 2:
        return np.full(len(NUMBERS), np.nan)
    sums_CD, count_C = sums_of(z_ND, index_N, len(classes_C))
    means_CD = sums_CD / count_C[:, None]
    centred_CD = means_CD - means_CD.mean(0)
    gram_CC = centred_CD @ centred_CD.T
    length_C = np.sqrt(gram_CC.diagonal())
    scale = float(np.square(means_CD).sum(1).max())
    if length_C.max() ** 2 <= 1e-20 * scale:
        return np.full(len(NUMBERS), np.nan)
    inverse_CC = np.linalg.pinv(gram_CC, rcond=1e-10, hermitian=True)
    map_DC = centred_CD.T @ inverse_CC
    away_NC = z_ND @ map_DC - (means_CD @ map_DC)[index_N]
    nc1 = (np.bincount(index_N, np.square(away_NC).sum(1)) / count_C).mean()
    cosine_CC = gram_CC / np.maximum(np.outer(length_C, length_C), np.finfo(np.float64).tiny)
    pairs = np.triu_indices(len(classes_C), 1)
    angles = np.abs(cosine_CC[pairs] + 1 / (len(classes_C) - 1)).mean()
    return np.array([nc1, length_C.std() / length_C.mean(), angles])


def collapse_without_each(z_ND: Float, label_N: Int, group_N: Int) -> Float:
    """`collapse` without each group, (G, 3); NaN where a class is in that group alone, since of fewer it is another."""
    classes = len(np.unique(label_N))
    found = []
    for each in np.unique(group_N):
        kept_N = group_N != each
        alike = len(np.unique(label_N[kept_N])) == classes
        found.append(collapse(z_ND[kept_N], label_N[kept_N]) if alike else np.full(len(NUMBERS), np.nan))
    return np.stack(found)


def rates(z_ND: Float, label_N: Int, group_N: Int, classes: int, eps: float) -> tuple[Float, Float]:
    """R(Z), Delta R and R(Z_c) of each class, (2 + C,), and without each group, (G, 2 + C); NaN without tokens.

    A class of at least D tokens is counted by its second moment, from which that of a group is taken.

    Raises:
        ConfigError, ModelError: see `analysis.maths.coding_rate.rate_of_moment`.
    """
    z = torch.from_numpy(np.ascontiguousarray(z_ND, dtype=np.float64))
    N, D = z.shape
    groups, in_group_N = np.unique(group_N, return_inverse=True)
    G = len(groups)
    size_G = np.bincount(in_group_N, minlength=G)
    moments_GDD = torch.stack([z[in_group_N == each].T @ z[in_group_N == each] for each in range(G)])
    whole = moments_GDD.sum(0)
    all_ = [
        _rate(whole, N, D, eps),
        *(_rate(whole - own, N - n, D, eps) for own, n in zip(moments_GDD, size_G.tolist(), strict=True)),
    ]
    del moments_GDD
    class_CX = np.full((classes, 1 + G), np.nan)
    share_CX = np.zeros((classes, 1 + G))
    left_X = np.array([N, *(N - size_G)], dtype=np.float64)
    for c in range(classes):
        z_c, own_n = z[label_N == c], in_group_N[label_N == c]
        sizes = [len(z_c), *(len(z_c) - np.bincount(own_n, minlength=G)).tolist()]
        if len(z_c) >= D:
            moment = z_c.T @ z_c
            for x, size in enumerate(sizes):
                part = z_c[own_n == x - 1]
                class_CX[c, x] = _rate(moment - part.T @ part if len(part) else moment, size, D, eps)
        else:
            for x in range(1 + G):
                kept = z_c[own_n != x - 1]
                class_CX[c, x] = coding_rate(kept, eps).item() if len(kept) else np.nan
        share_CX[c] = np.array(sizes) / np.maximum(left_X, 1)
    within_X = (share_CX * np.nan_to_num(class_CX)).sum(0)
    found_XM = np.concatenate([np.array(all_)[:, None], (np.array(all_) - within_X)[:, None], class_CX.T], axis=1)
    return found_XM[0], found_XM[1:]


def _rate(moment_DD: torch.Tensor, tokens: int, width: int, eps: float) -> float:
    return rate_of_moment(moment_DD, tokens, width, eps).item() if tokens > 0 else float("nan")
