"""How well a score tells what is foreign from what is known, from counts of both over rising scores.

    AUROC   chance that a foreign one has a higher score than a known one, ties counting half; 1/2: a guess
    AP      sum over thresholds of precision times the recall that is won there (average precision); guessing gives the
            share of foreign ones
    FPR95   share of the known ones above the highest threshold that finds 95 % of the foreign ones; 0: perfect

Scores of many images are counted in bins (`edges_of`), so memory does not grow with them; within a bin all are tied,
which moves AUROC by half a bin's share at most.

Shapes: ... any leading axes, E bins by rising score, N scores.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]

_BINS, _TAIL = 2048, 256  # between quantiles of a sample; on each side beyond it
_BEYOND = 4.0  # times the range of the sample
_SHARES, _FINEST = 4096, 1e-7  # of a score from 0 to 1


def edges_of(sample_N: ArrayLike) -> Float:
    """Edges of bins: quantiles of a sample, and beyond it even steps; scores farther away share the outer bins."""
    sample = np.unique(np.asarray(sample_N, dtype=np.float64))
    inner = np.unique(np.quantile(sample, np.linspace(0, 1, _BINS + 1)))
    reach = _BEYOND * max(inner[-1] - inner[0], 1e-9 * max(1.0, abs(inner[-1])))
    steps = reach * np.linspace(0, 1, _TAIL + 1)[1:]
    return np.concatenate([inner[0] - steps[::-1], inner, inner[-1] + steps])


def edges_of_shares() -> Float:
    """Edges of bins for scores from 0 to 1: even ones, and as many that grow by one factor, since all may be small."""
    return np.union1d(np.linspace(0, 1, _SHARES + 1), np.geomspace(_FINEST, 1, _SHARES + 1))


def counted(score_N: ArrayLike, foreign_N: NDArray[np.bool_], edges: Float) -> Float:
    """Known and foreign ones in each bin, (E, 2)."""
    bin_N = np.searchsorted(edges, np.asarray(score_N, dtype=np.float64), side="right")
    return np.stack(
        [np.bincount(bin_N[foreign_N == which], minlength=len(edges) + 1) for which in (False, True)], -1
    ).astype(np.float64)


def detection(counts_E2: ArrayLike) -> Float:
    """AUROC, AP and FPR95, (..., 3); NaN where there are no known or no foreign ones."""
    falling = np.asarray(counts_E2, dtype=np.float64)[..., ::-1, :]
    known, foreign = falling[..., 0], falling[..., 1]
    above_known, above_foreign = known.cumsum(-1), foreign.cumsum(-1)
    known_all, foreign_all = above_known[..., -1], above_foreign[..., -1]
    fine = (known_all > 0) & (foreign_all > 0)
    of_known, of_foreign = np.where(fine, known_all, 1.0), np.where(fine, foreign_all, 1.0)
    auroc = (known * (above_foreign - foreign / 2)).sum(-1) / (of_known * of_foreign)
    total = above_known + above_foreign
    precision = np.divide(above_foreign, total, out=np.zeros_like(total), where=total > 0)
    ap = (foreign * precision).sum(-1) / of_foreign
    enough = above_foreign >= 0.95 * of_foreign[..., None] - 1e-9
    fpr = np.take_along_axis(above_known, enough.argmax(-1)[..., None], -1)[..., 0] / of_known
    return np.where(fine[..., None], np.stack([auroc, ap, fpr], -1), np.nan)


def roc(counts_E2: Float, points: int = 101) -> Float:
    """Share of foreign ones above the threshold at which each share of known ones (0 to 1) is, (points,)."""
    above_E2 = np.concatenate([np.zeros((1, 2)), counts_E2[::-1].cumsum(0)])
    shares_E2 = above_E2 / np.maximum(above_E2[-1], 1)
    return np.interp(np.linspace(0, 1, points), shares_E2[:, 0], shares_E2[:, 1])
