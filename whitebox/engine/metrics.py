"""Segmentation scores from per-image pixel counts.

Conventions are mmsegmentation's ``IoUMetric`` and the official ``segm.metrics``: pixels whose label is ignored count
nowhere (their prediction neither); a class that occurs in neither label nor prediction has IoU nan and is left out of
the mean; a class that is predicted but never labelled has IoU 0 and accuracy nan. Both sum over images first and divide
last. With ``mean_over="labelled"`` they are detectron2's ``SemSegEvaluator`` (since f3c1bc19, 2022): a class without a
labelled pixel has IoU nan, too, and what is predicted of it only lowers the IoU of classes it stands for. Totals are
exact integers here; mmsegmentation's float32 histograms are rounded above 2^24 pixels of a class.

Shapes: N images, K classes, R resamples, S scores (3 + K), H W pixels.
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

MEANS = ("occurring", "labelled")  # classes that a mean IoU may be over
_BLOCK = 2**22  # elements of one block of bootstrap weights: 32 MB


@dataclass(frozen=True)
class Scores:
    """Fractions in [0, 1]; nan where nothing was counted.

    Attributes:
        miou: mean of ``iou_K`` over the classes that occur, or over those that are labelled.
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
    return counts_of(confusion(prediction, label, num_classes, ignore_index))


def confusion(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Pixels of one image by label and prediction; arguments and errors are those of :func:`image_counts`.

    Returns:
        (K, K) int64 on the same device: of each label (row) how many are predicted as each class (column).
    """
    if prediction.shape != label.shape:
        raise DataError(f"The prediction is {tuple(prediction.shape)} pixels, the label {tuple(label.shape)}.")
    rows = label_rows(label, num_classes, ignore_index)
    predicted = prediction.long().masked_fill(label == ignore_index, 0)
    _require_classes("prediction", predicted, num_classes, ignore_index)
    return _confusion_in_rows(predicted, rows, num_classes)


def counts_of(confusion_KK: Tensor) -> Tensor:
    """The (3, K) of :func:`image_counts` in a confusion matrix."""
    return torch.stack((confusion_KK.diagonal(), confusion_KK.sum(0), confusion_KK.sum(1)))


def label_rows(label: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """A label as :func:`counts_in_rows` takes it, for one that is compared with many predictions.

    Returns:
        Where each pixel's row of the confusion matrix begins, K * label, or K * K where it is ignored; of the label's
        shape, int16 or, where that is too short, int32.

    Raises:
        DataError: a value is neither a class nor ``ignore_index``.
    """
    ignored = label == ignore_index
    labelled = label.long().masked_fill(ignored, 0)
    _require_classes("label", labelled, num_classes, ignore_index)
    rows = (labelled * num_classes).masked_fill(ignored, num_classes**2)
    return rows.to(torch.int16 if num_classes * (num_classes + 1) < 2**15 else torch.int32)


def counts_in_rows(prediction: Tensor, rows: Tensor, num_classes: int) -> Tensor:
    """:func:`image_counts` of a prediction whose values are classes, and a label prepared by :func:`label_rows`."""
    return counts_of(_confusion_in_rows(prediction, rows, num_classes))


def _confusion_in_rows(prediction: Tensor, rows: Tensor, num_classes: int) -> Tensor:
    pairs = torch.bincount((rows + prediction).flatten(), minlength=num_classes * (num_classes + 1))
    return pairs[: num_classes**2].reshape(num_classes, num_classes)


def _require_classes(what: str, values: Tensor, num_classes: int, ignore_index: int) -> None:
    if values.numel() and not (values.min() >= 0 and values.max() < num_classes):
        wrong = values[(values < 0) | (values >= num_classes)]
        raise DataError(
            f"A {what} has value {int(wrong[0])}, but with {num_classes} classes values are 0 to "
            f"{num_classes - 1}, or {ignore_index} for ignored."
        )


def scores(counts: Counts, mean_over: str = "occurring") -> Scores:
    """Scores of a set of images.

    Args:
        counts: (N, 3, K) of N images, or (3, K) already summed; integer array or tensor.
        mean_over: ``occurring`` or ``labelled`` classes, see above.

    Returns:
        The scores; without any labelled pixel all means are nan.
    """
    array = _array(counts)
    total_3K = array.sum(0) if array.ndim == 3 else array
    miou, macc, aacc, iou_K, acc_K = _ratios(total_3K.astype(np.float64), mean_over)
    return Scores(float(miou), float(macc), float(aacc), iou_K, acc_K)


def score_vectors(total_3K: Float, mean_over: str = "occurring") -> Float:
    """Scores of many sums, (..., 3 K) -> (..., 3 + 2 K): miou, macc, aacc, iou_K, acc_K, see :func:`scores`."""
    miou, macc, aacc, iou_K, acc_K = _ratios(total_3K.reshape(*total_3K.shape[:-1], 3, -1), mean_over)
    return np.concatenate([np.stack([miou, macc, aacc], -1), iou_K, acc_K], -1)


def bootstrap(
    counts_N3K: Counts, resamples: int = 1000, seed: int = 0, level: float = 0.95, mean_over: str = "occurring"
) -> Intervals:
    """Percentile bootstrap intervals: images are drawn with replacement, scores taken of each draw.

    A class that is absent from a draw is left out of that draw's means, as in :func:`scores`.

    Args:
        counts_N3K: per-image counts of :func:`image_counts`.
        resamples: number of draws.
        level: probability mass between the two ends.
        mean_over: see :func:`scores`.

    Raises:
        DataError: there are no images.
        ConfigError: ``resamples`` below 1, or ``level`` outside (0, 1).
    """
    return _intervals(resampled_scores(counts_N3K, resamples, seed, mean_over), level)


def paired_bootstrap(
    counts_N3K: Counts,
    reference_N3K: Counts,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    mean_over: str = "occurring",
) -> Intervals:
    """Percentile bootstrap intervals of the differences ``counts - reference`` between two models on the same images.

    Each draw takes the same images for both, so what makes an image hard for both cancels.

    Args:
        counts_N3K, reference_N3K: per-image counts, of the same images in the same order.

    Raises:
        DataError: there are no images, or different numbers of images or classes.
        ConfigError: see :func:`bootstrap`.
    """
    if np.shape(counts_N3K) != np.shape(reference_N3K):
        raise DataError(f"Counts of shape {np.shape(counts_N3K)} cannot be paired with {np.shape(reference_N3K)}.")
    pair = [resampled_scores(counts, resamples, seed, mean_over) for counts in (counts_N3K, reference_N3K)]
    return _intervals(pair[0] - pair[1], level)


def resampled_scores(counts_N3K: Counts, resamples: int, seed: int, mean_over: str = "occurring") -> Float:
    """(R, 3 + K): miou, macc, aacc and iou_K of each draw; the same images for the same N and seed."""
    if resamples < 1:
        raise ConfigError(f"resamples={resamples} is impossible: it must be at least 1.")
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
    miou_R, macc_R, aacc_R, iou_RK, _ = _ratios(totals.reshape(resamples, 3, classes), mean_over)
    return np.column_stack((miou_R, macc_R, aacc_R, iou_RK))


def _intervals(scores_RS: Float, level: float) -> Intervals:
    """Quantiles of each column over its draws that are not nan."""
    if not 0 < level < 1:
        raise ConfigError(f"level={level} is impossible: it lies strictly between 0 and 1.")
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    limits = np.full((scores_RS.shape[1], 2), np.nan)
    for index, column in enumerate(scores_RS.T):
        known = column[~np.isnan(column)]
        if len(known):
            limits[index] = np.quantile(known, ends)
    miou, macc, aacc = ((float(low), float(high)) for low, high in limits[:3])
    return Intervals(level, len(scores_RS), miou, macc, aacc, limits[3:])


def _array(counts: Counts) -> NDArray[np.int64]:
    return counts.cpu().numpy() if isinstance(counts, Tensor) else np.asarray(counts)


def _ratios(total: Float, mean_over: str) -> tuple[Float, Float, Float, Float, Float]:
    """(..., 3, K) -> miou, macc, aacc (...), iou, acc (..., K)."""
    right, predicted, labelled = total[..., 0, :], total[..., 1, :], total[..., 2, :]
    iou = _divide(right, predicted + labelled - right)
    acc = _divide(right, labelled)
    if mean_over == "labelled":
        iou = np.where(labelled > 0, iou, np.nan)
    return _mean(iou), _mean(acc), _divide(right.sum(-1), labelled.sum(-1)), iou, acc


def _divide(above: Float, below: Float) -> Float:
    """Quotient, nan for 0 / 0."""
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


def _mean(values: Float) -> Float:
    """Mean over the last axis without the nan."""
    known = ~np.isnan(values)
    return _divide(np.where(known, values, 0.0).sum(-1), known.sum(-1).astype(np.float64))
