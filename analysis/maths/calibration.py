"""Calibration and selective prediction from binned counts of confidence (``whitebox.engine.confidence``).

All functions take the counts of one set of images, or of many at once along leading axes, so that a bootstrap is one
call. A bin holds its pixels n_b, those that are right, and the sum of their confidences.

Shapes: B fine bins, M bins of a reliability diagram, x any leading axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from whitebox.engine.confidence import EDGES, EQUAL, UNIT
from whitebox.errors import ConfigError

Values = NDArray[np.float64]

RELIABILITY_BINS = 15  # Guo et al. 2017


def reliability(counts_xB3: ArrayLike, bins: int = RELIABILITY_BINS) -> tuple[Values, Values, Values]:
    """A reliability diagram of equally wide bins.

    Returns:
        Per bin its share of the pixels, their mean confidence, and the share that is right, each (..., M); the last two
        NaN in an empty bin. DeGroot and Fienberg 1983; Niculescu-Mizil and Caruana, ICML 2005.

    Raises:
        ConfigError: ``bins`` does not divide 60.
    """
    if bins < 1 or EQUAL % bins:
        raise ConfigError(f"{bins} bins are impossible: give a divisor of {EQUAL}, as 10, 12, 15 or 20.")
    counts = np.asarray(counts_xB3, np.float64)
    starts = np.arange(0, EQUAL, EQUAL // bins)
    coarse = np.add.reduceat(counts, starts, axis=-2)  # what is finer than equal bins belongs to the last
    pixels, right, confidence = coarse[..., 0], coarse[..., 1], coarse[..., 2] * UNIT
    return _divide(pixels, pixels.sum(-1, keepdims=True)), _divide(confidence, pixels), _divide(right, pixels)


def calibration_error(counts_xB3: ArrayLike, bins: int = RELIABILITY_BINS) -> Values:
    """Expected calibration error: sum over bins of n_b / n |accuracy - mean confidence|; NaN without pixels.

    Source: Naeini et al., AAAI 2015; of the largest probability, as Guo et al., ICML 2017, have it.
    """
    share, confidence, accuracy = reliability(counts_xB3, bins)
    gap = np.where(np.isnan(accuracy), 0.0, share * np.abs(accuracy - confidence)).sum(-1)
    return np.where(np.isnan(share).any(-1), np.nan, gap)


def overconfidence(counts_xB3: ArrayLike) -> Values:
    """Mean confidence minus accuracy; above 0: surer than right."""
    pixels, right, confidence = np.moveaxis(np.asarray(counts_xB3, np.float64).sum(-2), -1, 0)
    return _divide(confidence * UNIT - right, pixels)


def brier_score(squared_error_x: ArrayLike, counts_xB3: ArrayLike) -> Values:
    """Mean over pixels of sum_k (p_k - y_k)^2, between 0 and 2; 1 - 1/K: always the same for all classes.

    Source: Brier 1950, the original form, over all classes.
    """
    pixels = np.asarray(counts_xB3, np.float64)[..., 0].sum(-1)
    return _divide(np.asarray(squared_error_x, np.float64) * UNIT, pixels)


def risk_coverage(counts_xB3: ArrayLike) -> tuple[Values, Values]:
    """Of the surest pixels, more and more of them: their share of all, and the share of these that is wrong.

    Source: El-Yaniv and Wiener, JMLR 2010; Geifman and El-Yaniv, NeurIPS 2017.

    Returns:
        Coverage and selective risk, each (..., B), the surest bin first, at its end; NaN risk before the first pixel.
    """
    counts = np.asarray(counts_xB3, np.float64)[..., ::-1, :]
    pixels, wrong = counts[..., 0].cumsum(-1), (counts[..., 0] - counts[..., 1]).cumsum(-1)
    return _divide(pixels, pixels[..., -1:]), _divide(wrong, pixels)


def risks_at(counts_xB3: ArrayLike, coverages: ArrayLike) -> Values:
    """Selective risk at given coverages, (..., C): within a bin, pixels come in any order, each as often wrong."""
    counts = np.asarray(counts_xB3, np.float64)[..., ::-1, :]
    nothing = np.zeros((*counts.shape[:-2], 1))
    pixels = np.concatenate((nothing, counts[..., 0].cumsum(-1)), -1)
    wrong = np.concatenate((nothing, (counts[..., 0] - counts[..., 1]).cumsum(-1)), -1)
    wanted = np.asarray(coverages, np.float64) * pixels[..., -1:]
    # np.interp of all rows at once: the bin in which a coverage lies, by how many have begun before it
    pixels_Bx, wanted_Cx = (np.ascontiguousarray(np.moveaxis(each, -1, 0)) for each in (pixels, wanted))
    begun_Cx = np.zeros(wanted_Cx.shape, np.uint16)  # there are fewer bins than that
    for pixels_x in pixels_Bx:  # long rows: half the time of comparing few bins with few coverages again and again
        begun_Cx += pixels_x <= wanted_Cx
    begun = np.moveaxis(begun_Cx, 0, -1).astype(np.int64)
    bin_ = np.clip(begun - 1, 0, counts.shape[-2] - 1)
    start, end = (np.take_along_axis(pixels, bin_ + more, -1) for more in (0, 1))
    low, high = (np.take_along_axis(wrong, bin_ + more, -1) for more in (0, 1))
    slope = np.divide(high - low, end - start, out=np.zeros_like(low), where=end > start)
    found = np.where(begun > counts.shape[-2], wrong[..., -1:], slope * (wanted - start) + low)
    return _divide(found, wanted)


def area_under_risk(counts_xB3: ArrayLike) -> Values:
    """AURC: the mean selective risk over coverages; and the excess E-AURC over a perfect order of the same accuracy.

    Source: Geifman, Uziel, El-Yaniv, ICLR 2019. Within a bin the risk is that of pixels in any order.

    Returns:
        (..., 2): AURC, E-AURC.
    """
    counts = np.asarray(counts_xB3, np.float64)[..., ::-1, :]
    pixels, wrong = counts[..., 0], counts[..., 0] - counts[..., 1]
    before, errors = pixels.cumsum(-1) - pixels, wrong.cumsum(-1) - wrong
    total = pixels.sum(-1)
    # the integral over a bin of (errors + rate (t - before)) / t, rate = wrong / pixels of the bin
    rate = np.divide(wrong, pixels, out=np.zeros_like(wrong), where=pixels > 0)
    ratio = np.divide(before + pixels, before, out=np.ones_like(before), where=before > 0)
    area = _divide((rate * pixels + (errors - rate * before) * np.log(ratio)).sum(-1), total)
    risk = _divide(wrong.sum(-1), total)
    sure = np.clip(1 - risk, np.finfo(float).tiny, 1)
    best = risk + (1 - risk) * np.log(sure)  # all that is right first, then what is wrong
    return np.stack((area, area - best), -1)


def bin_edges(bins: int = RELIABILITY_BINS) -> Values:
    """Of the bins of a reliability diagram, (M + 1)."""
    return np.append(EDGES[: EQUAL : EQUAL // bins], 1.0)


def _divide(above: Values, below: Values) -> Values:
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
