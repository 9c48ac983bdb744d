"""Stochastic depth whose random numbers training sets.

Shapes: B batch, L layers with stochastic depth.
"""

from __future__ import annotations

from typing import cast

import torch
from timm.layers import DropPath
from torch import Tensor

from whitebox.models import Segmentor


class SampleDropPath(DropPath):
    """timm's stochastic depth with one uniform number a sample given from outside, ``uniform_B``."""

    uniform_B: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.uniform_B is None:
            return cast(Tensor, super().forward(x))
        keep = 1 - self.drop_prob
        kept_B = (self.uniform_B < keep).to(x.dtype) / keep
        return x * kept_B.view(-1, *(1,) * (x.dim() - 1))


class StochasticDepth:
    """Stochastic depth of the encoder as a function of (seed, step, place in the batch).

    Which samples skip a layer then depends neither on the number of processes nor on how a batch is split. (The
    decoders' dropout, 0 except in Segmenter's mask transformer, is drawn by each process.)
    """

    def __init__(self, model: Segmentor) -> None:
        self.layers: list[SampleDropPath] = []
        for parent in list(model.encoder.modules()):
            for name, child in parent.named_children():
                if isinstance(child, DropPath) and child.scale_by_keep:
                    self.layers.append(SampleDropPath(child.drop_prob))
                    setattr(parent, name, self.layers[-1])

    def draw(self, seed: int, batch_size: int) -> Tensor:
        """The numbers of a whole batch, (L, B), on the CPU."""
        return torch.rand(len(self.layers), batch_size, generator=torch.Generator().manual_seed(seed))

    def use(self, uniform_LB: Tensor) -> None:
        """Set the numbers of the samples that pass next."""
        for layer, uniform_B in zip(self.layers, uniform_LB, strict=True):
            layer.uniform_B = uniform_B
