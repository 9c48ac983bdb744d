"""Where the variance of a score comes from, and what difference a study could show.

A score of one training on one unit is taken as ``mu + seed + unit + residual``, three independent random parts; of
a unit the score is the jackknife's pseudo-value (`analysis.maths.resampling`). Of S seeds and U units mean squares are
``MS_seed = U var(means of seeds)``, ``MS_unit = S var(means of units)`` and ``MS_rest``, and the parts' variances
(Searle, Casella and McCulloch, "Variance Components", 1992, section 4.3; those below 0 are 0)

    residual^2 = MS_rest,    seed^2 = (MS_seed - MS_rest) / U,    unit^2 = (MS_unit - MS_rest) / S,

so that the mean of S seeds and U units has the variance ``seed^2 / S + unit^2 / U + residual^2 / (S U)``.

Shapes: S seeds, U units, M scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.maths.conventions import LEVEL
from analysis.maths.resampling import LEAST, Sampled
from whitebox.errors import require

Float = NDArray[np.float64]
POWER = 0.8
_QUANTILES = 4000


@dataclass(frozen=True)
class Parts:
    """Standard deviations of M scores by their source; NaN where it is unknown.

    Attributes:
        seed_M: between trainings, on very many units; NaN for one training.
        unit_M: between units, of the mean over very many trainings; of one training it holds the residual.
        residual_M: of one training on one unit, beside both; NaN for one training.
    """

    seed_M: Float
    unit_M: Float
    residual_M: Float


def parts(cells_SUM: Float) -> Parts:
    """The parts of a table of pseudo-values, or of differences of them."""
    seeds, units, scores = cells_SUM.shape
    nothing = np.full(scores, np.nan)
    if units < 2:
        return Parts(nothing, nothing, nothing)
    by_seed_SM, by_unit_UM = cells_SUM.mean(1), cells_SUM.mean(0)
    of_unit_M = seeds * by_unit_UM.var(0, ddof=1)
    if seeds < 2:
        return Parts(nothing, np.sqrt(of_unit_M), nothing)
    rest_SUM = cells_SUM - by_unit_UM - by_seed_SM[:, None] + cells_SUM.mean((0, 1))
    rest_M = (rest_SUM**2).sum((0, 1)) / ((seeds - 1) * (units - 1))
    of_seed_M = units * by_seed_SM.var(0, ddof=1)
    return Parts(
        seed_M=np.sqrt(np.maximum(of_seed_M - rest_M, 0.0) / units),
        unit_M=np.sqrt(np.maximum(of_unit_M - rest_M, 0.0) / seeds),
        residual_M=np.sqrt(rest_M),
    )


def parts_of_difference(model: Sampled, reference: Sampled, matched: bool) -> Parts:
    """The parts of a paired difference on the same units.

    Args:
        matched: see `Sampled.minus`; seeds that are not matched are independent, and their variances add up.
    """
    if matched:
        return parts(model.cells_SUM - reference.cells_SUM)
    each = [parts(found.cells_SUM) for found in (model, reference)]
    if model.cells_SUM.shape[1] < 2:
        return each[0]  # nothing is known
    rest_M = [own.residual_M**2 / len(found.cells_SUM) for own, found in zip(each, (model, reference), strict=True)]
    between_UM = model.cells_SUM.mean(0) - reference.cells_SUM.mean(0)
    return Parts(
        seed_M=np.hypot(each[0].seed_M, each[1].seed_M),
        unit_M=np.sqrt(np.maximum(between_UM.var(0, ddof=1) - rest_M[0] - rest_M[1], 0.0)),
        residual_M=np.hypot(each[0].residual_M, each[1].residual_M),
    )


def detectable(
    seed: float,
    unit: float,
    residual: float,
    seeds: int,
    units: int,
    *,
    power: float = POWER,
    level: float = LEVEL,
    comparisons: int = 1,
) -> float:
    """The smallest difference that a two-sided test, as `analysis.maths.resampling` makes it, finds with this power.

    Power is that of the noncentral t distribution (Lehmann and Romano, "Testing Statistical Hypotheses", 2005, section
    5.2) with Satterthwaite's degrees of freedom. Of several comparisons it is that of Holm's first step, the strictest.

    Args:
        seed, unit, residual: standard deviations of the difference by their source, see `Parts`.
        seeds, units: how many the study has.
        comparisons: that are corrected for.

    Raises:
        ConfigError: fewer than three seeds or units, a negative standard deviation, or a power that cannot be.
    """
    from scipy.optimize import brentq
    from scipy.stats import chi2, norm
    from scipy.stats import t as student

    for name, number in (("seeds", seeds), ("units", units)):
        require(number >= LEAST, name, number, f"of fewer than {LEAST} no interval holds the spread")
    for name, sd in (("sd-seed", seed), ("sd-unit", unit), ("sd-residual", residual)):
        require(np.isfinite(sd) and sd >= 0, name, sd, "a standard deviation is 0 or more")
    require(1 - level < power < 1, "power", power, f"it lies strictly between {1 - level:.2g} and 1")
    require(comparisons >= 1, "comparisons", comparisons, "it must be at least 1")
    of_seeds = (seed**2 + residual**2 / units) / seeds
    of_units = (unit**2 + residual**2 / seeds) / units
    total = of_seeds + of_units - residual**2 / (seeds * units)
    if total == 0:
        return 0.0
    freedom = max(total**2 / (of_seeds**2 / (seeds - 1) + of_units**2 / (units - 1)), min(seeds, units) - 1)
    beyond = student.ppf(1 - (1 - level) / 2 / comparisons, freedom)

    # of the estimated standard error, as a multiple of the true one
    error_Q = np.sqrt(chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, freedom) / freedom)

    def missing(shift: float) -> float:
        found = norm.sf(beyond * error_Q - shift) + norm.sf(beyond * error_Q + shift)
        return float(found.mean()) - power

    most = beyond + 10.0
    while missing(most) < 0:
        most *= 2
    return float(brentq(missing, 0.0, most)) * float(np.sqrt(total))
