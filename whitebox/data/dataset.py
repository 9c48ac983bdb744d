"""The images of a split as PyTorch takes them. Shapes: H, W pixels; C crop size in pixels."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from whitebox.config import DataConfig
from whitebox.data.augment import augment as augment_pair
from whitebox.data.augment import random_key
from whitebox.data.images import IGNORE
from whitebox.data.learnable import look_at_labels
from whitebox.data.readers import Classes, Palette, Source, reader_of
from whitebox.errors import ConfigError, DataError, require


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
        self.held_out_256 = None if mean_255 is None else held_out_table(config, source.classes)
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
        if self.held_out_256 is not None:
            label = np.asarray(cv2.LUT(label.astype(np.uint8, copy=False), self.held_out_256))
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


def held_out_table(config: DataConfig, classes: Classes) -> NDArray[np.uint8] | None:
    """What becomes of each label value in training: `IGNORE` of classes that are held out; None: nothing changes.

    Raises:
        ConfigError: there is no such class, or fewer than two are left.
    """
    for name in config.held_out:
        require(name in classes, "data.held_out", name, f"{config.name} has {', '.join(classes[:30])}")
    if not config.held_out:
        return None
    left = len(classes) - len(set(config.held_out))
    require(left >= 2, "data.held_out", config.held_out, "two classes at least must be left to learn")
    table_256 = np.arange(256, dtype=np.uint8)
    table_256[[classes.index(name) for name in config.held_out]] = IGNORE
    return table_256


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
