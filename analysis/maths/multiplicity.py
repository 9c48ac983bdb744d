"""P values of many comparisons."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P values adjusted for their number by Holm's step-down procedure (Scandinavian Journal of Statistics 6, 1979).

    NaN, where nothing was tested, stays and is not counted. Any shape; all are one family.
    """
    p = np.asarray(p_values, dtype=np.float64)
    flat = p.ravel()
    order = np.argsort(flat)
    order = order[~np.isnan(flat[order])]
    adjusted = np.full(flat.shape, np.nan)
    factors = len(order) - np.arange(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * flat[order]), 1.0)
    return adjusted.reshape(p.shape)
