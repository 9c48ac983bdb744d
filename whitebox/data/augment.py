"""Training augmentation: the transforms of mmsegmentation with the parameters of Segmenter and DEPICT.

    resize -> crop -> flip -> photometric distortion -> pad

Each is equal by bit to mmsegmentation's (``RandomResize`` with ``Resize``, ``RandomCrop``, ``RandomFlip``,
``PhotoMetricDistortion``, ``Pad``), and draws the same random numbers in the same order; tests hold them equal where
mmsegmentation is installed. A sample's random numbers come from (seed, epoch, index) alone.

Shapes: H, W pixels; C crop size in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from whitebox.config import DataConfig
from whitebox.data import detectron2
from whitebox.data.images import IGNORE, UInt8

Float32 = npt.NDArray[np.float32]
Key = npt.NDArray[np.uint32]

_CROP_TRIALS = 10
_BRIGHTNESS = 32.0  # at most this much is added
_CONTRAST = _SATURATION = (0.5, 1.5)  # factors
_HUE = 18  # of 180
_VALUES = np.arange(256, dtype=np.float32)


def random_key(seed: int, epoch: int, index: int) -> Key:
    """What seeds the augmentation of one sample; independent for neighbouring seeds, epochs and indices."""
    return np.random.SeedSequence(seed, spawn_key=(epoch, index)).generate_state(8, np.uint32)  # type: ignore[return-value]


def augment(
    image_HW3: UInt8, label_HW: UInt8, config: DataConfig, mean_255: Sequence[float], key: Key
) -> tuple[Float32, UInt8]:
    """One random view of an image and its label.

    Args:
        image_HW3: RGB, uint8.
        label_HW: class indices, 255 ignored.
        config: sizes and strengths; ``transforms``: those of ``whitebox.data.detectron2`` instead.
        mean_255: the model's mean pixel, RGB, 0..255; it pads the image, and is zero once the model has normalised it.
        key: of ``random_key``.

    Returns:
        Image float32 (3, C, C) in [0, 1] and label uint8 (C, C), C = ``config.crop``.

    Raises:
        cv2.error: one side would have no pixel left after resizing.
    """
    if config.transforms == "detectron2":
        return detectron2.augment(image_HW3, label_HW, config, key)
    random = np.random.RandomState(key)
    longest = int((config.train_max_ratio or config.max_ratio) * config.resize)
    low, high = (float(end) for end in config.scale_range)
    image_HW3, label_HW = _resize(image_HW3, label_HW, longest, config.resize, low, high, random)
    image_HW3, label_HW = _crop(image_HW3, label_HW, config.crop, config.cat_max_ratio, random)
    if random.random_sample() < config.flip:
        image_HW3, label_HW = cv2.flip(image_HW3, 1), cv2.flip(label_HW, 1)  # type: ignore[assignment]
    if config.photometric:
        image_HW3 = _distort(image_HW3, random)
    return _pad(image_HW3, label_HW, config.crop, mean_255)


def _resize(
    image_HW3: UInt8,
    label_HW: UInt8,
    longest: int,
    shortest: int,
    low: float,
    high: float,
    random: np.random.RandomState,
) -> tuple[UInt8, UInt8]:
    """As large as fits the box of ``longest`` x ``shortest`` px times a factor from ``low`` to ``high``."""
    factor = random.random_sample() * (high - low) + low
    box = sorted((int(longest * factor), int(shortest * factor)))
    height, width = label_HW.shape
    scale = min(box[1] / max(height, width), box[0] / min(height, width))
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    image = cv2.resize(image_HW3, size, interpolation=cv2.INTER_LINEAR)
    return image, cv2.resize(label_HW, size, interpolation=cv2.INTER_NEAREST)  # type: ignore[return-value]


def _crop(
    image_HW3: UInt8, label_HW: UInt8, crop: int, cat_max_ratio: float, random: np.random.RandomState
) -> tuple[UInt8, UInt8]:
    """A square, drawn again up to ten times while one class has ``cat_max_ratio`` of its labelled pixels or more."""
    height, width = label_HW.shape
    trials = _CROP_TRIALS if cat_max_ratio < 1 else 0
    for trial in range(trials + 1):
        top = random.randint(0, max(height - crop, 0) + 1)
        left = random.randint(0, max(width - crop, 0) + 1)
        square = np.s_[top : top + crop, left : left + crop]
        if trial == trials or _is_mixed(label_HW[square], cat_max_ratio):
            break
    return image_HW3[square], label_HW[square]


def _is_mixed(label_HW: UInt8, cat_max_ratio: float) -> bool:
    counts = cv2.calcHist([label_HW], [0], None, [IGNORE], [0, IGNORE])  # float32, exact up to 2^24 pixels
    return bool(np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio)


def _distort(image_HW3: UInt8, random: np.random.RandomState) -> UInt8:
    """Brightness, contrast, saturation and hue, each changed or not by the toss of a coin."""
    if random.randint(2):
        image_HW3 = _scaled(image_HW3, 1, random.uniform(-_BRIGHTNESS, _BRIGHTNESS))
    contrast_first = random.randint(2)
    if contrast_first and random.randint(2):
        image_HW3 = _scaled(image_HW3, random.uniform(*_CONTRAST))
    if random.randint(2):
        hsv_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2HSV)
        hsv_HW3[..., 1] = _scaled(hsv_HW3[..., 1], random.uniform(*_SATURATION))  # type: ignore[arg-type]
        image_HW3 = cv2.cvtColor(hsv_HW3, cv2.COLOR_HSV2RGB)  # type: ignore[assignment]
    if random.randint(2):
        hsv_HW3 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2HSV)
        turned = (np.arange(256) + random.randint(-_HUE, _HUE)) % 180
        hsv_HW3[..., 0] = cv2.LUT(hsv_HW3[..., 0], turned.astype(np.uint8))
        image_HW3 = cv2.cvtColor(hsv_HW3, cv2.COLOR_HSV2RGB)  # type: ignore[assignment]
    if not contrast_first and random.randint(2):
        image_HW3 = _scaled(image_HW3, random.uniform(*_CONTRAST))
    return image_HW3


def _scaled(values: UInt8, factor: float, offset: float = 0) -> UInt8:
    """``values * factor + offset`` in float32, clipped and cut to whole numbers: one look-up a value."""
    table_256 = np.clip(_VALUES * factor + offset, 0, 255).astype(np.uint8)
    return cv2.LUT(values, table_256)  # type: ignore[return-value]


def _pad(image_HW3: UInt8, label_HW: UInt8, crop: int, mean_255: Sequence[float]) -> tuple[Float32, UInt8]:
    """To the full square, right and below: the image with the mean pixel, the label with 255."""
    height, width = label_HW.shape
    image = np.empty((3, crop, crop), np.float32)
    image[:] = (np.asarray(mean_255, np.float32) / np.float32(255))[:, None, None]
    image[:, :height, :width] = image_HW3.transpose(2, 0, 1)
    image[:, :height, :width] /= 255
    label = np.full((crop, crop), IGNORE, np.uint8)
    label[:height, :width] = label_HW
    return image, label
