"""Sliding windows, scales and flips, averaged as the official ``segm.model.utils.inference`` does.

For each scale and flip: resize the uint8 image, enlarge it when its short side is below the window, forward windows,
average logits where windows overlap, resize the logits to the original image, undo the flip, softmax. The result is
the mean of these probabilities.

Everything between a model's masks and the softmax is linear and acts on rows and columns separately: upsampling from
patches, the average over windows (which form a grid), resizing, mirroring. So it is two matrices, one for rows and one
for columns, made once a view; they are applied tile by tile, classes last, and nothing of full size is held but the
result. Windows of one photo after another share batches.

Deviations that change nothing beyond float32 rounding: the above; flipping and enlarging act on pixels in [0, 1], as
the model normalises (both commute with it). Deviations where the official code fails: an image so narrow that
enlarging it would give more than ``_LARGEST`` pixels (an aspect ratio above 16 for window 512) is stretched less along
its long side instead of running out of memory; a side that rounds to 0 pixels becomes 1; the model is always in eval
mode.

Shapes: B windows, C colours, K classes, H W pixels of the original image, h w of the resized one, m n mask logits along
its rows and columns (those of all windows side by side), R S rows and columns of a tile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from whitebox.config import DataConfig, InferenceConfig
from whitebox.errors import DataError
from whitebox.models import Segmentor
from whitebox.models.tail import full_precision

Image = NDArray[np.uint8]

_LARGEST = 2**22  # pixels an image may be enlarged to; at least 8 windows in a row

# Logits of a tile, and its columns. A processor wants it in its cache (0.5 MB a thread) and few columns, so that few
# patches matter to it; a GPU wants large kernels (256 MB).
_ON_CPU, _ELSEWHERE = (2**17, 64), (2**26, 512)


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


def predict_labels(
    model: nn.Module, image_HW3: Image, inference: InferenceConfig, data: DataConfig | None = None
) -> Tensor:
    """The most probable class of each pixel: the argmax of :func:`segment`, which is never held as a whole.

    Returns:
        (H, W) int64 on the model's device.
    """
    (label_HW,) = predict_many(model, [image_HW3], inference, data)
    return label_HW


@torch.inference_mode()
def predict_many(
    model: nn.Module, images: Iterable[Image], inference: InferenceConfig, data: DataConfig | None = None
) -> Iterator[Tensor]:
    """:func:`predict_labels` of one photo after another; their windows share batches.

    A photo is asked for when there is room in a batch: about ``inference.batch`` windows ahead of the last result.
    """
    photos = (_Photo(_views(image_HW3, inference, data), image_HW3.shape[:2]) for image_HW3 in images)
    with evaluating(model):
        for photo in _through(model, photos, inference.window, inference.stride, inference.batch):
            yield photo.labels()


class Window(NamedTuple):
    """What a model sees of a photo in one forward pass."""

    pixels_13ww: Tensor  # in [0, 1]
    size: tuple[int, ...]  # (h, w) of the resized photo it is cut from
    top: int  # px in the resized photo
    left: int


def windows(
    image_HW3: Image, inference: InferenceConfig, data: DataConfig | None, device: torch.device
) -> Iterator[Window]:
    """The windows that :func:`predict_labels` shows a model at scale 1, unmirrored."""
    single = replace(inference, scales=[1.0], flip=False)
    photo = _Photo(_views(image_HW3, single, data), image_HW3.shape[:2])
    for view, number, pixels_13ww in photo.windows(device, inference.window, inference.stride):
        y, x = divmod(number, len(view.lefts))
        yield Window(pixels_13ww, view.size, view.tops[y], view.lefts[x])


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
    with evaluating(model):
        (photo,) = _through(model, [_Photo(iter(views), shape)], window, stride, batch)
        return photo.probabilities()


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


class _Axis:
    """What each pixel along one side of the photo takes from the mask logits along that side of a view."""

    def __init__(self, starts: list[int], window: int, patch: int, length: int, pixels: int, flipped: bool) -> None:
        """Windows at ``starts`` of a view ``length`` px long, of a photo that is ``pixels`` px long."""
        count = -(-window // patch)  # a window is padded to whole patches
        window_nw = F.interpolate(torch.eye(count)[None], count * patch, mode="linear")[0, :, :window]
        view_nl = torch.zeros(len(starts) * count, length)
        covered_l = torch.zeros(length)
        for number, start in enumerate(starts):
            view_nl[number * count : (number + 1) * count, start : start + window] = window_nw
            covered_l[start : start + window] += 1
        photo_nP = F.interpolate((view_nl / covered_l)[None], pixels, mode="linear")[0]
        self.matrix_Pn = (photo_nP.flip(1) if flipped else photo_nP).T.contiguous()
        used_Pn = self.matrix_Pn.numpy() != 0  # few: neighbours, in each of the windows that overlap here
        self.first = used_Pn.argmax(1)
        self.last = used_Pn.shape[1] - used_Pn[:, ::-1].argmax(1)

    def part(self, pixels: slice) -> tuple[Tensor, slice]:
        """The rows of the matrix for these pixels, without outer columns of zeros; which logits the columns are."""
        used = slice(int(self.first[pixels].min()), int(self.last[pixels].max()))
        return self.matrix_Pn[pixels, used], used


class _View:
    """One resized, maybe mirrored version of a photo: where its windows are, and their mask logits side by side."""

    def __init__(self, size: tuple[int, ...], flipped: bool, window: int, stride: int) -> None:
        self.size, self.flipped, self.window = size, flipped, window
        self.tops, self.lefts = (anchors(length, window, stride) for length in size)
        self.masks_mnK = torch.empty(0)

    def receive(self, number: int, masks_Kab: Tensor, patch: int, shape: tuple[int, ...]) -> None:
        """Mask logits of one window; ``shape`` is that of the photo."""
        K, a, b = masks_Kab.shape
        if self.masks_mnK.numel() == 0:
            places = (len(self.tops) * a, len(self.lefts) * b, K)
            self.masks_mnK = torch.empty(places, dtype=torch.float32, device=masks_Kab.device)
            self.rows = _Axis(self.tops, self.window, patch, self.size[0], shape[0], False)
            self.columns = _Axis(self.lefts, self.window, patch, self.size[1], shape[1], self.flipped)
        y, x = divmod(number, len(self.lefts))
        self.masks_mnK[y * a : (y + 1) * a, x * b : (x + 1) * b] = masks_Kab.permute(1, 2, 0)

    def strip(self, rows: slice) -> Tensor:
        """Logits of some rows of the photo, not yet resized along the columns: (R, n, K)."""
        part_Rm, used = self.rows.part(rows)
        return (part_Rm.to(self.masks_mnK) @ self.masks_mnK[used].flatten(1)).unflatten(1, self.masks_mnK.shape[1:])


class _Photo:
    """A photo whose windows are on their way through a model."""

    def __init__(self, unseen: Iterator[tuple[Image, bool]], shape: tuple[int, ...]) -> None:
        self.unseen, self.shape = unseen, shape
        self.views: list[_View] = []
        self.waiting = 0  # windows whose masks are not known yet
        self.cut = False  # there are no more windows

    def windows(self, device: torch.device, window: int, stride: int) -> Iterator[tuple[_View, int, Tensor]]:
        """View, number in it, and pixels (1, C, window, window) in [0, 1]; only one resized image is held at a time."""
        for image_hw3, flipped in self.unseen:
            writable_hw3 = np.require(image_hw3, requirements=["C", "W"])  # what torch takes; a copy where it is not
            image_13hw = torch.from_numpy(writable_hw3).to(device).permute(2, 0, 1)[None]
            if min(image_13hw.shape[2:]) < window:
                image_13hw = enlarge(image_13hw.float().div(255), window)
            view = _View(image_13hw.shape[2:], flipped, window, stride)
            self.views.append(view)
            for number, (y, x) in enumerate((top, left) for top in view.tops for left in view.lefts):
                start = view.size[1] - window - x if flipped else x  # windows are mirrored, never a whole large photo
                crop_13ww = image_13hw[:, :, y : y + window, start : start + window]
                pixels_13ww = crop_13ww if crop_13ww.is_floating_point() else crop_13ww.float().div(255)
                self.waiting += 1
                yield view, number, pixels_13ww.flip(3) if flipped else pixels_13ww
        self.cut = True

    def labels(self) -> Tensor:
        """The most probable class, (H, W) int64."""
        label_HW = torch.empty(self.shape, dtype=torch.int64, device=self.views[0].masks_mnK.device)
        with full_precision(label_HW.device):
            for rows, columns, block_RSK in self._tiles(normalised=len(self.views) > 1):
                label_HW[rows, columns] = block_RSK.argmax(2)
        return label_HW

    def probabilities(self) -> Tensor:
        """Their mean over the views, (K, H, W) float32."""
        masks_mnK = self.views[0].masks_mnK
        result_KHW = masks_mnK.new_empty((masks_mnK.shape[2], *self.shape))
        with full_precision(masks_mnK.device):
            for rows, columns, block_RSK in self._tiles(normalised=True):
                result_KHW[:, rows, columns] = block_RSK.permute(2, 0, 1)
        return result_KHW

    def _tiles(self, normalised: bool) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns, and mean probabilities there (R, S, K); or, of a single view, logits."""
        device, K = self.views[0].masks_mnK.device, self.views[0].masks_mnK.shape[2]
        size, width = (_ON_CPU[0] * torch.get_num_threads(), _ON_CPU[1]) if device.type == "cpu" else _ELSEWHERE
        all_columns = list(_slices(self.shape[1], width))
        parts = [[view.columns.part(columns) for columns in all_columns] for view in self.views]
        parts = [[(part_Sn.to(device), used) for part_Sn, used in of_view] for of_view in parts]
        for rows in _slices(self.shape[0], max(1, size // (K * min(width, self.shape[1])))):
            strips = [view.strip(rows) for view in self.views]
            for place, columns in enumerate(all_columns):
                total_RSK = torch.empty(0)
                for strip_RnK, of_view in zip(strips, parts, strict=True):
                    part_Sn, used = of_view[place]
                    block_RSK = torch.bmm(part_Sn.expand(len(strip_RnK), -1, -1), strip_RnK[:, used])
                    block_RSK = block_RSK.softmax(2) if normalised else block_RSK
                    total_RSK = total_RSK.add_(block_RSK) if total_RSK.numel() else block_RSK
                yield rows, columns, total_RSK.div_(len(self.views)) if len(self.views) > 1 else total_RSK


def _through(model: nn.Module, photos: Iterable[_Photo], window: int, stride: int, batch: int) -> Iterator[_Photo]:
    """Photos in order, each when the masks of all its windows are known."""
    device = device_of(model)
    queue: deque[_Photo] = deque()
    chosen: list[tuple[_Photo, _View, int, Tensor]] = []

    def forward() -> None:
        crops_B3ww = torch.cat([crop_13ww for *_, crop_13ww in chosen])
        if isinstance(model, Segmentor):
            masks_BKab, patch = model.masks(crops_B3ww), model.encoder.patch_size
        else:
            masks_BKab, patch = model(crops_B3ww), 1
        for (photo, view, number, _), masks_Kab in zip(chosen, masks_BKab, strict=True):
            view.receive(number, masks_Kab, patch, photo.shape)
            photo.waiting -= 1
        chosen.clear()

    for photo in photos:
        queue.append(photo)
        for view, number, crop_13ww in photo.windows(device, window, stride):
            chosen.append((photo, view, number, crop_13ww))
            if len(chosen) == batch:
                forward()
        while queue and queue[0].cut and queue[0].waiting == 0:
            yield queue.popleft()
    if chosen:
        forward()
    yield from queue


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
