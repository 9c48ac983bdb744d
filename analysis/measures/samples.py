"""What measurements show a model: the windows of evaluation with the labels of their patches, and whole photos.

Shapes: B windows of one image, h w patch grid, H W pixels, N images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.maths.patches import patch_labels
from analysis.measurement import Progress
from whitebox.config import InferenceConfig
from whitebox.data.fingerprint import checksums
from whitebox.data.images import IGNORE, UInt8, read_image, read_label
from whitebox.engine.evaluate import LabelledImages, read_images
from whitebox.engine.inference import device_of, evaluating, rejecting, windows
from whitebox.engine.kept import tokens_kept
from whitebox.engine.windows import views_of
from whitebox.errors import DataError
from whitebox.models.decoders.base import class_scores
from whitebox.runs import Run


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


@torch.inference_mode()  # between samples the caller is in its own mode, also where it never asks for the next
def samples(run: Run, dataset: LabelledImages, indices: range, advance: Progress | None = None) -> Iterator[Sample]:
    """Some images, windowed as evaluation windows them (one scale, unmirrored); the model in eval mode.

    Images are read ahead in other processes; memory does not grow with their number. Until the last is done with, the
    model takes tokens of a fixed encoder that are kept, and adds new ones (`tokens_kept`).

    Args:
        advance: called after each.

    Raises:
        DataError: an image cannot be read.
    """
    model, device = run.model, device_of(run.model)
    inference, data = run.config.inference, run.config.data
    with evaluating(model), tokens_kept(model, run.config.store):
        for done, image in enumerate(read_images(dataset, indices), start=1):
            label_HW = image.label.numpy()
            pixels, labels = [], []
            for window in windows(image.image.permute(1, 2, 0).numpy(), inference, data, device):
                height, width = window.size
                view_hw = np.asarray(cv2.resize(label_HW, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)
                rows, columns = window.pixels_13vu.shape[2:]
                part_vu = view_hw[window.top : window.top + rows, window.left : window.left + columns]
                pixels.append(model.view(window.pixels_13vu))
                part_vu = _resized(part_vu, pixels[-1].shape[2:])
                labels.append(patch_labels(part_vu, model.place, model.encoder.patch_size))
            yield Sample(image.name, torch.cat(pixels), torch.stack(labels))
            if advance is not None:
                advance(done, len(indices))


def _resized(label_HW: UInt8, size: Sequence[int]) -> UInt8:
    """A label at another size (h, w); of pixels between two the nearest counts."""
    height, width = size
    return np.asarray(cv2.resize(label_HW, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


@dataclass(frozen=True)
class Photo:
    """A photo as one forward pass sees it: resized as for evaluation, not cut into windows.

    Attributes:
        image_HW3: the photo, RGB uint8, original size.
        pixels_13hw: resized, in [0, 1], on the model's device.
        patch: px, side of a place of the masks.
        whole: px, to whose multiples it is padded at the bottom and right.
    """

    path: Path
    image_HW3: NDArray[np.uint8]
    pixels_13hw: Tensor
    patch: int
    whole: int

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of its patches, including the padding."""
        height, width = (-(-side // self.whole) * self.whole for side in self.pixels_13hw.shape[-2:])
        return height // self.patch, width // self.patch

    def labels(self, label_HW: UInt8) -> Tensor:
        """The classes of its patches, (h, w), from those of its pixels at any size."""
        return patch_labels(_resized(label_HW, self.pixels_13hw.shape[-2:]), self.patch, self.whole)


def open_photo(path: Path, run: Run) -> Photo:
    """Read a photo and resize it as the run's evaluation does.

    Raises:
        DataError: it cannot be read.
    """
    image_HW3, model = read_image(path), run.model
    resized_hw3, _ = next(views_of(image_HW3, InferenceConfig(), run.config.data))
    pixels_13hw = torch.from_numpy(np.ascontiguousarray(resized_hw3)).permute(2, 0, 1)[None].float().div(255)
    pixels_13hw = model.view(pixels_13hw.to(device_of(model)))
    return Photo(path, image_HW3, pixels_13hw, model.place, model.encoder.patch_size)


def describe_photo(photo: Photo) -> dict[str, Any]:
    """What a record holds of a photo: file, sizes in px (``size`` its own, ``shown`` as the model sees it), grid."""
    return {
        "path": Path(os.path.relpath(photo.path)).as_posix(),
        "sha256": checksums([photo.path])[0],
        "size": list(photo.image_HW3.shape[:2]),
        "shown": list(photo.pixels_13hw.shape[-2:]),
        "grid": list(photo.grid),
        "patch": photo.patch,
    }


def read_truth(path: Path, photo: Photo, run: Run, table_256: UInt8) -> UInt8:
    """The ground truth of a photo as class indices at its own size, (H, W); 255: not labelled.

    Args:
        table_256: class of each stored value, in the dataset the run was trained on.

    Raises:
        DataError: it cannot be read, has another size than the photo, or holds a value without a class.
    """
    stored_HW = read_label(path)
    if stored_HW.shape != photo.image_HW3.shape[:2]:
        (height, width), (own_height, own_width) = stored_HW.shape, photo.image_HW3.shape[:2]
        raise DataError(
            f"Label {path} is {width} x {height} px but the photo {photo.path} is {own_width} x {own_height} px: "
            "give both the same size, and one --truth for each photo in their order."
        )
    classes = run.model.num_classes
    label_HW = np.asarray(cv2.LUT(stored_HW, table_256), np.uint8)
    if (unknown := (label_HW >= classes) & (label_HW != IGNORE)).any():
        raise DataError(
            f"Label {path} holds the value {int(stored_HW[unknown].max())}, which none of the {classes} classes of "
            f"{run.name} has: give a label of {run.data.name}."
        )
    return label_HW


@torch.inference_mode()
def predicted_patches(run: Run, photo: Photo) -> Tensor:
    """The most probable class of each patch, (h, w) int64 on the CPU, from one forward pass over the whole photo."""
    with evaluating(run.model), rejecting(run.model, run.inference.topk):
        prediction = run.model.predict(photo.pixels_13hw)
    masks_hwK = prediction.masks_BKhw[0].permute(1, 2, 0).float()
    if prediction.shares_BKK is not None:
        masks_hwK = class_scores(masks_hwK, prediction.shares_BKK[0])
    return masks_hwK.argmax(2).cpu()
