"""Activation checkpointing: layers that keep their input alone for the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from whitebox.models import Segmentor


class _Recomputed:
    """A layer's forward that keeps its input alone and runs again in the backward pass."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, **kwargs)


def recompute_layers(model: Segmentor) -> None:
    """Activation checkpointing of every encoder block and decoder layer: less memory, more time, equal gradients."""
    layers = model.encoder.blocks()
    for name in ("layers", "cross_layers"):
        layers += list(getattr(model.decoder, name, ()))
    for layer in layers:
        layer.forward = _Recomputed(layer.forward)
