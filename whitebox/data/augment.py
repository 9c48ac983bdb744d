"""Training augmentation: mmsegmentation's transforms with the parameters of Segmenter and DEPICT.

    RandomResize -> RandomCrop -> RandomFlip -> PhotoMetricDistortion -> pad

The transforms draw from NumPy's global generator. Here they run on a state made from (seed, epoch, index), and the
state that was there before comes back, so that a sample depends on nothing else.

Shapes: H, W pixels; C crop size in pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from whitebox.config import DataConfig
from whitebox.data.images import IGNORE, UInt8
from whitebox.data.quiet import mmseg_datasets, quiet

Float32 = npt.NDArray[np.float32]


def random_key(seed: int, epoch: int, index: int) -> npt.NDArray[np.uint32]:
    """What seeds the augmentation of one sample; independent for neighbouring seeds, epochs and indices."""
    return np.random.SeedSequence(seed, spawn_key=(epoch, index)).generate_state(8, np.uint32)  # type: ignore[return-value]


@contextmanager
def numpy_seeded(key: npt.NDArray[np.uint32]) -> Iterator[None]:
    """Inside the block NumPy's global generator starts from ``key``; after it, it goes on from where it was."""
    before = np.random.get_state()  # noqa: NPY002, it is what the transforms draw from
    np.random.seed(key)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


@functools.lru_cache(maxsize=8)
def _transforms(
    scale: tuple[int, int],
    ratio_range: tuple[float, float],
    crop: int,
    cat_max_ratio: float,
    flip: float,
    photometric: bool,
) -> tuple[Callable[[dict[str, Any]], dict[str, Any]], ...]:
    """Built once a process, also in the workers of a data loader, so that a dataset stays small to pickle."""
    mmseg = mmseg_datasets()
    with quiet():
        from mmcv.transforms import RandomResize
        from mmseg.datasets.transforms.transforms import RandomFlip

        chain = [
            RandomResize(scale=scale, ratio_range=ratio_range, resize_type="mmseg.Resize", keep_ratio=True),
            mmseg.RandomCrop(crop_size=(crop, crop), cat_max_ratio=cat_max_ratio, ignore_index=IGNORE),
            RandomFlip(prob=float(flip)),
        ]
        if photometric:
            chain.append(mmseg.PhotoMetricDistortion())
    return tuple(chain)


def augment(
    image_HW3: UInt8,
    label_HW: UInt8,
    config: DataConfig,
    mean_255: Sequence[float],
    key: npt.NDArray[np.uint32],
) -> tuple[Float32, UInt8]:
    """One random view of an image and its label.

    Args:
        image_HW3: RGB, uint8.
        label_HW: class indices, 255 ignored.
        config: sizes and strengths.
        mean_255: the model's mean pixel, RGB, 0..255; it pads the image, and is zero once the model has normalised it.
        key: of ``random_key``.

    Returns:
        Image float32 (3, C, C) in [0, 1] and label uint8 (C, C), C = ``config.crop``.

    Raises:
        cv2.error: one side would have no pixel left after resizing.
    """
    low, high = config.scale_range
    chain = _transforms(
        (int((config.train_max_ratio or config.max_ratio) * config.resize), config.resize),
        (float(low), float(high)),
        config.crop,
        config.cat_max_ratio,
        config.flip,
        config.photometric,
    )
    # Photometric distortion takes BGR, in mmsegmentation and in the official code, which turn to RGB afterwards.
    results: dict[str, Any] = {
        "img": cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR),
        "gt_seg_map": label_HW,
        "seg_fields": ["gt_seg_map"],
        "img_shape": image_HW3.shape[:2],
    }
    with numpy_seeded(key):
        for transform in chain:
            results = transform(results)
    view, view_label = results["img"][..., ::-1], results["gt_seg_map"]

    height, width = view.shape[:2]
    image = np.empty((3, config.crop, config.crop), np.float32)
    image[:] = (np.asarray(mean_255, np.float32) / np.float32(255))[:, None, None]
    image[:, :height, :width] = view.transpose(2, 0, 1)
    image[:, :height, :width] /= 255
    label = np.full((config.crop, config.crop), IGNORE, np.uint8)
    label[:height, :width] = view_label
    return image, label
