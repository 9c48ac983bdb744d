"""Evaluate a model on a dataset: per-image pixel counts, from which every score and interval follows.

Shapes: N images, K classes, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from whitebox.config import DataConfig, InferenceConfig
from whitebox.data.loading import ErrorsAsValues, default_workers
from whitebox.engine.inference import evaluating, predict_labels
from whitebox.engine.metrics import Intervals, Scores, bootstrap, image_counts, scores
from whitebox.errors import ConfigError, DataError, ModelError, WhiteboxError


class LabelledImage(Protocol):
    """What evaluation needs of a sample."""

    @property
    def image(self) -> Tensor: ...  # (3, H, W) uint8, original size

    @property
    def label(self) -> Tensor: ...  # (H, W) uint8, 255 ignored

    @property
    def name(self) -> str: ...


class LabelledImages(Protocol):
    """What evaluation needs of a dataset; ``whitebox.data.build_dataset(..., augment=False)`` gives one."""

    classes: tuple[str, ...]
    ignore_index: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledImage: ...


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: names of the N images and their counts (intersection, prediction, label)."""

    names: tuple[str, ...]
    counts_N3K: NDArray[np.int64]

    @property
    def scores(self) -> Scores:
        """mIoU, mAcc, aAcc and per-class scores over all images."""
        return scores(self.counts_N3K)

    def bootstrap(self, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Intervals:
        """Percentile intervals over images, see :func:`whitebox.engine.metrics.bootstrap`."""
        return bootstrap(self.counts_N3K, resamples, seed, level)


def evaluate(
    model: nn.Module,
    dataset: LabelledImages,
    inference: InferenceConfig,
    data: DataConfig | None = None,
    *,
    limit: int | None = None,
    workers: int | None = None,
    on_image: Callable[[int, LabelledImage, Tensor], None] | None = None,
) -> Evaluation:
    """Predict every image and count pixels per class.

    Memory does not grow with the number of images beyond their counts. The model is left in the mode it was in.

    Args:
        model: has ``num_classes``; runs on the device its parameters are on.
        dataset: without augmentation.
        data: how images are resized before inference; None: not at all.
        limit: only the first images, for a quick look.
        workers: processes that decode images meanwhile; None: half the cores, at most 8.
        on_image: called after each image with its index, its sample, and the prediction (H, W) int64 on the device.

    Raises:
        ModelError: model and dataset have different numbers of classes.
        DataError: there are no images, or one cannot be read, or its label does not fit it or the classes.
        ConfigError: ``limit`` below 1.
    """
    known, wanted = int(model.num_classes), len(dataset.classes)  # type: ignore[arg-type]
    if known != wanted:
        raise ModelError(
            f"The model has {known} classes and the dataset has {wanted} ({', '.join(dataset.classes[:3])}, ...): "
            "evaluate on the dataset the model was trained for."
        )
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} is impossible: it must be at least 1.")
    total = len(dataset) if limit is None else min(limit, len(dataset))
    if total == 0:
        raise DataError("The dataset has no images to evaluate: check its folder and split.")

    names: list[str] = []
    counts: list[Tensor] = []
    with evaluating(model):
        for index, sample in enumerate(_load(dataset, total, workers)):
            image_HW3 = sample.image.permute(1, 2, 0).numpy()
            prediction_HW = predict_labels(model, image_HW3, inference, data)
            try:
                label_HW = sample.label.to(prediction_HW.device)
                counted = image_counts(prediction_HW, label_HW, known, dataset.ignore_index)
            except DataError as error:
                raise DataError(f"{sample.name}: {error}") from error
            names.append(sample.name)
            counts.append(counted.cpu())
            if on_image is not None:
                on_image(index, sample, prediction_HW)
    return Evaluation(tuple(names), torch.stack(counts).numpy())


def _same(sample: Any) -> Any:
    return sample


def _load(dataset: LabelledImages, length: int, workers: int | None) -> Iterator[LabelledImage]:
    workers = default_workers() if workers is None else workers
    loader = DataLoader(
        ErrorsAsValues(dataset, length), batch_size=None, collate_fn=_same, num_workers=min(workers, length)
    )
    for sample in loader:
        if isinstance(sample, WhiteboxError):
            raise sample
        yield sample
