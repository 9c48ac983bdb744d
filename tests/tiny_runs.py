"""Runs without training, of models so small that a test evaluates many of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from child_runs import TINY

from whitebox.config import RunConfig, resolve
from whitebox.data.shapes import CLASSES
from whitebox.engine.checkpoint import save_model
from whitebox.models import DECODERS, Segmentor, build

CLOSED = {name: each for name, each in DECODERS.items() if not each.open_vocabulary}  # decoders of given classes


def configured(model: str, **changes: Any) -> RunConfig:
    """The configuration of a tiny model on a few shapes; changes with ``__`` for the dot."""
    tiny = {key: value for key, value in TINY.items() if key != "decoder.head_dim" or not model.startswith("seg")}
    return resolve(model, "shapes", {**tiny, **{key.replace("__", "."): value for key, value in changes.items()}})


def tiny_model(config: RunConfig, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> Segmentor:
    """A model whose weights are large enough for its predictions to differ from place to place."""
    torch.manual_seed(seed)
    model = build(config.encoder, config.decoder, len(classes), classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def tiny_run(folder: Path, model: str = "depict-sa-tiny", seed: int = 0, **changes: Any) -> Path:
    """A folder with weights."""
    config = configured(model, **changes)
    save_model(folder / "model.safetensors", tiny_model(config, seed), config)
    return folder
