"""``create_model`` and ``load_model``: the two ways to a model."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from whitebox.config import RunConfig, resolve
from whitebox.engine.checkpoint import load_weights
from whitebox.engine.header import weights_file
from whitebox.interop.sed import is_sed, load_sed
from whitebox.interop.segm import load_official
from whitebox.interop.segvit import is_segvit, load_segvit
from whitebox.models import Segmentor, build
from whitebox.models.weights import read_pickle

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
            ``variant.yml`` (or the folder of both), a released SegViT ``.pth``, or SED's
            ``model_final.pth``. Loading is strict; what matched is
            logged and kept as ``model.load_report``.

    Raises:
        CheckpointError: missing, cut short, unsafe, or made for another model.
    """
    model, _ = load_run(Path(path))
    log.info("%s", model.load_report)
    return model


def load_run(path: Path) -> tuple[Segmentor, RunConfig]:
    """As ``load_model``, with the configuration the weights were trained with."""
    path = weights_file(path)
    if path.suffix == ".safetensors":
        return load_weights(path)
    checkpoint = read_pickle(path)
    for belongs, load in ((is_sed, load_sed), (is_segvit, load_segvit)):
        if belongs(checkpoint):
            return load(checkpoint, str(path))
    return load_official(path)
