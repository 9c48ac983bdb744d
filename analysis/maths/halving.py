"""Where a curve that is dear to measure falls to half."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping

from analysis.maths.levels import LARGEST

TOLERANCE = 1.05  # quotient of the two levels between which the crossing is interpolated
_WIDEN = 10  # halvings or doublings beyond the levels, in search of it


def search_half(half: float, known: Mapping[float, float]) -> Generator[float, float, float]:
    """Where a falling curve crosses ``half``: yields the sigma to measure next, is sent its mIoU, returns sigma_50.

    Args:
        half: half of the clean mIoU.
        known: mIoU at the levels measured so far, at least one.

    Returns:
        NaN where the curve stays on one side, ``_WIDEN`` halvings or doublings beyond the levels.
    """
    levels = sorted(known)
    first = next((number for number, sigma in enumerate(levels) if known[sigma] <= half), len(levels))
    above = (levels[first - 1], known[levels[first - 1]]) if first else None
    below = (levels[first], known[levels[first]]) if first < len(levels) else None
    for _ in range(_WIDEN):
        if below is None and above is not None and 2 * above[0] <= LARGEST:
            sigma = _rounded(2 * above[0])
        elif above is None and below is not None:
            sigma = _rounded(below[0] / 2)
        else:
            break
        value = yield sigma
        above, below = ((sigma, value), below) if value > half else (above, (sigma, value))
    if above is None or below is None:
        return math.nan
    while below[0] / above[0] > TOLERANCE:
        sigma = _rounded(math.sqrt(above[0] * below[0]))
        value = yield sigma
        above, below = ((sigma, value), below) if value > half else (above, (sigma, value))
    share = (above[1] - half) / (above[1] - below[1])
    return float(above[0] * (below[0] / above[0]) ** share)


def _rounded(sigma: float) -> float:
    """As levels are, so that rows are found again whatever rounding does."""
    return float(f"{sigma:.10g}")
