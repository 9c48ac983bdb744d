"""Evaluate a model on a dataset: per-image pixel counts, from which every score and interval follows.

Shapes: N images, K classes, H W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from whitebox.config import DataConfig, InferenceConfig
from whitebox.data.dataset import SegmentationDataset
from whitebox.data.loading import ErrorsAsValues, default_workers, each, serve
from whitebox.engine.inference import evaluating, predict_many
from whitebox.engine.metrics import Intervals, Scores, bootstrap, image_counts, scores
from whitebox.errors import ConfigError, DataError, ModelError, WhiteboxError
from whitebox.models import OpenSegmentor
from whitebox.models.segmentor import unnamed_classes
from whitebox.names import fits_label_set
from whitebox.text import composed


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
    """What an evaluation found: names of the N images and their counts (intersection, prediction, label).

    ``mean_over``: which classes the mean IoU is over, see :func:`whitebox.engine.metrics.scores`.
    """

    names: tuple[str, ...]
    counts_N3K: NDArray[np.int64]
    mean_over: str = "occurring"

    @property
    def scores(self) -> Scores:
        """mIoU, mAcc, aAcc and per-class scores over all images."""
        return scores(self.counts_N3K, self.mean_over)

    def bootstrap(self, resamples: int = 1000, seed: int = 0, level: float = 0.95) -> Intervals:
        """Percentile intervals over images, see :func:`whitebox.engine.metrics.bootstrap`."""
        return bootstrap(self.counts_N3K, resamples, seed, level, self.mean_over)


def evaluate(
    model: nn.Module,
    dataset: LabelledImages,
    inference: InferenceConfig,
    data: DataConfig | None = None,
    *,
    limit: int | None = None,
    workers: int | None = None,
    on_image: Callable[[int, LabelledImage, Tensor], None] | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Evaluation:
    """Predict every image and count pixels per class; windows of several images share batches.

    Memory does not grow with the number of images beyond their counts. The model is left in the mode it was in.

    Args:
        model: has ``num_classes``; runs on the device its parameters are on.
        dataset: without augmentation.
        data: how images are resized before inference; None: not at all.
        limit: only the first images, for a quick look.
        workers: processes that decode images meanwhile; None: half the cores, at most 8.
        on_image: called after each image with its index, its sample, and the prediction (H, W) int64 on the device.
        shard: (r, n): only images r, r + n, ... of the dataset; see ``whitebox.engine.distributed``.

    Raises:
        ModelError: model and dataset have different classes.
        DataError: there are no images, or one cannot be read, or its label does not fit it or the classes.
        ConfigError: ``limit`` below 1.
    """
    known, total = len(dataset.classes), images_to_evaluate(model, dataset, limit)
    names: list[str] = []
    counts: list[Tensor] = []
    indices = range(shard[0], total, shard[1])
    samples: deque[LabelledImage] = deque()  # read, but not predicted yet

    def images() -> Iterator[NDArray[np.uint8]]:
        for sample in read_images(dataset, indices, workers):
            samples.append(sample)
            yield sample.image.permute(1, 2, 0).numpy()

    with evaluating(model):
        for index, prediction_HW in zip(indices, predict_many(model, images(), inference, data), strict=True):
            sample = samples.popleft()
            if model.num_classes > known:  # type: ignore[operator]
                prediction_HW = prediction_HW.clamp(max=known - 1)
            try:
                label_HW = sample.label.to(prediction_HW.device)
                counted = image_counts(prediction_HW, label_HW, known, dataset.ignore_index)
            except DataError as error:
                raise DataError(f"{sample.name}: {error}") from error
            names.append(sample.name)
            counts.append(counted.cpu())
            if on_image is not None:
                on_image(index, sample, prediction_HW)
    counts_N3K = torch.stack(counts).numpy() if counts else np.zeros((0, 3, known), np.int64)
    return Evaluation(tuple(names), counts_N3K, "occurring" if data is None else data.mean_over)


def images_to_evaluate(model: nn.Module, dataset: LabelledImages, limit: int | None) -> int:
    """How many images of ``dataset`` an evaluation takes.

    Raises:
        ModelError, DataError, ConfigError: as :func:`evaluate`, before anything is read.
    """
    known, wanted = int(model.num_classes), len(dataset.classes)  # type: ignore[arg-type]
    if isinstance(model, OpenSegmentor):
        if not fits_label_set(model.classes, dataset.classes):
            raise ModelError(
                f"The vocabulary has {known} names and the label set {wanted} ({', '.join(dataset.classes[:3])}, ...): "
                "give one name for each of its classes, in their order."
            )
    elif known != wanted:
        raise ModelError(
            f"The model has {known} classes and the dataset has {wanted} ({', '.join(dataset.classes[:3])}, ...): "
            "evaluate on the dataset the model was trained for."
        )
    called = tuple(getattr(model, "classes", dataset.classes))
    if not isinstance(model, OpenSegmentor) and tuple(map(composed, called)) not in (
        tuple(map(composed, dataset.classes)),
        unnamed_classes(known),
    ):  # some official checkpoints do not say their classes
        index = next(index for index in range(known) if called[index] != dataset.classes[index])
        raise ModelError(
            f"Class {index} is {called[index]!r} for the model and {dataset.classes[index]!r} in the dataset: "
            "evaluate on the dataset the model was trained for."
        )
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit} is impossible: it must be at least 1.")
    total = len(dataset) if limit is None else min(limit, len(dataset))
    if total == 0:
        raise DataError("The dataset has no images to evaluate: check its folder and split.")
    if isinstance(dataset, SegmentationDataset):
        dataset.look_at_labels(limit)
    return total


def _same(sample: Any) -> Any:
    return sample


def read_images(dataset: LabelledImages, indices: range, workers: int | None = None) -> Iterator[LabelledImage]:
    """The images of a dataset, one after another, read ahead by other processes.

    Args:
        workers: processes; None: half the cores, at most 8.

    Raises:
        DataError: an image or label cannot be read.
    """
    workers = default_workers() if workers is None else workers
    loader = DataLoader(
        ErrorsAsValues(dataset, len(dataset)),
        batch_size=None,
        sampler=indices,
        collate_fn=_same,
        num_workers=min(workers, len(indices)),
        worker_init_fn=serve,
    )
    for sample in each(loader):
        if isinstance(sample, WhiteboxError):
            raise sample
        yield sample
