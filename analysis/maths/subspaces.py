"""How orthogonal a set of subspaces, or of directions, is: pure maths on NumPy arrays, in float64.

Shapes: H heads, P dimensions of a head's subspace, D model width, G pairs of heads, K classes, M rows of a matrix.

Notation: U_h (P x D) is the basis of head h, its rows are directions; U (H * P x D) the heads stacked. MSSA and MSCA do
not change when the rows of a head are rotated among themselves; nor do the numbers of `head_numbers`.

Sources: arXiv 2411.03033 (DEPICT), figures 5, 6 and 8, shows U U^T and the class embeddings' Q Q^T as heat maps, the
numbers are standard linear algebra; principal angles are SciPy's ``subspace_angles``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import subspace_angles

Array = NDArray[np.float64]


def gram(bases_HPD: Array) -> Array:
    """U U^T of all heads stacked, (H * P, H * P)."""
    basis_MD = bases_HPD.reshape(-1, bases_HPD.shape[-1])
    return np.asarray(basis_MD @ basis_MD.T)


def unit_rows(x_MD: Array) -> Array:
    """Rows scaled to length 1; a zero row stays zero."""
    length_M1 = np.linalg.norm(x_MD, axis=1, keepdims=True)
    return np.divide(x_MD, length_M1, out=np.zeros_like(x_MD), where=length_M1 > 0)


def identity_deviation(gram_MM: Array) -> float:
    """|G - c I| / |G| in the Frobenius norm with the best scale c = trace(G) / M; NaN for G = 0.

    0: rows of one length, orthogonal to one another. sqrt(1 - 1/M): all rows the same. A Gram matrix of rank r is at
    least sqrt(1 - r/M) away.
    """
    size = len(gram_MM)
    scale = float(np.trace(gram_MM)) / size
    return _ratio(float(np.linalg.norm(gram_MM - scale * np.eye(size))), float(np.linalg.norm(gram_MM)))


def condition_number(x_MD: Array) -> float:
    """Largest singular value over the smallest; 1 is best, infinite where the rows are linearly dependent."""
    singular = np.linalg.svd(x_MD, compute_uv=False)
    dependent = len(x_MD) > x_MD.shape[1] or singular[-1] <= singular[0] * max(x_MD.shape) * np.finfo(np.float64).eps
    return math.inf if dependent else float(singular[0] / singular[-1])


def overlaps(bases_HPD: Array) -> Array:
    """For each pair of heads the cosine between the maps U_h^T U_h and U_g^T U_g (Frobenius inner product), (G,).

    Equal to |U_h U_g^T|^2 / (|U_h U_h^T| |U_g U_g^T|). 0: orthogonal subspaces; 1: the same map up to scale. NaN where
    a head is zero.
    """
    H, P, _ = bases_HPD.shape
    energy_HH = np.square(gram(bases_HPD)).reshape(H, P, H, P).sum((1, 3))
    return np.array(
        [_ratio(energy_HH[h, g], math.sqrt(energy_HH[h, h] * energy_HH[g, g])) for h, g in combinations(range(H), 2)]
    )


def principal_angles(bases_HPD: Array) -> list[Array]:
    """For each pair of heads the principal angles between their subspaces, in degrees, ascending.

    P angles in [0, 90]; fewer where a basis is rank deficient. At least ``2 P - D`` of them are 0: two subspaces of
    dimension P in D dimensions meet in at least that many.
    """
    return [
        np.sort(np.degrees(subspace_angles(bases_HPD[h].T, bases_HPD[g].T)))
        for h, g in combinations(range(len(bases_HPD)), 2)
    ]


def head_numbers(bases_HPD: Array) -> dict[str, float]:
    """The numbers of one layer.

    Returns:
        ``deviation`` within a head (see `identity_deviation`; mean over heads), ``condition`` of a head (mean),
        ``overlap`` between two heads (mean over pairs), ``angle`` between two heads, mean over all principal angles of
        all pairs, and ``smallest_angle`` of any pair, in degrees. NaN where there is only one head.
    """
    angles = [angle for pair in principal_angles(bases_HPD) for angle in pair]
    return {
        "deviation": _mean([identity_deviation(basis_PD @ basis_PD.T) for basis_PD in bases_HPD]),
        "condition": _mean([condition_number(basis_PD) for basis_PD in bases_HPD]),
        "overlap": _mean(overlaps(bases_HPD)),
        "angle": _mean(angles),
        "smallest_angle": min(angles, default=math.nan),
    }


def class_numbers(q_KD: Array) -> dict[str, float]:
    """The numbers of one set of class embeddings; their lengths play no part.

    Returns:
        ``deviation`` of the cosines from the identity (see `identity_deviation`), ``cosine``, the mean of |cosine| over
        pairs of classes, ``largest_cosine`` in magnitude, and ``condition`` of the unit vectors. NaN for the cosines of
        a single class.
    """
    unit_KD = unit_rows(q_KD)
    cosine_KK = unit_KD @ unit_KD.T
    pairs = np.abs(cosine_KK[np.triu_indices(len(cosine_KK), 1)])
    return {
        "deviation": identity_deviation(cosine_KK),
        "cosine": _mean(pairs),
        "largest_cosine": float(pairs.max()) if pairs.size else math.nan,
        "condition": condition_number(unit_KD),
    }


def random_numbers(
    numbers: Callable[[Array], Mapping[str, float]], shape: tuple[int, ...], draws: int, seed: int
) -> dict[str, dict[str, float]]:
    """What ``numbers`` gives for matrices of ``shape`` with independent standard normal entries.

    That is how DEPICT's bases start, up to a scale on which none of the numbers depends.

    Returns:
        For each number ``value``, the mean over draws, and ``low`` and ``high``, their 2.5 % and 97.5 % percentiles.
    """
    generator = np.random.default_rng(seed)
    drawn = [numbers(generator.standard_normal(shape)) for _ in range(draws)]
    found: dict[str, Any] = {}
    for name in drawn[0]:
        values = np.array([draw[name] for draw in drawn])
        low, high = np.percentile(values, (2.5, 97.5), method="nearest")  # condition numbers can be infinite
        found[name] = {"value": float(values.mean()), "low": float(low), "high": float(high)}
    return found


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator > 0 else math.nan


def _mean(values: Any) -> float:
    return float(np.mean(values)) if len(values) else math.nan
