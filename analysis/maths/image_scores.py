"""Scores of counts beyond mIoU: weighted by frequency, and of each image by itself.

Shapes: N images, K classes, x any leading axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


def frequency_weighted(counts_x3K: ArrayLike) -> Values:
    """IoU of the classes weighted by their labelled pixels, (...,); NaN without any.

    Source: Long, Shelhamer, Darrell, CVPR 2015, "f.w. IU".

    Args:
        counts_x3K: intersection, prediction and label of each class, summed over images.
    """
    right, predicted, labelled = np.moveaxis(np.asarray(counts_x3K, np.float64), -2, 0)
    iou = _divide(right, predicted + labelled - right)
    return _divide(np.where(labelled > 0, labelled * np.nan_to_num(iou), 0.0).sum(-1), labelled.sum(-1))


def image_iou(counts_N3K: ArrayLike) -> Values:
    """IoU of each class in each image, (N, K); NaN where the class is not labelled in it.

    Source: Wang et al., "Revisiting Evaluation Metrics for Semantic Segmentation", NeurIPS 2023. As in their code, what
    is predicted of a class that is not in the image only lowers the IoU of the classes it stands for.
    """
    right, predicted, labelled = np.moveaxis(np.asarray(counts_N3K, np.float64), -2, 0)
    return np.where(labelled > 0, _divide(right, predicted + labelled - right), np.nan)


def image_miou(counts_N3K: ArrayLike) -> Values:
    """Mean of `image_iou` over the classes of each image, (N,); NaN for one without a labelled pixel."""
    iou_NK = image_iou(counts_N3K)
    known_NK = ~np.isnan(iou_NK)
    return _divide(np.where(known_NK, iou_NK, 0.0).sum(1), known_NK.sum(1).astype(np.float64))


def image_sums(counts_N3K: ArrayLike) -> Values:
    """What the means over images are made of, (N, 2 + 2 K), to be summed over images for `image_means`."""
    iou_NK = image_iou(counts_N3K)
    known_NK = ~np.isnan(iou_NK)
    filled_NK = np.where(known_NK, iou_NK, 0.0)
    mean_N1 = image_miou(counts_N3K)[:, None]
    known_N1 = ~np.isnan(mean_N1)
    return np.hstack([np.where(known_N1, mean_N1, 0.0), known_N1, filled_NK, known_NK])


def image_means(sums_xC: Values) -> Values:
    """The mIoU of an image, averaged over images; the IoU of a class, averaged over its images, then over classes.

    Wang et al. call them mIoU^I and mIoU^C; (..., 2). Images without a labelled pixel, and classes without an image,
    are left out.
    """
    classes = sums_xC.shape[-1] // 2 - 1
    total, count, total_K, count_K = np.split(sums_xC, [1, 2, 2 + classes], axis=-1)
    of_classes = _divide(total_K, count_K)
    known = ~np.isnan(of_classes)
    mean = _divide(np.where(known, of_classes, 0.0).sum(-1), known.sum(-1).astype(np.float64))
    return np.stack([_divide(total, count)[..., 0], mean], -1)


def _divide(above: Values, below: Values) -> Values:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
