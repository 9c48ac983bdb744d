"""The images of a split as PyTorch takes them. Shapes: H, W pixels; C crop size in pixels."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from whitebox.config import DataConfig
from whitebox.data.augment import augment as augment_pair
from whitebox.data.augment import random_key
from whitebox.data.images import IGNORE
from whitebox.data.learnable import look_at_labels
from whitebox.data.readers import Classes, Palette, Source, reader_of
from whitebox.errors import ConfigError, DataError


class Sample(NamedTuple):
    """One image with its label; a data loader stacks them into a ``Sample`` of batches."""

    image: Tensor
    label: Tensor
    name: str


class SegmentationDataset(Dataset[Sample]):
    """Images and labels of one split.

    ``dataset[index]`` or ``dataset[epoch, index]`` gives a ``Sample``:

    - plain: image uint8 (3, H, W), RGB, and label uint8 (H, W), at the size they are stored in; more than 254 classes
      make a label int32, and 65535 is ignored;
    - augmented: image float32 (3, C, C) in [0, 1], padded with the mean pixel, and label uint8 (C, C), padded with 255;
      a pure function of (seed, epoch, index).

    Label values are class indices or ``ignore_index``. Files are opened when a sample is asked for; ``DataError`` then
    names a file that cannot be used.
    """

    def __init__(self, config: DataConfig, source: Source, seed: int, mean_255: tuple[float, ...] | None) -> None:
        self.config, self.source, self.seed, self.mean_255 = config, source, seed, mean_255
        self.classes: Classes = source.classes
        self.palette: Palette = source.palette
        self.names: list[str] = source.names
        self.ignore_index = source.ignore
        self.split = ""
        self._looked: dict[int | None, list[str]] = {}

    def look_at_labels(self, limit: int | None = None) -> list[str]:
        """As ``whitebox.data.learnable.look_at_labels``, once.

        Raises:
            DataError: see there.
        """
        if limit not in self._looked:
            self._looked[limit] = look_at_labels(self.source, self.split, limit=limit)
        return self._looked[limit]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a dataset of {len(self)} images")
        name = self.names[index]
        image, label = self.source.load(index)
        if self.mean_255 is None:
            image_3HW = np.ascontiguousarray(image.transpose(2, 0, 1))
            plain = label if label.dtype == np.uint8 else label.astype(np.int32)  # torch does little with uint16
            return Sample(torch.from_numpy(image_3HW), torch.from_numpy(plain), name)
        try:
            random_state = random_key(self.seed, epoch, index)
            view, view_label = augment_pair(
                image, label.astype(np.uint8, copy=False), self.config, self.mean_255, random_state
            )
        except cv2.error:
            raise DataError(
                f"Image {name} of dataset {self.config.name} is {image.shape[1]} x {image.shape[0]} px, too narrow to "
                "be resized: a side would vanish; remove it, or raise data.max_ratio."
            ) from None
        return Sample(torch.from_numpy(view), torch.from_numpy(view_label), name)


def build_dataset(
    config: DataConfig,
    split: str,
    *,
    augment: bool,
    seed: int = 0,
    mean_255: tuple[float, float, float] | None = None,
) -> SegmentationDataset:
    """The images of one split.

    Args:
        config: which dataset, where, and how it is augmented.
        split: ``train``, ``val`` or ``test``, whatever the dataset's owners call it; usually ``config.train_split`` or
            ``config.val_split``. ``folder``: a sub-folder, or ``.`` for all.
        augment: random views for training, else whole images.
        seed: of the augmentation, 0 or more.
        mean_255: the model's mean pixel, RGB, 0..255; needed to augment.

    Raises:
        ConfigError: unknown kind or split, or a palette that does not fit.
        DataError: folders, images or labels that are missing.
    """
    if augment and mean_255 is None:
        raise ValueError("augment=True needs mean_255, the model's mean pixel")
    source = reader_of(config).source(config, split)
    if augment and source.ignore != IGNORE:
        raise ConfigError(f"Dataset {config.name} has labels of 16 bits, which are for evaluation only.")
    dataset = SegmentationDataset(config, source, seed, mean_255 if augment else None)
    dataset.split = split
    return dataset
