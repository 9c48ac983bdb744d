"""Transforms of detectron2, which open-vocabulary papers use (CAT-Seg, SED): resizing by Pillow, colours of SSD.

    resize (short side) -> crop -> colours -> flip -> pad with grey

Written from a description of the official code (detectron2 02b5c4e, and SED's mapper), and equal to it on equal draws.
Random numbers come from a key, as in ``whitebox.data.augment``.

Shapes: H, W pixels; C crop size in pixels.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from whitebox.config import DataConfig
from whitebox.data.images import IGNORE, UInt8

Key = npt.NDArray[np.uint32]

_GREY = 128  # pads images
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32.0, (0.5, 1.5), (0.5, 1.5), 18  # added, factors, of 180 added


def resized_sides(height: int, width: int, short: float, long: float) -> tuple[int, int]:
    """Sides after the short one becomes ``short`` px, or less where the long one would exceed ``long`` px."""
    scale = short / min(height, width)
    sides = (short, scale * width) if height < width else (scale * height, short)
    scale = min(1.0, long / max(sides))
    return max(1, int(sides[0] * scale + 0.5)), max(1, int(sides[1] * scale + 0.5))


def resize_by_short_side(image_HW3: UInt8, short: float, max_ratio: float) -> UInt8:
    """Resize an image by Pillow's bilinear filter, which averages where it shrinks."""
    height, width = image_HW3.shape[:2]
    sides = resized_sides(height, width, short, round(max_ratio * short))
    return _resize_image(image_HW3, sides)


def augment(image_HW3: UInt8, label_HW: UInt8, config: DataConfig, key: Key) -> tuple[npt.NDArray[np.float32], UInt8]:
    """One random view of an image and its label, as ``whitebox.data.augment.augment`` gives it."""
    random = np.random.RandomState(key)
    short = config.train_resize or config.resize
    ratio = config.train_max_ratio or config.max_ratio
    height, width = label_HW.shape
    sides = resized_sides(height, width, short, round(ratio * short))
    image_HW3, label_HW = _resize_image(image_HW3, sides), _resize_label(label_HW, sides)
    crop = min(config.crop, sides[0]), min(config.crop, sides[1])
    top, left = (random.randint(side - part + 1) for side, part in zip(sides, crop, strict=True))
    square = np.s_[top : top + crop[0], left : left + crop[1]]
    image_HW3, label_HW = image_HW3[square], label_HW[square]
    if config.photometric:
        image_HW3 = distort(image_HW3, random)
    if random.random_sample() < config.flip:
        image_HW3, label_HW = image_HW3[:, ::-1], label_HW[:, ::-1]
    return pad(image_HW3, label_HW, config.crop)


def pad(image_HW3: UInt8, label_HW: UInt8, crop: int) -> tuple[npt.NDArray[np.float32], UInt8]:
    """To the full square, right and below; the image becomes float32 (3, C, C) in [0, 1]."""
    height, width = label_HW.shape
    image = np.full((3, crop, crop), _GREY, np.float32)
    image[:, :height, :width] = image_HW3.transpose(2, 0, 1)
    label = np.full((crop, crop), IGNORE, label_HW.dtype)
    label[:height, :width] = label_HW
    return image / np.float32(255), label


def distort(image_HW3: UInt8, random: np.random.RandomState) -> UInt8:
    """Brightness, then contrast, saturation and hue in one of two orders; each by the toss of a coin.

    Source: SSD (Liu et al. 2016, arXiv 1512.02325), as detectron2 has it. Values are cut to whole numbers each time.
    """

    def tossed() -> bool:
        return bool(random.randint(2))

    bgr = image_HW3[..., ::-1]
    if tossed():
        bgr = _cut(bgr, offset=random.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    steps = (_contrast, _saturation, _hue) if tossed() else (_saturation, _hue, _contrast)
    for step in steps:
        if tossed():
            bgr = step(bgr, random)
    return bgr[..., ::-1]


def _contrast(bgr: UInt8, random: np.random.RandomState) -> UInt8:
    return _cut(bgr, random.uniform(*_CONTRAST))


def _saturation(bgr: UInt8, random: np.random.RandomState) -> UInt8:
    hsv = cv2.cvtColor(np.ascontiguousarray(bgr), cv2.COLOR_BGR2HSV)
    hsv[..., 1] = _cut(hsv[..., 1], random.uniform(*_SATURATION))  # type: ignore[arg-type]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)  # type: ignore[return-value]


def _hue(bgr: UInt8, random: np.random.RandomState) -> UInt8:
    hsv = cv2.cvtColor(np.ascontiguousarray(bgr), cv2.COLOR_BGR2HSV)
    hsv[..., 0] = (hsv[..., 0].astype(int) + random.randint(-_HUE, _HUE + 1)) % 180
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)  # type: ignore[return-value]


def _cut(values: UInt8, factor: float = 1.0, offset: float = 0.0) -> UInt8:
    return np.clip(values.astype(np.float32) * factor + offset, 0, 255).astype(np.uint8)


def _resize_image(image_HW3: UInt8, sides: tuple[int, int]) -> UInt8:
    if image_HW3.shape[:2] == sides:
        return image_HW3
    return np.asarray(Image.fromarray(image_HW3).resize(sides[::-1], Image.Resampling.BILINEAR))


def _resize_label(label_HW: UInt8, sides: tuple[int, int]) -> UInt8:
    """The label at each place's floor."""
    rows, columns = (
        np.minimum((np.arange(new, dtype=np.float32) * np.float32(old / new)).astype(int), old - 1)
        for old, new in zip(label_HW.shape, sides, strict=True)
    )
    return label_HW[rows[:, None], columns]
