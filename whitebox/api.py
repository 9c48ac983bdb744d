"""``create_model`` and ``load_model``, the two ways to a model; ``segment``, what it says of a photo."""

from __future__ import annotations

import io
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from whitebox.config import DataConfig, InferenceConfig, RunConfig, resolve
from whitebox.data.images import read_image
from whitebox.engine.checkpoint import load_weights
from whitebox.engine.inference import predict_labels
from whitebox.files import write_atomically
from whitebox.interop.hub import weights_of
from whitebox.interop.sed import is_sed, load_sed
from whitebox.interop.segm import load_official
from whitebox.interop.segvit import is_segvit, load_segvit
from whitebox.models import Segmentor, build
from whitebox.models.weights import read_pickle
from whitebox.pictures import as_labels, overlay, save_label

log = logging.getLogger("whitebox")


def create_model(name: str, num_classes: int, **overrides: Any) -> Segmentor:
    """A new model.

    Args:
        name: as listed by ``whitebox models``, e.g. ``depict-ca-tiny``.
        num_classes: K.
        overrides: configuration keys, nested (``encoder={"depth": 6}``) or dotted (``**{"decoder.layers": 2}``);
            ``encoder="dinov2-small"``: another encoder, a name of ``whitebox encoders`` or of timm.

    Raises:
        ConfigError: unknown name or key, wrong type, impossible value.
        ModelError: the model cannot be built, or its pretrained weights cannot be had.
    """
    config = resolve(name, overrides=overrides)
    return build(config.encoder, config.decoder, num_classes)


def load_model(path: str | os.PathLike[str]) -> Segmentor:
    """A model with its weights, in evaluation mode, on the CPU.

    Args:
        path: a run folder, a ``.safetensors`` file written by whitebox, an official ``checkpoint.pth`` beside its
            ``variant.yml`` (or the folder of both), a released SegViT ``.pth``, SED's ``model_final.pth``, or
            ``hf-hub:ORG/NAME[@REVISION]``, which is fetched. Loading is strict; what matched is logged and kept as
            ``model.load_report``.

    Raises:
        CheckpointError: missing, cut short, unsafe, or made for another model.
    """
    model, config = load_run(Path(path))
    model.configuration = config
    log.info("%s", model.load_report)
    return model


@dataclass(frozen=True, repr=False)
class Segmentation:
    """What a model says of a photo. In a notebook it shows itself: classes over the photo, and a legend.

    Attributes:
        image: RGB uint8, (H, W, 3).
        labels: index of the class of each pixel, (H, W).
        classes, palette: K names and RGB triples.
    """

    image: NDArray[np.uint8]
    labels: NDArray[np.integer[Any]]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the photo of each class that is in it, largest first."""
        pixels_K = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        found = {name: float(pixels_K[index] / self.labels.size) for index, name in enumerate(self.classes)}
        return {name: share for name, share in sorted(found.items(), key=lambda each: -each[1]) if share > 0}

    def overlay(self, alpha: float = 0.5) -> NDArray[np.uint8]:
        """Classes over the photo at opacity ``alpha``, and below it a legend; RGB uint8."""
        return overlay(self.image, self.labels, self.palette, self.classes, alpha)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the classes as a palette PNG, as ``whitebox predict`` does.

        Raises:
            OutputError: it cannot be written.
        """
        write_atomically(Path(path), lambda target: save_label(self.labels, self.palette, target, "PNG"))

    def __repr__(self) -> str:
        height, width = self.labels.shape
        shares = list(self.shares.items())
        most = ", ".join(f"{name} {share:.0%}" for name, share in shares[:4])
        more = f", and {len(shares) - 4} more classes" if len(shares) > 4 else ""
        return f"<Segmentation, {width} x {height} px: {most}{more}>"

    def _repr_png_(self) -> bytes:
        written = io.BytesIO()
        Image.fromarray(self.overlay()).save(written, "PNG")
        return written.getvalue()


def segment(
    model: Segmentor | str | os.PathLike[str],
    image: Any,
    *,
    inference: InferenceConfig | None = None,
    data: DataConfig | None = None,
) -> Segmentation:
    """Segment one photo, as ``whitebox predict`` does.

    Args:
        model: a model, or what ``load_model`` takes.
        image: a file, or RGB uint8 (H, W, 3) of NumPy or Pillow.
        inference, data: windows and scales, and how the photo is resized before; None: those of the model's training,
            and for a new model the photo as it is, whole.

    Raises:
        CheckpointError: see ``load_model``.
        DataError: the photo cannot be read, or has another shape or type.
    """
    opened = model if isinstance(model, Segmentor) else load_model(model)
    known = opened.configuration
    if inference is None:
        inference = InferenceConfig(window=None, stride=None) if known is None else known.inference
    data = known.data if data is None and known is not None else data
    photo_HW3 = read_image(Path(image)) if isinstance(image, str | os.PathLike) else np.asarray(image)
    label_HW = predict_labels(opened, photo_HW3, inference, data).cpu().numpy()
    return Segmentation(photo_HW3, as_labels(label_HW, opened.classes), opened.classes, opened.palette)


def load_run(path: Path) -> tuple[Segmentor, RunConfig]:
    """As ``load_model``, with the configuration the weights were trained with."""
    path = weights_of(path)
    if path.suffix == ".safetensors":
        return load_weights(path)
    checkpoint = read_pickle(path)
    for belongs, load in ((is_sed, load_sed), (is_segvit, load_segvit)):
        if belongs(checkpoint):
            return load(checkpoint, str(path))
    return load_official(path)
