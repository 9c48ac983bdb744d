"""Pixels of each class near its boundary, per image: what Boundary IoU is made of.

Cheng, Girshick, Dollár, Berg, Kirillov: Boundary IoU, CVPR 2021. Of a mask G only the pixels of G within d of its
contour count, G_d ∩ G, and so for the prediction P: Boundary IoU is the IoU of G_d ∩ G and P_d ∩ P. As in
their code (``boundary_iou.utils.boundary_utils.mask_to_boundary``) G_d ∩ G is what d erosions of G by 3 x 3 px take
away, d is a share of the image's diagonal, 2 % for COCO and LVIS, 0.5 % for Cityscapes, at least 1 px, and beyond the
image's edge there is nothing, so a mask cut off there has a boundary along it.

The masks here are those of classes. d erosions take from a class the pixels whose (2d + 1) x (2d + 1) neighbourhood
holds another class, or the outside: one minimum and one maximum filter over class indices find these for all classes.

As in their panoptic code, boundaries are those of the masks as they are, also where the neighbour is ignored, and
pixels whose label is ignored count nowhere (their prediction neither).

Shapes: K classes, H W pixels.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from whitebox.engine.metrics import image_counts

RATIO = 0.02  # of the image's diagonal

_NOTHING = 2**16 - 1  # a value that no class has


def boundary_counts(
    prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255, ratio: float = RATIO
) -> Tensor:
    """Pixels of one image per class that are near the boundary of that class.

    Args:
        prediction, label: (H, W), see :func:`whitebox.engine.metrics.image_counts`.
        ratio: d as a share of the image's diagonal.

    Returns:
        (3, K) int64 on the CPU: near the boundary in prediction and label alike, in the prediction, in the label.

    Raises:
        DataError: see :func:`whitebox.engine.metrics.image_counts`.
    """
    predicted_HW, labelled_HW = (each.cpu().numpy().astype(np.uint16) for each in (prediction, label))
    height, width = labelled_HW.shape
    near = boundary_width(height, width, ratio)
    kept_HW = labelled_HW != ignore_index
    own = num_classes  # one class more: of no boundary
    for classes_HW in (predicted_HW, labelled_HW):
        inside_HW = ~near_boundary(classes_HW, near)
        classes_HW[inside_HW] = own
    labelled_HW[~kept_HW] = _NOTHING
    predicted, labelled = (torch.from_numpy(each.astype(np.int32)) for each in (predicted_HW, labelled_HW))
    counts = image_counts(predicted, labelled, own + 1, _NOTHING)
    return counts[:, :own]


def boundary_width(height: int, width: int, ratio: float = RATIO) -> int:
    """The distance d in px."""
    return max(1, round(ratio * math.hypot(height, width)))


def near_boundary(classes_HW: NDArray[np.uint16], width: int) -> NDArray[np.bool_]:
    """Whether a pixel is within ``width`` px (along rows, columns or diagonals) of another class, or of the outside."""
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    least_HW, most_HW = cv2.erode(classes_HW, kernel), cv2.dilate(classes_HW, kernel)
    near_HW = np.asarray(least_HW != most_HW)
    near_HW[:width] = near_HW[-width:] = True
    near_HW[:, :width] = near_HW[:, -width:] = True
    return near_HW
