"""Sliding windows, scales and flips, averaged as the official ``segm.model.utils.inference`` does.

For each scale and flip: resize the uint8 image, enlarge it when its short side is below the window, forward windows,
average logits where windows overlap, resize the logits to the original image, undo the flip, softmax. The result is
the mean of these probabilities.

Deviations that change nothing beyond float32 rounding: flipping and enlarging act on pixels in [0, 1], as the model
normalises (both commute with it); logits of a large photo are resized a block of rows at a time, so that little more
than the result is held. Deviations where the official code fails: an image so narrow that enlarging it would give more
than ``_LARGEST`` pixels (an aspect ratio above 16 for window 512) is stretched less along its long side instead of
running out of memory; a side that rounds to 0 pixels becomes 1; the model is always in eval mode.

Shapes: B windows, C colours, K classes, H W pixels of the original image, h w of the resized one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from whitebox.config import DataConfig, InferenceConfig
from whitebox.errors import DataError

Image = NDArray[np.uint8]

_LARGEST = 2**22  # pixels an image may be enlarged to; at least 8 windows in a row
_BLOCK = 2**27  # elements of one block of resized logits: 512 MB


def segment(model: nn.Module, image_HW3: Image, inference: InferenceConfig, data: DataConfig | None = None) -> Tensor:
    """Class probabilities of a photo of any size.

    Args:
        model: images (B, 3, H, W), RGB in [0, 1] -> logits (B, K, H, W). It runs in eval mode and is left as it was.
        image_HW3: RGB uint8.
        data: resizes as this dataset's evaluation does (``resize``, ``max_ratio``); None: the photo's own size.

    Returns:
        (K, H, W) float32 on the model's device, sums to 1 over K.

    Raises:
        DataError: the image is not (H, W, 3) uint8.
    """
    views, shape = _views(image_HW3, inference, data), image_HW3.shape[:2]
    return probabilities(model, views, shape, inference.window, inference.stride, inference.batch)


@torch.inference_mode()
def predict_labels(
    model: nn.Module, image_HW3: Image, inference: InferenceConfig, data: DataConfig | None = None
) -> Tensor:
    """The most probable class of each pixel: the argmax of :func:`segment`.

    With one scale and no flip the probabilities of the whole image are never held at once.

    Returns:
        (H, W) int64 on the model's device.
    """
    if len(inference.scales) > 1 or inference.flip:
        return segment(model, image_HW3, inference, data).argmax(0)
    (view,) = _views(image_HW3, inference, data)
    with evaluating(model):
        logits_Khw, flipped = _view_logits(model, view, inference.window, inference.stride, inference.batch)
        blocks = _probability_blocks(logits_Khw, image_HW3.shape[:2], flipped)
        return torch.cat([block_KRW.argmax(0) for _, block_KRW in blocks])


@torch.inference_mode()
def probabilities(
    model: nn.Module,
    views: Iterable[tuple[Image, bool]],
    shape: tuple[int, ...],
    window: int,
    stride: int,
    batch: int = 1,
) -> Tensor:
    """Mean class probabilities over resized versions of one image.

    Args:
        views: the image (h, w, 3) uint8 at some scale, and whether the model is to see it mirrored.
        shape: (H, W) of the original image.
        window, stride: px.
        batch: windows in one forward pass; the result does not depend on it beyond rounding.

    Returns:
        (K, H, W) float32 on the model's device.
    """
    total_KHW, count = torch.empty(0), 0
    with evaluating(model):
        for view in views:
            logits_Khw, flipped = _view_logits(model, view, window, stride, batch)
            if count == 0:
                total_KHW = logits_Khw.new_zeros((len(logits_Khw), *shape))
            for rows, block_KRW in _probability_blocks(logits_Khw, shape, flipped):
                total_KHW[:, rows] += block_KRW
            count += 1
    return total_KHW.div_(count)


def resize_image(image_HW3: Image, short: int, ratio: float = 1.0, max_ratio: float = 4.0) -> Image:
    """Resize the short side to ``short * ratio`` px, or less where the long side would exceed ``max_ratio`` times that.

    The rule and the bilinear filter (OpenCV, on uint8) are those of mmsegmentation's test pipeline.
    """
    height, width = image_HW3.shape[:2]
    edges = int(max_ratio * short * ratio), int(short * ratio)
    return _scaled(image_HW3, min(max(edges) / max(height, width), min(edges) / min(height, width)))


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


@torch.inference_mode()
def window_logits(model: nn.Module, image_1CHW: Tensor, window: int, stride: int, batch: int = 1) -> Tensor:
    """Logits of an image at least ``window`` px wide and high, averaged where windows overlap.

    Returns:
        (K, H, W) float32.
    """
    height, width = image_1CHW.shape[2:]
    tops, lefts = anchors(height, window, stride), anchors(width, window, stride)
    corners = [(top, left) for top in tops for left in lefts]
    total_KHW = torch.empty(0)
    for start in range(0, len(corners), batch):
        chosen = corners[start : start + batch]
        crops_BCHW = torch.cat([image_1CHW[:, :, y : y + window, x : x + window] for y, x in chosen])
        logits_BKHW = model(crops_BCHW)
        if start == 0:
            total_KHW = logits_BKHW.new_zeros((logits_BKHW.shape[1], height, width), dtype=torch.float32)
        for (y, x), logits_KHW in zip(chosen, logits_BKHW, strict=True):
            total_KHW[:, y : y + window, x : x + window] += logits_KHW
    count_H1 = _coverage(tops, height, window)[:, None].to(total_KHW)
    count_W = _coverage(lefts, width, window).to(total_KHW)
    return total_KHW.div_(count_H1 * count_W)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, no drop path) inside the block; each module is as before after it."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's parameters."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _views(image_HW3: Image, inference: InferenceConfig, data: DataConfig | None) -> Iterator[tuple[Image, bool]]:
    if image_HW3.ndim != 3 or image_HW3.shape[2] != 3 or image_HW3.dtype != np.uint8 or image_HW3.size == 0:
        raise DataError(
            f"An image must be RGB uint8 of shape (H, W, 3), not {image_HW3.dtype} of shape {image_HW3.shape}."
        )
    for ratio in inference.scales:
        resized_hw3 = (
            _scaled(image_HW3, ratio) if data is None else resize_image(image_HW3, data.resize, ratio, data.max_ratio)
        )
        for flipped in (False, True) if inference.flip else (False,):
            yield resized_hw3, flipped


def _scaled(image_HW3: Image, scale: float) -> Image:
    height, width = (max(1, int(side * scale + 0.5)) for side in image_HW3.shape[:2])
    if (height, width) == image_HW3.shape[:2]:
        return image_HW3
    return cv2.resize(np.ascontiguousarray(image_HW3), (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


def _view_logits(
    model: nn.Module, view: tuple[Image, bool], window: int, stride: int, batch: int
) -> tuple[Tensor, bool]:
    """Logits (K, h, w) of one view, still mirrored where the view is."""
    image_hw3, flipped = view
    writable_hw3 = np.require(image_hw3, requirements=["C", "W"])  # what torch takes; a copy only where it is not
    pixels_3hw = torch.from_numpy(writable_hw3).to(device_of(model)).permute(2, 0, 1)
    image_13hw = pixels_3hw.float().div(255)[None]
    if flipped:
        image_13hw = image_13hw.flip(3)
    return window_logits(model, enlarge(image_13hw, window), window, stride, batch), flipped


def _probability_blocks(logits_Khw: Tensor, shape: tuple[int, ...], flipped: bool) -> Iterator[tuple[slice, Tensor]]:
    """Softmax of the logits resized to ``shape``: blocks of rows (K, R, W), the flip undone after resizing.

    All rows at once where they fit. Else rows are interpolated first and columns second, which is
    ``F.interpolate(..., mode="bilinear")`` cut into blocks; the sampling positions are computed in float32 as there.
    """
    classes, h, w = logits_Khw.shape
    height, width = shape
    step = max(1, _BLOCK // (classes * max(w, width)))
    for start in range(0, height, step):
        rows = slice(start, min(start + step, height))
        if rows == slice(0, height):
            block_KRw = logits_Khw
        else:
            centres = torch.arange(rows.start, rows.stop, device=logits_Khw.device, dtype=torch.float32) + 0.5
            position = (centres * (h / height) - 0.5).clamp(min=0)
            above = position.long()
            below = (above + 1).clamp(max=h - 1)
            block_KRw = torch.lerp(logits_Khw[:, above], logits_Khw[:, below], (position - above)[:, None])
        size = (rows.stop - rows.start, width)
        block_KRW = F.interpolate(block_KRw[None], size, mode="bilinear")[0]
        yield rows, (block_KRW.flip(2) if flipped else block_KRW).softmax(0)


def _coverage(starts: list[int], length: int, window: int) -> Tensor:
    """Number of windows over each pixel of one side."""
    count = torch.zeros(length)
    for start in starts:
        count[start : start + window] += 1
    return count
