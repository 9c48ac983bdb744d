"""Sliding windows, scales and flips, averaged as the official ``segm.model.utils.inference`` does.

For each scale and flip: resize the uint8 image, enlarge it when its short side is below the window, forward windows,
average logits where windows overlap, resize the logits to the original image, undo the flip, softmax. The result is
the mean of these probabilities. Where the windows are is said in ``whitebox.engine.windows``, how what a model says of
them is put together in ``whitebox.engine.assembly``; windows of one photo after another share batches
(``whitebox.engine.queue``).

Without windows (``inference.window=null``) a view is shown whole, in one pass: it is its only window, of its own size,
never enlarged. Views of the same size that follow each other share batches. This equals ``mode='whole'`` of
mmsegmentation where that pads to whole patches.

Deviations that change nothing beyond float32 rounding: the above; flipping and enlarging act on pixels in [0, 1], as
the model normalises (both commute with it). Deviation from the official code: the model is always in eval mode.

Shapes: B windows, C colours, K classes, H W pixels of the original image, h w of the resized one, v u of a window.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from whitebox.config import DataConfig, InferenceConfig
from whitebox.engine.assembly import WindowedPhoto, kind_of
from whitebox.engine.queue import predict, through
from whitebox.engine.windows import Image, views_of
from whitebox.errors import ConfigError


def segment(model: nn.Module, image_HW3: Image, inference: InferenceConfig, data: DataConfig | None = None) -> Tensor:
    """Class probabilities of a photo of any size.

    Args:
        model: images (B, 3, H, W), RGB in [0, 1] -> logits (B, K, H, W). It runs in eval mode and is left as it was.
        image_HW3: RGB uint8.
        data: resizes as this dataset's evaluation does (``resize``, ``max_ratio``); None: the photo's own size.

    Returns:
        (K, H, W) float32 on the model's device, sums to 1 over K (but of a model whose masks are independent).

    Raises:
        DataError: the image is not (H, W, 3) uint8.
    """
    views, shape = views_of(image_HW3, inference, data), image_HW3.shape[:2]
    window, stride = inference.window, inference.stride
    with rejecting(model, inference.topk):
        return probabilities(model, views, shape, window, stride, inference.batch, inference.scores)


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
    for photo in seen_photos(model, images, inference, data):
        yield photo.labels()


@torch.inference_mode()
def seen_photos(
    model: nn.Module, images: Iterable[Image], inference: InferenceConfig, data: DataConfig | None = None
) -> Iterator[WindowedPhoto]:
    """One photo after another, each when the model has seen all its windows; see :func:`predict_many`."""
    photos = (photo_for(model, image_HW3, inference, data) for image_HW3 in images)
    with evaluating(model), rejecting(model, inference.topk):
        take = partial(predict, model)
        yield from through(photos, device_of(model), inference.window, inference.stride, inference.batch, take)


def photo_for(model: nn.Module, image_HW3: Image, inference: InferenceConfig, data: DataConfig | None) -> WindowedPhoto:
    """A photo whose windows are to go :func:`through` a model."""
    return WindowedPhoto(views_of(image_HW3, inference, data), image_HW3.shape[:2], kind_of(model, inference.scores))


class Window(NamedTuple):
    """What a model sees of a photo in one forward pass."""

    pixels_13vu: Tensor  # in [0, 1]
    size: tuple[int, ...]  # (h, w) of the resized photo it is cut from
    top: int  # px in the resized photo
    left: int


def windows(
    image_HW3: Image, inference: InferenceConfig, data: DataConfig | None, device: torch.device
) -> Iterator[Window]:
    """The windows that :func:`predict_labels` shows a model at scale 1, unmirrored."""
    single = replace(inference, scales=[1.0], flip=False)
    photo = WindowedPhoto(views_of(image_HW3, single, data), image_HW3.shape[:2])
    for view, number, pixels_13vu in photo.windows(device, inference.window, inference.stride):
        y, x = divmod(number, len(view.lefts))
        yield Window(pixels_13vu, view.size, view.tops[y], view.lefts[x])


@torch.inference_mode()
def probabilities(
    model: nn.Module,
    views: Iterable[tuple[Image, bool]],
    shape: tuple[int, ...],
    window: int | None,
    stride: int | None,
    batch: int = 1,
    scores: str = "shares",
) -> Tensor:
    """Mean class probabilities over resized versions of one image.

    Args:
        views: the image (h, w, 3) uint8 at some scale, and whether the model is to see it mirrored.
        shape: (H, W) of the original image.
        window, stride: px; None: each version whole.
        batch: windows in one forward pass; the result does not depend on it beyond rounding.
        scores: how those of a model that gives scores become probabilities, ``shares`` or ``softmax``.

    Returns:
        (K, H, W) float32 on the model's device.
    """
    with evaluating(model):
        photos = [WindowedPhoto(iter(views), shape, kind_of(model, scores))]
        (photo,) = through(photos, device_of(model), window, stride, batch, partial(predict, model))
        return photo.probabilities()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode (no dropout, no drop path) inside the block; each module is as before after it."""
    training = [module for module in model.modules() if module.training]
    if training:  # to say it again to hundreds of modules takes milliseconds, and a sweep asks for each of its rows
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def rejecting(model: nn.Module, topk: int | None) -> Iterator[None]:
    """Early rejection of an open-vocabulary model inside the block; None: as the model is.

    Raises:
        ConfigError: the model rejects no classes, or has fewer than ``topk``.
    """
    if topk is None:
        yield
        return
    decoder: Any = getattr(model, "decoder", None)
    if not hasattr(decoder, "topk"):
        raise ConfigError(f"inference.topk={topk} is impossible: only open-vocabulary models (SED) reject classes.")
    if topk > model.num_classes:  # type: ignore[operator]
        raise ConfigError(f"inference.topk={topk} is impossible: there are {model.num_classes} classes.")
    before, decoder.topk = decoder.topk, topk
    try:
        yield
    finally:
        decoder.topk = before


def device_of(model: nn.Module) -> torch.device:
    """Device of the model's parameters."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
