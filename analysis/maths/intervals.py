"""Means over images with their bootstrap intervals.

Shapes: N images, ... any further axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.maths.conventions import LEVEL, RESAMPLES


def mean_interval(
    values_N: ArrayLike, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean over the first axis, and low and high end of its percentile bootstrap interval; each of shape ``...``.

    NaN marks what a sample does not have (a class that is not in the image): means are over the others, NaN where
    there is no other. With fewer than two samples the interval is NaN. All further axes share the resamples.

    Args:
        values_N: (N, ...), N >= 1.
        resamples: bootstrap draws.
        seed: of the draws.
        level: of the interval.
    """
    values = np.asarray(values_N, dtype=np.float64)
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    count = known.sum(0)

    def divide(total: NDArray[np.float64], by: NDArray[Any]) -> NDArray[np.float64]:
        return np.divide(total, by, out=np.full(np.shape(total), np.nan), where=by > 0)

    mean = divide(filled.sum(0), count)
    if len(values) < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    generator = np.random.default_rng(seed)
    weights_RN = generator.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples)
    totals = np.tensordot(weights_RN.astype(np.float64), filled, 1)
    means = divide(totals, np.tensordot(weights_RN.astype(np.float64), known.astype(np.float64), 1))
    tail = 100 * (1 - level) / 2
    with np.errstate(all="ignore"):
        low, high = _percentiles(means, (tail, 100 - tail))
    return mean, low, high


def _percentiles(means_R: NDArray[np.float64], at: tuple[float, float]) -> tuple[NDArray[np.float64], ...]:
    """Percentiles over the resamples that have a value; NaN where none has."""
    empty = np.isnan(means_R).all(0)
    safe = np.where(empty, 0.0, means_R)
    return tuple(np.where(empty, np.nan, edge) for edge in np.nanpercentile(safe, at, axis=0))


def ranged(value: float, low_high: Sequence[float]) -> dict[str, float]:
    """A value with the ends of its interval, as records store it."""
    low, high = low_high
    return {"value": float(value), "low": float(low), "high": float(high)}


def estimates(values_N: ArrayLike, seed: int = 0) -> Any:
    """`mean_interval` as records store it: ``{"value", "low", "high"}`` for one axis, nested lists of it for more."""
    mean, low, high = mean_interval(values_N, seed=seed)

    def nested(value: Any, lower: Any, upper: Any) -> Any:
        if np.ndim(value) == 0:
            return ranged(value, (lower, upper))
        return [nested(*each) for each in zip(value, lower, upper, strict=True)]

    return nested(mean, low, high)
