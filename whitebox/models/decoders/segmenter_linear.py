"""Segmenter with a linear decoder: every patch token is classified by itself.

Paper: Strudel et al., "Segmenter: Transformer for Semantic Segmentation", ICCV 2021, section 3.2 (linear decoder).
Official code: ``rstrudel/segmenter``, ``segm/model/decoder.py``. No deliberate deviation.

Shapes: B batch, N patch tokens, D width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from whitebox.models.decoders.base import Decoder, init_weights
from whitebox.models.taps import Tap


@dataclass(frozen=True, kw_only=True)
class SegmenterLinearConfig:
    """The linear decoder has no hyper-parameters."""

    name: str = "segmenter-linear"


class SegmenterLinear(Decoder):
    """One linear layer."""

    Config = SegmenterLinearConfig

    def __init__(self, config: SegmenterLinearConfig, width: int, num_classes: int) -> None:
        super().__init__(config, width, num_classes)
        self.input = Tap()
        self.head = nn.Linear(width, num_classes)
        self.apply(init_weights)

    def forward(self, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        masks_BNK = self.head(self.input(z_BND))
        return masks_BNK.transpose(1, 2).unflatten(2, grid)
