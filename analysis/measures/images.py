"""What measurements show a model: the windows of evaluation with the labels of their patches, and whole photos.

Shapes: B windows of one image, h w patch grid, H W pixels, N images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from analysis.record import Data, fingerprint
from whitebox.data import build_dataset
from whitebox.data.images import IGNORE, read_image
from whitebox.engine.evaluate import read_images
from whitebox.engine.inference import device_of, evaluating, windows
from whitebox.engine.windows import resize_image
from whitebox.errors import ConfigError, DataError, ModelError
from whitebox.runs import Run

Progress = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True)
class Sample:
    """One labelled image as evaluation shows it to the model.

    Attributes:
        pixels_B3HW: its windows, in [0, 1], on the model's device.
        labels_Bhw: the class most of a patch's labelled pixels have, 255 where none is labelled; on the CPU.
    """

    name: str
    pixels_B3HW: Tensor
    labels_Bhw: Tensor


class Samples:
    """The images of one split, windowed as evaluation windows them (one scale, unmirrored); the model in eval mode.

    Iterating reads images ahead in other processes; memory does not grow with their number.

    Args:
        split: None: the validation split of the run's dataset.
        limit: only the first images.

    Raises:
        ConfigError: ``limit`` below 1, or an unknown dataset or split.
        DataError: there are no images, or one cannot be read.
        ModelError: model and dataset have different numbers of classes.
    """

    def __init__(self, run: Run, split: str | None = None, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ConfigError(f"--limit {limit} is impossible: it must be at least 1.")
        self.run = run
        self.split = split or run.config.data.val_split
        self.dataset = build_dataset(run.config.data, self.split, augment=False)
        self.names = self.dataset.names[:limit]
        if not self.names:
            raise DataError(f"The split {self.split} of {run.config.data.name} has no images: check its folder.")
        if len(self.dataset.classes) != run.model.num_classes:
            raise ModelError(
                f"{run.name} has {run.model.num_classes} classes and {run.config.data.name} has "
                f"{len(self.dataset.classes)}: measure on the dataset the model was trained for (--dataset)."
            )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def data(self) -> Data:
        """For the record. The fingerprint covers the images' names."""
        pairs = [(name, index) for index, name in enumerate(self.names)]
        return Data(self.run.config.data.name, self.split, len(self), fingerprint(pairs))

    @property
    def settings(self) -> dict[str, Any]:
        """How the images are shown, for the record."""
        data, inference = self.run.config.data, self.run.config.inference
        return {
            "resize": data.resize,
            "max_ratio": data.max_ratio,
            "window": inference.window,
            "stride": inference.stride,
        }

    @torch.inference_mode()  # between samples the caller is in its own mode, also where it never asks for the next
    def each(self, advance: Progress | None = None) -> Iterator[Sample]:
        """One sample after another; ``advance`` is called after each."""
        device, patch = device_of(self.run.model), self.run.model.encoder.patch_size
        inference, data = self.run.config.inference, self.run.config.data
        with evaluating(self.run.model):
            for done, image in enumerate(read_images(self.dataset, range(len(self))), start=1):
                label_HW = image.label.numpy()
                pixels, labels = [], []
                for window in windows(image.image.permute(1, 2, 0).numpy(), inference, data, device):
                    height, width = window.size
                    view_hw = np.asarray(
                        cv2.resize(label_HW, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8
                    )
                    rows, columns = window.pixels_13vu.shape[2:]
                    below, right = window.top + rows, window.left + columns
                    labels.append(patch_labels(view_hw[window.top : below, window.left : right], patch))
                    pixels.append(window.pixels_13vu)
                yield Sample(image.name, torch.cat(pixels), torch.stack(labels))
                if advance is not None:
                    advance(done, len(self))


def patch_labels(label_HW: NDArray[np.uint8], patch: int) -> Tensor:
    """The most frequent class among the labelled pixels of each patch, (h, w) int64; 255 where no pixel is labelled.

    Of equally frequent classes the one of the lower index counts. The border is padded with 255 to whole patches.
    """
    label = torch.from_numpy(np.ascontiguousarray(label_HW)).long()
    H, W = label.shape
    label = F.pad(label, (0, -W % patch, 0, -H % patch), value=IGNORE)
    h, w = label.shape[0] // patch, label.shape[1] // patch
    pixels = label.unflatten(1, (w, patch)).unflatten(0, (h, patch)).transpose(1, 2).flatten(2).flatten(0, 1)
    counts = torch.zeros(h * w, IGNORE + 1, dtype=torch.int64).scatter_add_(1, pixels, torch.ones_like(pixels))
    counts[:, IGNORE] = 0
    winner = counts.argmax(1)
    winner[counts.sum(1) == 0] = IGNORE
    return winner.unflatten(0, (h, w))


def photo_settings(run: Run) -> dict[str, Any]:
    """How photos are shown to a run, for the record."""
    return {"resize": run.config.data.resize, "max_ratio": run.config.data.max_ratio}


@dataclass(frozen=True)
class Photo:
    """A photo as one forward pass sees it: resized as for evaluation, not cut into windows.

    Attributes:
        image_HW3: the photo, RGB uint8, original size.
        pixels_13hw: resized, in [0, 1], on the model's device.
        grid: (h, w) of its patches, including the padding at the bottom and right.
    """

    path: Path
    image_HW3: NDArray[np.uint8]
    pixels_13hw: Tensor
    patch: int

    @property
    def grid(self) -> tuple[int, int]:
        height, width = self.pixels_13hw.shape[-2:]
        return -(-height // self.patch), -(-width // self.patch)


def open_photo(path: Path, run: Run) -> Photo:
    """Read a photo and resize it as the run's evaluation does.

    Raises:
        DataError: it cannot be read.
    """
    image_HW3 = read_image(path)
    data = run.config.data
    resized_hw3 = resize_image(image_HW3, data.resize, max_ratio=data.max_ratio)
    pixels_13hw = torch.from_numpy(np.ascontiguousarray(resized_hw3)).permute(2, 0, 1)[None].float().div(255)
    return Photo(path, image_HW3, pixels_13hw.to(device_of(run.model)), run.model.encoder.patch_size)


def to_photo(values_Chw: Tensor, shown: tuple[int, int], size: tuple[int, int], patch: int, mode: str) -> Tensor:
    """Values of a patch grid at the pixels of the original photo, (C, H, W).

    Patches are enlarged to their pixels, the padding is cut off, the rest is resized.

    Args:
        shown: (height, width) px of the resized photo the grid belongs to.
        size: (H, W) px of the original photo.
        mode: ``nearest`` or ``bilinear``, for both steps.
    """
    h, w = values_Chw.shape[-2:]
    exact = {} if mode == "nearest" else {"align_corners": False}
    padded = F.interpolate(values_Chw[None].float(), (h * patch, w * patch), mode=mode, **exact)
    return F.interpolate(padded[..., : shown[0], : shown[1]], size, mode=mode, **exact)[0]
