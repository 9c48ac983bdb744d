"""Small models in training mode, with stochastic depth, and their gradients."""

from __future__ import annotations

import torch

from whitebox.config import resolve
from whitebox.models import Segmentor, build

MODELS = ("depict-sa-tiny", "depict-ca-tiny", "segmenter-mask-tiny", "segmenter-linear-tiny")


def model(name: str, drop_path: float = 0.5) -> Segmentor:
    size = {"encoder.width": 48, "encoder.depth": 3, "encoder.heads": 3, "encoder.image_size": 32}
    config = resolve(name, "shapes", {**size, "encoder.drop_path": drop_path})
    torch.manual_seed(0)
    return build(config.encoder, config.decoder, 4).train()


def gradients(of: Segmentor, images: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    of(images).square().sum().backward()
    return {name: value.grad for name, value in of.named_parameters() if value.grad is not None}
