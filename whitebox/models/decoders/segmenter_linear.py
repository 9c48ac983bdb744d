"""Segmenter with a linear decoder: every patch token is classified by itself.

Paper: Strudel et al., "Segmenter: Transformer for Semantic Segmentation", ICCV 2021, section 3.2 (linear decoder).
Official code: ``rstrudel/segmenter``, ``segm/model/decoder.py``. No deliberate deviation.

``batch_norm`` and ``dropout`` make it the linear probe of DINOv2 (Oquab et al. 2024, arXiv 2304.07193, section 7.4) and
DINOv3 (Simeoni et al. 2025, arXiv 2508.10104): batch normalisation of the tokens, whole channels of an image dropped,
then the linear layer (mmsegmentation's 1 x 1 convolution). The statistics are those of the images that one process has
in one forward pass.

Shapes: B batch, N patch tokens, D width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from whitebox.errors import require
from whitebox.models.decoders.base import Decoder, init_weights
from whitebox.models.taps import Tap


@dataclass(frozen=True, kw_only=True)
class SegmenterLinearConfig:
    """What stands before the linear layer; in the official decoder nothing."""

    name: str = "segmenter-linear"
    batch_norm: bool = False
    dropout: float = 0.0  # probability that a channel of an image is dropped

    def __post_init__(self) -> None:
        require(0 <= self.dropout < 1, "decoder.dropout", self.dropout, "it lies in [0, 1)")


class SegmenterLinear(Decoder):
    """One linear layer, maybe behind batch normalisation and dropout."""

    Config = SegmenterLinearConfig

    def __init__(self, config: SegmenterLinearConfig, width: int, num_classes: int) -> None:
        super().__init__(config, width, num_classes)
        self.input = Tap()
        self.norm = nn.BatchNorm1d(width) if config.batch_norm else nn.Identity()
        self.dropout = nn.Dropout1d(config.dropout)
        self.head = nn.Linear(width, num_classes)
        self.apply(init_weights)

    def forward(self, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        z_BDN = self.dropout(self.norm(self.input(z_BND).transpose(1, 2)))
        masks_BNK = self.head(z_BDN.transpose(1, 2))
        return masks_BNK.transpose(1, 2).unflatten(2, grid)
