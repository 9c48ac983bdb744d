"""Models: readable, testable and usable without data, engine or configuration files."""

from __future__ import annotations

from typing import Any

from whitebox.errors import ModelError
from whitebox.models.decoders import DECODERS, Decoder
from whitebox.models.encoder import Encoder, EncoderConfig
from whitebox.models.interventions import intervene
from whitebox.models.segmentor import Segmentor
from whitebox.models.taps import Tap, record, tap_names

__all__ = [
    "DECODERS",
    "Decoder",
    "Encoder",
    "EncoderConfig",
    "Segmentor",
    "Tap",
    "build",
    "intervene",
    "record",
    "tap_names",
]


def build(
    encoder: EncoderConfig,
    decoder: Any,
    num_classes: int,
    classes: tuple[str, ...] = (),
    palette: tuple[tuple[int, int, int], ...] = (),
) -> Segmentor:
    """A ``Segmentor`` from the config dataclasses of its two halves.

    Raises:
        ModelError: the number of classes is impossible, or timm cannot build the encoder.
    """
    if num_classes < 1:
        raise ModelError(f"num_classes={num_classes} is impossible: a model needs at least one class.")
    built = Encoder(encoder)
    return Segmentor(built, DECODERS[decoder.name].beside(built, decoder, num_classes), classes, palette)
