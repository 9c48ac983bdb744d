"""Models: readable, testable and usable without data, engine or configuration files."""

from __future__ import annotations

from typing import Any

from whitebox.errors import ModelError
from whitebox.memory import keep_imported
from whitebox.models.clip import PRESETS, CLIPConfig, CLIPEncoder
from whitebox.models.decoders import DECODERS, Decoder
from whitebox.models.encoder import Encoder, EncoderConfig
from whitebox.models.interventions import intervene
from whitebox.models.open_vocabulary import OpenSegmentor
from whitebox.models.segmentor import Segmentor
from whitebox.models.sizes import LARGEST, bounded, require_sizes
from whitebox.models.taps import Tap, changeable, record, replace, tap_names

__all__ = [
    "DECODERS",
    "CLIPConfig",
    "CLIPEncoder",
    "Decoder",
    "Encoder",
    "EncoderConfig",
    "OpenSegmentor",
    "Segmentor",
    "Tap",
    "build",
    "changeable",
    "encoder_config",
    "intervene",
    "record",
    "replace",
    "tap_names",
]
keep_imported()  # of our libraries the largest are here now


def encoder_config(name: str) -> EncoderConfig | CLIPConfig:
    """The configuration of an encoder by name, otherwise as it is by default."""
    return CLIPConfig(name=name) if name in PRESETS else EncoderConfig(name=name)


def build(
    encoder: EncoderConfig | CLIPConfig,
    decoder: Any,
    num_classes: int,
    classes: tuple[str, ...] = (),
    palette: tuple[tuple[int, int, int], ...] = (),
    parameters: int | None = None,
) -> Segmentor:
    """A ``Segmentor`` from the config dataclasses of its two halves.

    Args:
        parameters: those of a file that is to be loaded, see ``bounded``; None: memory is the limit.

    Raises:
        ConfigError: a size is beyond what any model has.
        ModelError: the number of classes is impossible, timm cannot build the encoder, or memory does not suffice.
    """
    if num_classes < 1:
        raise ModelError(f"num_classes={num_classes} is impossible: a model needs at least one class.")
    require_sizes("encoder", encoder)
    require_sizes("decoder", decoder)
    if num_classes > LARGEST:
        raise ModelError(f"num_classes={num_classes} is impossible: it can be {LARGEST} at most.")
    with bounded(parameters):
        built: Any = CLIPEncoder(encoder) if isinstance(encoder, CLIPConfig) else Encoder(encoder)
        made = DECODERS[decoder.name].beside(built, decoder, num_classes)
        kind = OpenSegmentor if made.open_vocabulary else Segmentor
        return kind(built, made, classes, palette, built_from=(encoder, decoder, num_classes))
