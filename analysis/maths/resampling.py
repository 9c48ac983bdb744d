"""Estimates from sums over images, with intervals over two levels: trainings, and what is independent in the data.

Every score here is a function of counts that are summed over images, so a resample is a row of weights and all
resamples are one matrix product. What is drawn are *units* (clips, cities, blocks of frames; images where these are
independent), and trainings (*seeds*) are a second level, crossed with them: each has seen all units.

**Width.** A percentile bootstrap of few units or seeds is far too narrow (nominal 95 % cover 70 to 85 % at 3 to 5 of
them). So the variance is that of a two-way layout without replication: with the jackknife's pseudo-values
``U t - (U - 1) t_(-u)`` (Tukey 1958) of each seed in its cells, and mean squares of seeds A, units B and their
interaction, ``Var(mean) = (MS_A + MS_B - MS_AB) / (S U)``, never less than ``MS_A`` or ``MS_B`` alone gives (Searle,
Casella and McCulloch, "Variance Components", 1992, section 4.3), with Satterthwaite's degrees of freedom (Biometrics 2,
1946) and Student's t. One or two trainings say nothing about their spread: then the interval is over units alone. Fewer
than three units, or a variance of 0, give no interval.

**Asymmetry.** The ends are shared out about the estimate as the ends of the percentile bootstrap over units are (Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13), one at most three times as far as the other. With
many units and one training what is left is the percentile interval.

tests/analysis/maths/test_coverage.py holds what these intervals cover. Shapes: S seeds, N images, U units, R resamples,
C counts, M scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.maths.conventions import LEVEL, RESAMPLES
from whitebox.errors import DataError, require

Float = NDArray[np.float64]
Metric = Callable[[Float], Float]  # (..., C) summed over images -> (..., M)

LEAST = 3  # units, or seeds, that say something about their spread
_BLOCK = 2**18  # elements of one block of weights or sums: 2 MB, which a processor's cache holds
_ROWS = 8  # of a block, at least
_LOPSIDED = 1.5  # times the mean distance of the ends, at most
_GOLDEN = 0.6180339887498949  # multiples of it, without their whole part, are all different


@dataclass(frozen=True)
class Sampled:
    """One model on some images, or the difference of two, before it is reduced to an interval.

    Attributes:
        values_SM: scores of each seed on all images.
        draws_RM: scores of the mean over seeds, on units drawn with replacement.
        cells_SUM: the jackknife's pseudo-values.
        other_SM: of a difference to a model with other seeds, the scores of those; None: seeds are matched.
        informed_M: units without which the score is another.
    """

    values_SM: Float
    draws_RM: Float
    cells_SUM: Float
    informed_M: NDArray[np.int64]
    other_SM: Float | None = None

    @property
    def value_M(self) -> Float:
        """Mean over seeds; of a difference, of the means."""
        mean_M = _mean(self.values_SM)
        return mean_M if self.other_SM is None else mean_M - _mean(self.other_SM)

    def minus(self, reference: Sampled, matched: bool) -> Sampled:
        """The difference to another model on the same units, drawn alike.

        Args:
            matched: both have the same seeds in the same order, and with them the same order of data.
        """
        draws_RM = self.draws_RM - reference.draws_RM
        informed_M = np.maximum(self.informed_M, reference.informed_M)
        if matched:
            values_SM = self.values_SM - reference.values_SM
            return Sampled(values_SM, draws_RM, self.cells_SUM - reference.cells_SUM, informed_M)
        cells_SUM = (_mean(self.cells_SUM) - _mean(reference.cells_SUM))[None]
        return Sampled(self.values_SM, draws_RM, cells_SUM, informed_M, reference.values_SM)


@dataclass(frozen=True)
class Interval:
    """Estimates of M scores with what is known of their uncertainty; NaN where nothing is.

    Attributes:
        value_M, low_M, high_M: the estimate and the ends.
        sd_M: over seeds; NaN for one.
        error_M2: standard error of each end by Monte Carlo.
        df_M: degrees of freedom.
        p_M: two-sided p value of the value 0: below ``1 - level`` where the interval misses 0.
        values_SM: of each seed.
        seed_M, unit_M: standard errors that come from seeds and from units alone; NaN where they are unknown.
        residual_M: that of the interaction, which both of them hold.
    """

    value_M: Float
    low_M: Float
    high_M: Float
    sd_M: Float
    error_M2: Float
    df_M: Float
    p_M: Float
    values_SM: Float
    seed_M: Float
    unit_M: Float
    residual_M: Float


def sampled(
    counts_SNC: ArrayLike,
    metric: Metric,
    unit_N: Sequence[object] | NDArray[np.generic] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Sampled:
    """Resample the units of one model. The same units, ``resamples`` and ``seed`` are the same draws for all models.

    Args:
        counts_SNC: what is summed over images: of each seed (or of one: (N, C)) and each image.
        metric: scores of sums; takes any leading axes. NaN marks what is not defined.
        unit_N: equal for images that belong together; None: each image is a unit.

    Raises:
        DataError: there are no images, or not one unit for each.
        ConfigError: ``resamples`` below 1.
    """
    require(resamples >= 1, "resamples", resamples, "it must be at least 1")
    counts = np.asarray(counts_SNC, dtype=np.float64)
    counts = counts[None] if counts.ndim == 2 else counts
    sums_SUC = summed(counts, unit_N)
    seeds, units, _ = sums_SUC.shape
    total_SC = sums_SUC.sum(1)
    values_SM = metric(total_SC)
    cells_SUM, informed_M = _cells(sums_SUC, total_SC, values_SM, metric)

    draws_RM = np.empty((resamples, values_SM.shape[1]))
    flat_UX = sums_SUC.transpose(1, 0, 2).reshape(units, -1)
    generator = np.random.default_rng(seed)
    step = max(_ROWS, _BLOCK // max(units, flat_UX.shape[1]))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        sums_RSC = (drawn(generator, count, units) @ flat_UX).reshape(count, seeds, -1)
        scores_RSM = metric(sums_RSC)
        draws_RM[start : start + count] = scores_RSM[:, 0] if seeds == 1 else _mean(scores_RSM.swapaxes(0, 1))
    return Sampled(values_SM, draws_RM, cells_SUM, informed_M)


def drawn(generator: np.random.Generator, count: int, units: int) -> Float:
    """How often each unit is drawn, (count, U): ``units`` draws with replacement in each row."""
    chosen = generator.integers(units, size=(count, units)) + units * np.arange(count)[:, None]
    return np.bincount(chosen.ravel(), minlength=count * units).reshape(count, units).astype(np.float64)


def summed(counts_SNC: Float, unit_N: Sequence[object] | NDArray[np.generic] | None) -> Float:
    """Sums over the images of each unit, (S, U, C), units in the order in which they first come.

    Raises:
        DataError: see `sampled`.
    """
    images = counts_SNC.shape[1]
    if images == 0:
        raise DataError("There are no images to resample.")
    if unit_N is None:
        return counts_SNC
    if len(unit_N) != images:
        raise DataError(f"There are {images} images and {len(unit_N)} units for them: give each image one.")
    known: dict[object, int] = {}
    index_N = np.array([known.setdefault(unit, len(known)) for unit in unit_N])
    order_N = np.argsort(index_N, kind="stable")
    begins_U = np.searchsorted(index_N[order_N], np.arange(len(known)))
    return np.asarray(np.add.reduceat(counts_SNC[:, order_N], begins_U, axis=1))


def _cells(sums_SUC: Float, total_SC: Float, values_SM: Float, metric: Metric) -> tuple[Float, NDArray[np.int64]]:
    """Pseudo-values, and how many units each score depends on."""
    units = sums_SUC.shape[1]
    left_SUM = _without_each(sums_SUC, total_SC, metric)
    same_UM = _same(left_SUM, values_SM)
    if same_UM.any():  # also where a unit happens to have the score of all: so once more, of a total of other weights
        weighted_SUC = sums_SUC * (1 + np.arange(units) * _GOLDEN % 1)[:, None]
        other_SC = weighted_SUC.sum(1)
        same_UM &= _same(_without_each(sums_SUC, other_SC, metric), metric(other_SC))
    return units * values_SM[:, None] - (units - 1) * left_SUM, (~same_UM).sum(0)


def _without_each(sums_SUC: Float, total_SC: Float, metric: Metric) -> Float:
    """Scores of a total without one unit after another, (S, U, M)."""
    units = sums_SUC.shape[1]
    step = max(_ROWS, _BLOCK // total_SC.size)
    parts = [slice(start, start + step) for start in range(0, units, step)]
    return np.concatenate([metric(total_SC[:, None] - sums_SUC[:, part]) for part in parts], axis=1)


def _same(left_SUM: Float, values_SM: Float) -> NDArray[np.bool_]:
    """Whether leaving a unit out changes a score of no seed, (U, M)."""
    close_SUM = np.isclose(left_SUM, values_SM[:, None], rtol=1e-12, atol=1e-15, equal_nan=True)
    return np.asarray(close_SUM.all(0))


def _mean(values_SX: Float) -> Float:
    """Mean over the first axis, of those that are known."""
    if not np.isnan(values_SX).any():
        return np.asarray(values_SX.mean(0))
    known = ~np.isnan(values_SX)
    total = np.where(known, values_SX, 0.0).sum(0)
    return np.divide(total, known.sum(0), out=np.full(total.shape, np.nan), where=known.any(0))


def interval(found: Sampled, *, level: float = LEVEL, within: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
    """Estimates, ends and p values.

    Args:
        level: of the interval.
        within: where scores can be; ends are cut there.

    Raises:
        ConfigError: ``level`` outside (0, 1).
    """
    from scipy.stats import t as student  # half a second, which reading what was measured does not need

    require(0 < level < 1, "level", level, "it lies strictly between 0 and 1")
    value_M = found.value_M
    variance_M, df_M, parts = _variance(found)
    known = (found.informed_M >= LEAST) & (variance_M > 0)
    variance_M, df_M = np.where(known, variance_M, np.nan), np.where(known, df_M, np.nan)
    shares_M2, errors_M2 = _shares(found.draws_RM, value_M, level)
    error_M = np.sqrt(variance_M)
    half_M = student.ppf((1 + level) / 2, df_M) * error_M
    low_M, high_M = value_M - half_M * shares_M2[:, 0], value_M + half_M * shares_M2[:, 1]
    towards_0 = np.where(value_M > 0, shares_M2[:, 0], shares_M2[:, 1])
    p_M = 2 * student.sf(np.abs(value_M) / (error_M * towards_0), df_M)
    return Interval(
        value_M=value_M,
        low_M=np.maximum(low_M, within[0]),
        high_M=np.minimum(high_M, within[1]),
        sd_M=_spread(found.values_SM),
        error_M2=errors_M2 * half_M[:, None],
        df_M=df_M,
        p_M=p_M,
        values_SM=found.values_SM,
        **parts,
    )


def estimated(
    counts_SNC: ArrayLike,
    metric: Metric,
    unit_N: Sequence[object] | NDArray[np.generic] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """`interval` of `sampled`.

    Raises:
        DataError, ConfigError: see there.
    """
    return interval(sampled(counts_SNC, metric, unit_N, resamples=resamples, seed=seed), level=level, within=within)


def jackknifed(
    value_M: ArrayLike,
    left_UM: ArrayLike,
    *,
    level: float = LEVEL,
    within: tuple[float, float] = (-math.inf, math.inf),
    most: int | None = None,
) -> Interval:
    """`interval` of scores that are no function of sums, so that nothing can be drawn: symmetric about the estimate.

    Args:
        value_M: of everything.
        left_UM: without each unit; a score that is not defined without one of them has no interval.
        most: units that can tell of the scores, where others only move them; fewer than three give no interval.
    """
    values_SM, left_SUM = np.asarray(value_M, dtype=np.float64)[None], np.asarray(left_UM, dtype=np.float64)[None]
    units = left_SUM.shape[1]
    cells_SUM = units * values_SM[:, None] - (units - 1) * left_SUM
    informed_M = (~_same(left_SUM, values_SM)).sum(0)
    if most is not None:
        informed_M = np.minimum(informed_M, most)
    return interval(Sampled(values_SM, values_SM, cells_SUM, informed_M), level=level, within=within)


def _variance(found: Sampled) -> tuple[Float, Float, dict[str, Float]]:
    """Variance of the estimate, its degrees of freedom, and standard errors by their source."""
    cells_SUM = found.cells_SUM
    seeds, units, scores = cells_SUM.shape
    nothing = np.full(scores, np.nan)
    parts = {"seed_M": nothing, "unit_M": nothing, "residual_M": nothing}
    if units < 2:
        return nothing, nothing, parts
    df_M = np.maximum(found.informed_M - 1.0, 1.0)
    mean_M, by_unit_UM, by_seed_SM = cells_SUM.mean((0, 1)), cells_SUM.mean(0), cells_SUM.mean(1)
    of_units_M = ((by_unit_UM - mean_M) ** 2).sum(0) / ((units - 1) * units)
    parts["unit_M"] = np.sqrt(of_units_M)
    if found.other_SM is not None:  # Welch's sum of independent parts
        groups = (found.values_SM, found.other_SM)
        if min(map(len, groups)) < LEAST:
            return of_units_M, df_M, parts
        terms = [(values.var(0, ddof=1) / len(values), len(values) - 1.0) for values in groups]
        parts["seed_M"] = np.sqrt(terms[0][0] + terms[1][0])
        total_M = terms[0][0] + terms[1][0] + of_units_M
        return total_M, _satterthwaite(total_M, [*terms, (of_units_M, df_M)]), parts
    if seeds < LEAST:
        return of_units_M, df_M, parts
    of_seeds_M = found.values_SM.var(0, ddof=1) / seeds
    rest_SUM = cells_SUM - by_unit_UM - by_seed_SM[:, None] + mean_M
    of_both_M = (rest_SUM**2).sum((0, 1)) / ((seeds - 1) * (units - 1) * seeds * units)
    parts |= {"seed_M": np.sqrt(of_seeds_M), "residual_M": np.sqrt(of_both_M)}
    total_M = np.maximum(of_seeds_M + of_units_M - of_both_M, np.maximum(of_seeds_M, of_units_M))
    return total_M, _satterthwaite(total_M, [(of_seeds_M, seeds - 1.0), (of_units_M, df_M)]), parts


def _satterthwaite(total_M: Float, terms: Sequence[tuple[Float, Float | float]]) -> Float:
    """Degrees of freedom of a variance made of independent ones; at least the fewest of these."""
    below_M = np.sum([term_M**2 / df for term_M, df in terms], axis=0)
    df_M = np.divide(total_M**2, below_M, out=np.full(total_M.shape, np.nan), where=below_M > 0)
    return np.asarray(np.maximum(df_M, np.minimum.reduce([np.broadcast_to(df, df_M.shape) for _, df in terms])))


def _shares(draws_RM: Float, value_M: Float, level: float) -> tuple[Float, Float]:
    """Distances of the bootstrap's ends, as multiples of their mean; and the Monte Carlo error of these multiples."""
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    ends_2M, errors_2M = _quantiles(draws_RM, tails)
    away_2M = np.maximum(np.stack([value_M - ends_2M[0], ends_2M[1] - value_M]), 0.0)
    total_M = away_2M.sum(0)
    usable = total_M > 0  # False for NaN, too
    shares_2M = np.divide(2 * away_2M, total_M, out=np.ones_like(away_2M), where=usable)
    both_M = np.hypot(away_2M[1] * errors_2M[0], away_2M[0] * errors_2M[1])
    error_M = np.divide(2 * both_M, total_M**2, out=np.zeros_like(total_M), where=usable)
    return np.clip(shares_2M, 2 - _LOPSIDED, _LOPSIDED).T, np.stack([error_M, error_M], -1)


def _quantiles(draws_RM: Float, at: Float) -> tuple[Float, Float]:
    """Quantiles of each score over the draws that have it, and their standard errors by order statistics; (2, M)."""
    step = np.sqrt(at * (1 - at) / len(draws_RM))
    wanted = np.clip(np.concatenate([at, at - step, at + step]), 0, 1)
    missing_M = np.isnan(draws_RM).any(0)
    found = np.full((len(wanted), draws_RM.shape[1]), np.nan)
    found[:, ~missing_M] = np.quantile(draws_RM[:, ~missing_M], wanted, axis=0)
    for index in np.flatnonzero(missing_M):
        known = draws_RM[~np.isnan(draws_RM[:, index]), index]
        if len(known):
            found[:, index] = np.quantile(known, wanted)
    count = len(at)
    return found[:count], (found[2 * count :] - found[count : 2 * count]) / 2


def _spread(values_SM: Float) -> Float:
    """Standard deviation over seeds."""
    if len(values_SM) < 2:
        return np.full(values_SM.shape[1], np.nan)
    return np.asarray(values_SM.std(0, ddof=1))
