"""Where a curve that is dear to measure falls to half for the first time."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping

from analysis.maths.levels import LARGEST

TOLERANCE = 1.05  # quotient of the two levels between which the crossing is interpolated
GRID = 1.5  # of neighbours among the levels that are looked at: a lower dip that is narrower may be missed
_WIDEN = 17  # steps beyond the levels, in search of it: three decades


def search_half(half: float, known: Mapping[float, float]) -> Generator[float, float, float]:
    """Where a falling curve crosses ``half``: yields the sigma to measure next, is sent its mIoU, returns sigma_50.

    Curves need not fall everywhere, and the crossing is the lowest: from the smallest level on, levels are looked at
    that are at most a factor of `GRID` apart, until one is at ``half`` or below. What a curve does below the smallest
    level is not looked at, unless it is below ``half`` there already.

    Args:
        half: half of the clean mIoU.
        known: mIoU at the levels measured so far, at least one.

    Returns:
        NaN where the curve stays on one side, three decades beyond the levels.
    """
    levels = sorted(known)
    below: tuple[float, float] | None = None
    above: tuple[float, float] | None = None
    for level, value in ((level, known[level]) for level in levels):
        for sigma in _between(above[0], level) if above else ():
            found = yield sigma
            if found <= half:
                below = sigma, found
                break
            above = sigma, found
        if below is None and value <= half:
            below = level, value
        if below is not None:
            break
        above = level, value
    for _ in range(_WIDEN):
        if below is None and above is not None and GRID * above[0] <= LARGEST:
            sigma = _rounded(GRID * above[0])
        elif above is None and below is not None:
            sigma = _rounded(below[0] / GRID)
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


def _between(low: float, high: float) -> list[float]:
    """Levels between two, ascending, so that neighbours are at most `GRID` apart."""
    parts = math.ceil(math.log(high / low) / math.log(GRID) - 1e-9)
    return [_rounded(low * (high / low) ** (part / parts)) for part in range(1, parts)]


def _rounded(sigma: float) -> float:
    """As levels are, so that rows are found again whatever rounding does."""
    return float(f"{sigma:.10g}")
