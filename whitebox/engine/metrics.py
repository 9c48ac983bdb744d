"""Segmentation scores from per-image pixel counts.

Conventions are mmsegmentation's ``IoUMetric`` and the official ``segm.metrics``: pixels whose label is ignored count
nowhere (their prediction neither); a class that occurs in neither label nor prediction has IoU nan and is left out of
the mean; a class that is predicted but never labelled has IoU 0 and accuracy nan. Both sum over images first and divide
last. With ``mean_over="labelled"`` they are detectron2's ``SemSegEvaluator`` (since f3c1bc19, 2022): a class without a
labelled pixel has IoU nan, too, and what is predicted of it only lowers the IoU of classes it stands for. Totals are
exact integers here; mmsegmentation's float32 histograms are rounded above 2^24 pixels of a class.

Shapes: N images, K classes, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whitebox.errors import DataError

Float = NDArray[np.float64]
Counts = NDArray[np.int64] | Tensor

MEANS = ("occurring", "labelled")  # classes that a mean IoU may be over


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
