"""Evaluate a model on a dataset: per-image pixel counts, from which every score and interval follows.

Shapes: N images, K classes, H W pixels, B bins of confidence, M entries of confusion matrices that are not 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from whitebox.config import DataConfig, InferenceConfig
from whitebox.data.dataset import SegmentationDataset
from whitebox.data.loading import ErrorsAsValues, default_workers, each, serve
from whitebox.engine.boundaries import boundary_counts
from whitebox.engine.confidence import ConfidenceCounts
from whitebox.engine.inference import device_of, evaluating, seen_photos
from whitebox.engine.metrics import Scores, confusion, counts_of, scores
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
class Kept:
    """What is counted beyond what an evaluation always counts.

    Attributes:
        boundary: pixels near the boundaries of classes, within this share of the image's diagonal; None: not.
        confidence: how sure the model is; takes the class probabilities of each pixel.
    """

    boundary: float | None = None
    confidence: bool = False


class ImageCounts(NamedTuple):
    """What is counted in one image."""

    name: str
    counts_3K: Tensor  # intersection, prediction, label
    confusion_M3: Tensor  # label, prediction and pixels, where there are any
    boundary_3K: Tensor | None = None  # see `whitebox.engine.boundaries`
    confidence_B3: Tensor | None = None  # see `whitebox.engine.confidence`
    squared_error: int = 0


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found: names of the N images and their counts (intersection, prediction, label).

    Attributes:
        mean_over: which classes the mean IoU is over, see :func:`whitebox.engine.metrics.scores`.
        confusion_M4: entries of the images' confusion matrices that are not 0: number of the image, label, prediction,
            pixels; None: they were not kept.
        boundary_N3K: see :func:`whitebox.engine.boundaries.boundary_counts`; None: not asked for.
        confidence_NB3, squared_error_N: see `whitebox.engine.confidence`; None: not asked for.
    """

    names: tuple[str, ...]
    counts_N3K: NDArray[np.int64]
    mean_over: str = "occurring"
    confusion_M4: NDArray[np.int64] | None = None
    boundary_N3K: NDArray[np.int64] | None = None
    confidence_NB3: NDArray[np.int64] | None = None
    squared_error_N: NDArray[np.int64] | None = None

    @property
    def scores(self) -> Scores:
        """mIoU, mAcc, aAcc and per-class scores over all images."""
        return scores(self.counts_N3K, self.mean_over)


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
    kept: Kept = Kept(),
) -> Evaluation:
    """Predict every image and count pixels per class; windows of several images share batches.

    Memory does not grow with the number of images beyond their counts. The model is left in the mode it was in.

    Args:
        model: has ``num_classes``; runs on the device its parameters are on.
        dataset: without augmentation.
        data: how images are resized before inference; None: not at all.
        limit: only the first images, for a quick look.
        workers: processes that decode images meanwhile; None: half the cores, at most 8, and none for a few images.
        on_image: called after each image with its index, its sample, and the prediction (H, W) int64 on the device.
        shard: (r, n): only images r, r + n, ... of the dataset; see ``whitebox.engine.distributed``.
        kept: what else to count.

    Raises:
        ModelError: model and dataset have different classes.
        DataError: there are no images, or one cannot be read, or its label does not fit it or the classes.
        ConfigError: ``limit`` below 1; or the confidence is asked for of a model with more names than classes.
    """
    images = count_images(
        model, dataset, inference, data, limit=limit, workers=workers, on_image=on_image, shard=shard, kept=kept
    )
    return evaluation_of(list(images), len(dataset.classes), data)


def evaluation_of(images: Sequence[ImageCounts], classes: int, data: DataConfig | None) -> Evaluation:
    """The evaluation of images that were counted."""

    def stacked(parts: Sequence[Tensor | None]) -> NDArray[np.int64] | None:
        return torch.stack([part for part in parts if part is not None]).numpy() if None not in parts else None

    counts_N3K = stacked([image.counts_3K for image in images]) if images else np.zeros((0, 3, classes), np.int64)
    assert counts_N3K is not None
    entries = [
        np.insert(image.confusion_M3.numpy().astype(np.int64), 0, number, axis=1) for number, image in enumerate(images)
    ]
    confidence_NB3 = stacked([image.confidence_B3 for image in images])
    return Evaluation(
        tuple(image.name for image in images),
        counts_N3K,
        "occurring" if data is None else data.mean_over,
        np.concatenate(entries) if entries else np.zeros((0, 4), np.int64),
        stacked([image.boundary_3K for image in images]),
        confidence_NB3,
        None if confidence_NB3 is None else np.array([image.squared_error for image in images], np.int64),
    )


def count_images(
    model: nn.Module,
    dataset: LabelledImages,
    inference: InferenceConfig,
    data: DataConfig | None = None,
    *,
    limit: int | None = None,
    workers: int | None = None,
    on_image: Callable[[int, LabelledImage, Tensor], None] | None = None,
    shard: tuple[int, int] = (0, 1),
    kept: Kept = Kept(),
) -> Iterator[ImageCounts]:
    """The counts of one image after another; arguments and errors are those of :func:`evaluate`."""
    known, total = len(dataset.classes), images_to_evaluate(model, dataset, limit)
    names = int(model.num_classes)  # type: ignore[arg-type]
    if kept.confidence and names > known:
        raise ConfigError(
            f"The confidence in {known} classes cannot be taken from {names} names: give one name for each class, or "
            "leave out --calibration."
        )
    indices = range(shard[0], total, shard[1])
    samples: deque[LabelledImage] = deque()  # read, but not predicted yet

    def images() -> Iterator[NDArray[np.uint8]]:
        for sample in read_images(dataset, indices, workers):
            samples.append(sample)
            yield sample.image.permute(1, 2, 0).numpy()

    with evaluating(model):
        for index, photo in zip(indices, seen_photos(model, images(), inference, data), strict=True):
            sample = samples.popleft()
            label_HW = sample.label.to(device_of(model))
            sure = ConfidenceCounts(label_HW, dataset.ignore_index) if kept.confidence else None
            with torch.inference_mode():
                prediction_HW = photo.labels(on_tile=None if sure is None else sure.see)
            if names > known:
                prediction_HW = prediction_HW.clamp(max=known - 1)
            try:
                confusion_KK = confusion(prediction_HW, label_HW, known, dataset.ignore_index)
            except DataError as error:
                raise DataError(f"{sample.name}: {error}") from error
            pairs_M2 = confusion_KK.nonzero()
            pixels_M = confusion_KK[pairs_M2[:, 0], pairs_M2[:, 1]]
            sure_B3, squared_error = (None, 0) if sure is None else sure.counts(prediction_HW)
            yield ImageCounts(
                sample.name,
                counts_of(confusion_KK).cpu(),
                torch.column_stack((pairs_M2, pixels_M)).int().cpu(),
                None
                if kept.boundary is None
                else boundary_counts(prediction_HW, label_HW, known, dataset.ignore_index, kept.boundary),
                sure_B3,
                squared_error,
            )
            if on_image is not None:
                on_image(index, sample, prediction_HW)


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


_WORTH_A_PROCESS = 5  # images that are read in the time which a process takes to start and end


def _same(sample: Any) -> Any:
    return sample


def read_images(dataset: LabelledImages, indices: range, workers: int | None = None) -> Iterator[LabelledImage]:
    """The images of a dataset, one after another, read ahead by other processes.

    Args:
        workers: processes; None: half the cores, at most 8, and none for a few images.

    Raises:
        DataError: an image or label cannot be read.
    """
    workers = min(default_workers(), len(indices) // _WORTH_A_PROCESS) if workers is None else workers
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
