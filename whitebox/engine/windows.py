"""Where the windows of a photo are: it is resized, enlarged when its short side is below the window, and covered.

The rules are those of the official ``segm.model.utils.inference`` and of mmsegmentation's test pipeline. Deviations
where the official code fails: an image so narrow that enlarging it would give more than ``_LARGEST`` pixels (an aspect
ratio above 16 for window 512) is stretched less along its long side instead of running out of memory; a side that
rounds to 0 pixels becomes 1.

Shapes: H W pixels of the original image, h w of the resized one, C colours.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from whitebox.config import DataConfig, InferenceConfig
from whitebox.data.detectron2 import resize_by_short_side
from whitebox.errors import DataError

Image = NDArray[np.uint8]

_LARGEST = 2**22  # pixels an image may be enlarged to; at least 8 windows in a row


def views_of(image_HW3: Image, inference: InferenceConfig, data: DataConfig | None) -> Iterator[tuple[Image, bool]]:
    """The photo at each scale, and whether mirrored; ``data``: resize first as its evaluation does.

    Raises:
        DataError: the image is not (H, W, 3) uint8.
    """
    if image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or image_HW3.dtype != np.uint8 or image_HW3.size == 0:
        raise DataError(
            f"An image must be RGB uint8 of shape (H, W, 3), not {image_HW3.dtype} of shape {image_HW3.shape}."
        )
    for ratio in inference.scales:
        if data is None:
            resized_hw3 = scale_image(image_HW3, ratio)
        elif data.transforms == "detectron2":
            resized_hw3 = resize_by_short_side(image_HW3, data.resize * ratio, data.max_ratio)
        else:
            resized_hw3 = resize_image(image_HW3, data.resize, ratio, data.max_ratio)
        for flipped in (False, True) if inference.flip else (False,):
            yield resized_hw3, flipped


def resize_image(image_HW3: Image, short: int, ratio: float = 1.0, max_ratio: float = 4.0) -> Image:
    """Resize the short side to ``short * ratio`` px, or less where the long side would exceed ``max_ratio`` times that.

    The rule and the bilinear filter (OpenCV, on uint8) are those of mmsegmentation's test pipeline.
    """
    height, width = image_HW3.shape[:2]
    edges = int(max_ratio * short * ratio), int(short * ratio)
    return scale_image(image_HW3, min(max(edges) / max(height, width), min(edges) / min(height, width)))


def scale_image(image_HW3: Image, scale: float) -> Image:
    """Resize both sides by ``scale``, to at least a pixel (OpenCV's bilinear filter, on uint8)."""
    height, width = (max(1, int(side * scale + 0.5)) for side in image_HW3.shape[:2])
    if (height, width) == image_HW3.shape[:2]:
        return image_HW3
    return cv2.resize(np.ascontiguousarray(image_HW3), (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def enlarge(image_1CHW: Tensor, window: int) -> Tensor:
    """Enlarge, bilinearly, an image whose short side is below ``window`` px; others are returned as they are."""
    height, width = image_1CHW.shape[2:]
    if min(height, width) >= window:
        return image_1CHW
    # In this order, as floats: the official code truncates (w / h) * window, sometimes a pixel below the exact value.
    long = int((width / height) * window) if height < width else int((height / width) * window)
    long = max(min(long, max(_LARGEST // window, 8 * window)), height, width)
    size = (window, long) if height < width else (long, window)
    return F.interpolate(image_1CHW, size, mode="bilinear")


def anchors(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover ``length`` >= ``window`` px; the last one ends at the border."""
    last = length - window
    return [start for start in range(0, length, stride) if start < last] + [last]
