"""Ratios of positive quantities that were measured in pairs.

Shapes: D draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.maths.conventions import LEVEL


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of ratios, its interval, p of a ratio of 1, and that adjusted for several models; NaN: unknown."""

    value: float
    low: float
    high: float
    p: float
    adjusted: float


def paired_ratios(reference_D: Sequence[float], others: Sequence[Sequence[float]], level: float = LEVEL) -> list[Ratio]:
    """Each of ``others`` (D values) divided by the reference, draw by draw.

    Student's t of the logarithms of the ratios, D - 1 degrees of freedom: what a draw does to all models alike cancels.
    With one or two draws there is no interval. P values are adjusted by `analysis.maths.resampling.holm`.

    Raises:
        ValueError: another number of draws.
    """
    from scipy.special import stdtr, stdtrit

    from analysis.maths.multiplicity import holm

    found: list[tuple[float, float, float, float]] = []
    for values_D in others:
        if len(values_D) != len(reference_D):
            raise ValueError(f"{len(values_D)} draws cannot be paired with {len(reference_D)}")
        log_D = np.log(values_D) - np.log(reference_D)
        mean, df = float(log_D.mean()), len(log_D) - 1
        if df < 2:
            found.append((math.exp(mean), math.nan, math.nan, math.nan))
            continue
        error = float(log_D.std(ddof=1)) / math.sqrt(len(log_D))
        half = float(stdtrit(df, (1 + level) / 2)) * error
        p = 2 * float(stdtr(df, -abs(mean) / error)) if error > 0 else math.nan
        found.append((math.exp(mean), math.exp(mean - half), math.exp(mean + half), p))
    adjusted = holm([p for *_, p in found])
    return [Ratio(*each, float(own)) for each, own in zip(found, adjusted, strict=True)]
