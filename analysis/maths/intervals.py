"""Means over images with their intervals, see `analysis.maths.resampling`.

Shapes: N images, ... any further axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.maths.conventions import LEVEL, RESAMPLES
from analysis.maths.resampling import estimated

_COLUMNS = 256  # that are resampled together: 10,000 resamples of so many are 20 MB


def half_width(sd: float, count: int, level: float = LEVEL) -> float:
    """Of Student's t interval of the mean of ``count`` >= 2 values with this standard deviation."""
    from scipy.stats import t as student  # half a second, which reading what was measured does not need

    return float(student.ppf((1 + level) / 2, count - 1)) * sd / math.sqrt(count)


def mean_interval(
    values_N: ArrayLike,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
    unit_N: Sequence[object] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the first axis, and low and high end of its interval; each of shape ``...``.

    NaN marks what a sample does not have (a class that is not in the image): means are over the others, NaN where
    there is no other. Fewer than three units have no interval, nor has a mean that is infinite: its ends are NaN. All
    further axes share the resamples.

    Args:
        values_N: (N, ...), N >= 1.
        resamples: bootstrap draws.
        seed: of the draws.
        level: of the interval.
        unit_N: equal for samples that belong together; None: all are independent.
    """
    values = np.asarray(values_N, dtype=np.float64)
    flat_NM = values.reshape(len(values), -1)
    parts = [
        _of_columns(flat_NM[:, start : start + _COLUMNS], unit_N, resamples, seed, level)
        for start in range(0, flat_NM.shape[1], _COLUMNS)
    ]
    value, low, high = (
        np.concatenate([part[index] for part in parts] or [np.empty(0)]).reshape(values.shape[1:]) for index in range(3)
    )
    return value, low, high


def _of_columns(
    values_NM: NDArray[np.float64], unit_N: Sequence[object] | None, resamples: int, seed: int, level: float
) -> tuple[NDArray[np.float64], ...]:
    known_NM = ~np.isnan(values_NM)

    def means(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        total, count = np.split(sums, 2, axis=-1)
        return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)

    infinite_M = np.isinf(values_NM).any(0)  # a condition number, say, of whose spread nothing is known
    finite_NM = np.where(known_NM & ~infinite_M, values_NM, 0.0)
    found = estimated(
        np.concatenate([finite_NM, known_NM], axis=1), means, unit_N, resamples=resamples, seed=seed, level=level
    )
    value_M, low_M, high_M = found.value_M.copy(), found.low_M.copy(), found.high_M.copy()
    if infinite_M.any():
        with np.errstate(invalid="ignore"):  # both infinities make NaN
            value_M[infinite_M] = np.nansum(values_NM[:, infinite_M], axis=0)
        low_M[infinite_M] = high_M[infinite_M] = np.nan
    return value_M, low_M, high_M


def ranged(value: float, low_high: Sequence[float]) -> dict[str, float]:
    """A value with the ends of its interval, as records store it."""
    low, high = low_high
    return {"value": float(value), "low": float(low), "high": float(high)}


def estimates(values_N: ArrayLike, seed: int = 0, unit_N: Sequence[object] | None = None) -> Any:
    """`mean_interval` as records store it: ``{"value", "low", "high"}`` for one axis, nested lists of it for more."""
    mean, low, high = mean_interval(values_N, seed=seed, unit_N=unit_N)

    def nested(value: Any, lower: Any, upper: Any) -> Any:
        if np.ndim(value) == 0:
            return ranged(value, (lower, upper))
        return [nested(*each) for each in zip(value, lower, upper, strict=True)]

    return nested(mean, low, high)
