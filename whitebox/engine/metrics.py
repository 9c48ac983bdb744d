"""Segmentation scores from per-image pixel counts.

Conventions are mmsegmentation's ``IoUMetric`` and the official ``segm.metrics``: pixels whose label is ignored count
nowhere (their prediction neither); a class that occurs in neither label nor prediction has IoU nan and is left out of
the mean; a class that is predicted but never labelled has IoU 0 and accuracy nan. Both sum over images first and divide
last. Totals are exact integers here; mmsegmentation's float32 histograms are rounded above 2^24 pixels of a class.

Shapes: N images, K classes, R resamples, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whitebox.errors import ConfigError, DataError

Float = NDArray[np.float64]
Counts = NDArray[np.int64] | Tensor

_BLOCK = 2**22  # elements of one block of bootstrap weights: 32 MB


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1]; nan where nothing was counted.

    Attributes:
        miou: mean of ``iou_K`` over the classes that occur.
        macc: mean of ``acc_K`` over the labelled classes.
        aacc: share of labelled pixels that are right.
        iou_K: intersection over union of each class.
        acc_K: share of each class's labelled pixels that are right.
    """

    miou: float
    macc: float
    aacc: float
    iou_K: Float
    acc_K: Float


@dataclass(frozen=True)
class Intervals:
    """Percentile bootstrap intervals over images, as (low, high) fractions; nan where the score is nan."""

    level: float
    resamples: int
    miou: tuple[float, float]
    macc: tuple[float, float]
    aacc: tuple[float, float]
    iou_K2: Float


def image_counts(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Pixels of one image per class: right ones, predicted ones, labelled ones.

    Args:
        prediction: classes, any integer dtype, any shape (usually H, W).
        label: classes or ``ignore_index``, of the same shape and device.

    Returns:
        (3, K) int64 on the same device: intersection, prediction, label.

    Raises:
        DataError: the shapes differ, or a value is neither a class nor ``ignore_index``.
    """
    if prediction.shape != label.shape:
        raise DataError(f"The prediction is {tuple(prediction.shape)} pixels, the label {tuple(label.shape)}.")
    kept = label != ignore_index
    predicted, labelled = prediction[kept].long(), label[kept].long()
    for what, values in (("label", labelled), ("prediction", predicted)):
        wrong = values[(values < 0) | (values >= num_classes)]
        if len(wrong):
            raise DataError(
                f"A {what} has value {int(wrong[0])}, but with {num_classes} classes values are 0 to "
                f"{num_classes - 1}, or {ignore_index} for ignored."
            )
    pairs = torch.bincount(labelled * num_classes + predicted, minlength=num_classes**2)
    confusion_KK = pairs.reshape(num_classes, num_classes)  # label, prediction
    return torch.stack((confusion_KK.diagonal(), confusion_KK.sum(0), confusion_KK.sum(1)))


def scores(counts: Counts) -> Scores:
    """Scores of a set of images.

    Args:
        counts: (N, 3, K) of N images, or (3, K) already summed; integer array or tensor.

    Returns:
        The scores; without any labelled pixel all means are nan.
    """
    array = _array(counts)
    total_3K = array.sum(0) if array.ndim == 3 else array
    miou, macc, aacc, iou_K, acc_K = _ratios(total_3K.astype(np.float64))
    return Scores(float(miou), float(macc), float(aacc), iou_K, acc_K)


def bootstrap(counts_N3K: Counts, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Intervals:
    """Percentile bootstrap intervals: images are drawn with replacement, scores taken of each draw.

    A class that is absent from a draw is left out of that draw's means, as in :func:`scores`.

    Args:
        counts_N3K: per-image counts of :func:`image_counts`.
        resamples: number of draws.
        level: probability mass between the two ends.

    Raises:
        DataError: there are no images.
        ConfigError: ``resamples`` below 1, or ``level`` outside (0, 1).
    """
    if resamples < 1:
        raise ConfigError(f"resamples={resamples} is impossible: it must be at least 1.")
    if not 0 < level < 1:
        raise ConfigError(f"level={level} is impossible: it lies strictly between 0 and 1.")
    array = _array(counts_N3K)
    images, _, classes = array.shape
    if images == 0:
        raise DataError("There are no images to resample.")
    flat = array.reshape(images, 3 * classes).astype(np.float64)  # sums stay exact integers up to 2^53

    generator = np.random.default_rng(seed)
    totals = np.empty((resamples, 3 * classes))
    step = max(1, _BLOCK // images)
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        chosen = generator.integers(images, size=(draws, images)) + images * np.arange(draws)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=draws * images).reshape(draws, images)
        totals[start : start + draws] = weights.astype(np.float64) @ flat
    miou_R, macc_R, aacc_R, iou_RK, _ = _ratios(totals.reshape(resamples, 3, classes))

    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    columns = np.column_stack((miou_R, macc_R, aacc_R, iou_RK))
    limits = np.full((columns.shape[1], 2), np.nan)
    for index, column in enumerate(columns.T):
        known = column[~np.isnan(column)]
        if len(known):
            limits[index] = np.quantile(known, ends)
    miou, macc, aacc = ((float(low), float(high)) for low, high in limits[:3])
    return Intervals(level, resamples, miou, macc, aacc, limits[3:])


def _array(counts: Counts) -> NDArray[np.int64]:
    return counts.cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)


def _ratios(total: Float) -> tuple[Float, Float, Float, Float, Float]:
    """(..., 3, K) -> miou, macc, aacc (...), iou, acc (..., K)."""
    right, predicted, labelled = total[..., 0, :], total[..., 1, :], total[..., 2, :]
    iou = _divide(right, predicted + labelled - right)
    acc = _divide(right, labelled)
    return _mean(iou), _mean(acc), _divide(right.sum(-1), labelled.sum(-1)), iou, acc


def _divide(above: Float, below: Float) -> Float:
    """Quotient, nan for 0 / 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def _mean(values: Float) -> Float:
    """Mean over the last axis without the nan."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0.0).sum(-1), known.sum(-1).astype(np.float64))
