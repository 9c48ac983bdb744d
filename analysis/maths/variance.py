"""Where the variance of a score comes from, and what difference a study could show.

A score of one training on one unit is taken as ``mu + seed + unit + residual``, three independent random parts; of
a unit the score is the jackknife's pseudo-value (`analysis.maths.resampling`). Of S seeds and U units mean squares are
``MS_seed = U var(means of seeds)``, ``MS_unit = S var(means of units)`` and ``MS_rest``, and the parts' variances
(Searle, Casella and McCulloch, "Variance Components", 1992, section 4.3; those below 0 are 0)

    residual^2 = MS_rest,    seed^2 = (MS_seed - MS_rest) / U,    unit^2 = (MS_unit - MS_rest) / S,

so that the mean of S seeds and U units has the variance ``seed^2 / S + unit^2 / U + residual^2 / (S U)``. Draws of
noise are a third factor, crossed with both; the mean square of a factor f then holds its interactions with the others,

    f^2 = (MS_f - sum_g MS_fg + MS_rest) / (sizes of the others),    fg^2 = (MS_fg - MS_rest) / (size of the third).

Shapes: S seeds, U units, D draws, M scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.maths.conventions import LEVEL
from analysis.maths.resampling import LEAST, Sampled
from whitebox.errors import require

Float = NDArray[np.float64]
POWER = 0.8
_QUANTILES = 4000


class Sds(NamedTuple):
    """Standard deviations of one score by their source, see `Parts`."""

    seed: float
    unit: float
    residual: float

    def variance(self, seeds: int, units: int) -> float:
        """Of the mean over so many."""
        return self.seed**2 / seeds + self.unit**2 / units + self.residual**2 / (seeds * units)


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

    def sds(self, index: int, factor: float = 1) -> Sds:
        """Of one score, times ``factor``."""
        return Sds(*(factor * float(each[index]) for each in (self.seed_M, self.unit_M, self.residual_M)))


@dataclass(frozen=True)
class PartsWithDraws:
    """Standard deviations of one score by their source; NaN where it is unknown.

    Attributes:
        seed, unit, draw: of each alone. Of one training ``unit`` and ``draw`` hold its interactions.
        residual: of one training on one unit in one draw, beside all three: interactions, and what is left.
        shares: of the variance of the mean over all, by source; empty where it is 0 or unknown.
    """

    seed: float
    unit: float
    draw: float
    residual: float
    shares: Mapping[str, float]


def parts_with_draws(cells_SUD: Float) -> PartsWithDraws:
    """The parts of a table of pseudo-values; factors of one level are left out, and their part is unknown."""
    sizes = dict(zip(("seed", "unit", "draw"), cells_SUD.shape, strict=True))
    factors = [name for name, size in sizes.items() if size > 1]
    cells = cells_SUD.reshape([sizes[name] for name in factors])
    square = _mean_squares(cells)
    alone, others, of_mean = dict.fromkeys(sizes, float("nan")), 0.0, dict[str, float]()
    for subset in square:
        # what a mean square holds beside its own part are the parts of all that hold its axes: inclusion and exclusion
        above = [each for each in square if set(subset) <= set(each)]
        own = sum((-1) ** (len(each) - len(subset)) * square[each] for each in above)
        levels = math.prod(cells.shape[axis] for axis in subset)
        variance = max(0.0, own) * levels / cells.size
        source = factors[subset[0]] if len(subset) == 1 else "residual"
        of_mean[source] = of_mean.get(source, 0.0) + variance / levels
        if len(subset) == 1:
            alone[source] = math.sqrt(variance)
        else:
            others += variance
    total = sum(of_mean.values())
    return PartsWithDraws(
        **alone,
        residual=math.sqrt(others) if len(factors) > 1 else float("nan"),
        shares={source: each / total for source, each in of_mean.items()} if total > 0 else {},
    )


def _mean_squares(cells: Float) -> dict[tuple[int, ...], float]:
    """Of each set of axes, the mean square of its interaction (of one axis: of its main effect)."""
    found = {}
    axes = tuple(range(cells.ndim))
    for size in range(1, cells.ndim + 1):
        for subset in combinations(axes, size):
            effect = cells.mean(tuple(axis for axis in axes if axis not in subset), keepdims=True)
            for axis in subset:
                effect = effect - effect.mean(axis, keepdims=True)
            freedom = math.prod(cells.shape[axis] - 1 for axis in subset)
            found[subset] = float((effect**2).sum()) * cells.size / effect.size / freedom
    return found


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
    sds: Sds,
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
        sds: of the difference.
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
    for name, sd in sds._asdict().items():
        require(np.isfinite(sd) and sd >= 0, f"sd-{name}", sd, "a standard deviation is 0 or more")
    require(1 - level < power < 1, "power", power, f"it lies strictly between {1 - level:.2g} and 1")
    require(comparisons >= 1, "comparisons", comparisons, "it must be at least 1")
    seed, unit, residual = sds
    of_seeds = (seed**2 + residual**2 / units) / seeds
    of_units = (unit**2 + residual**2 / seeds) / units
    total = sds.variance(seeds, units)
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
