"""Segmenter with the mask transformer: black-box Transformer blocks on patch tokens and class embeddings.

Paper: Strudel et al., "Segmenter: Transformer for Semantic Segmentation", ICCV 2021, section 3.2 (mask transformer).
Official code: ``rstrudel/segmenter``, ``segm/model/decoder.py``. No deliberate deviation: heads = D / 64 unless
given, hidden width 4 D, dropout 0.1, the two output projections multiply from the right.

Shapes: B batch, N patch tokens, D width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from whitebox.errors import ModelError, require
from whitebox.models.attention import MHSA, mhsa_weights
from whitebox.models.decoders.base import QueryDecoder, init_weights
from whitebox.models.taps import Readout, Tap


@dataclass(frozen=True, kw_only=True)
class SegmenterMaskConfig:
    """Hyper-parameters of the mask transformer."""

    name: str = "segmenter-mask"
    layers: int = 2
    heads: int | None = None  # None: width // 64, at least 1
    width: int | None = None  # None: the encoder's
    dropout: float = 0.1
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for key in ("layers", "heads", "width"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"decoder.{key}", value, "it must be at least 1")
        for key in ("dropout", "drop_path"):
            require(0 <= getattr(self, key) < 1, f"decoder.{key}", getattr(self, key), "it lies in [0, 1)")


class TransformerBlock(nn.Module):
    """Pre-norm Transformer block whose whole change of the tokens is its ``update``.

    Attributes:
        bases: (H, P, D), the query projection of each head, P = D / H. A black-box block has no subspaces; DEPICT
            (arXiv 2411.03033, figure 8) shows this projection in their place.
    """

    def __init__(self, width: int, heads: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = MHSA(width, heads, qkv_bias=True, attn_drop=dropout, proj_drop=dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, drop=dropout)
        self.drop_path = DropPath(drop_path)
        self.attention = Readout()
        self.update = Tap()
        self.tokens = Tap()

    @property
    def bases(self) -> Tensor:
        """Query projection, (H, P, D)."""
        query_DD = self.attn.qkv.weight[: self.attn.qkv.in_features]
        return query_DD.unflatten(0, (self.attn.num_heads, self.attn.head_dim))

    @property
    def norm(self) -> nn.LayerNorm:
        """What the attention applies to the tokens first."""
        return self.norm1

    def forward(self, z_BND: Tensor) -> Tensor:
        y_BND = self.norm1(z_BND)
        if self.attention.listening:
            self.attention(mhsa_weights(self.attn, y_BND))
        out_BND = z_BND + self.drop_path(self.attn(y_BND))
        out_BND = out_BND + self.drop_path(self.mlp(self.norm2(out_BND)))
        return cast(Tensor, self.tokens(self.update.between(z_BND, out_BND)))


class SegmenterMask(QueryDecoder):
    """Transformer blocks on [patch tokens, class embeddings]."""

    Config = SegmenterMaskConfig

    def __init__(self, config: SegmenterMaskConfig, width: int, num_classes: int) -> None:
        decoder_width = config.width or width
        super().__init__(config, decoder_width, num_classes)
        heads = config.heads or max(1, decoder_width // 64)
        if decoder_width % heads:
            raise ModelError(
                f"decoder.heads={heads} is impossible: it must divide the decoder's width {decoder_width}."
            )
        self.proj_in = nn.Linear(width, decoder_width)
        drop_paths = [config.drop_path * index / max(1, config.layers - 1) for index in range(config.layers)]
        self.layers = nn.ModuleList(TransformerBlock(decoder_width, heads, config.dropout, rate) for rate in drop_paths)
        self.norm = nn.LayerNorm(decoder_width)
        self.proj_patch = nn.Parameter(torch.randn(decoder_width, decoder_width) * decoder_width**-0.5)
        self.proj_class = nn.Parameter(torch.randn(decoder_width, decoder_width) * decoder_width**-0.5)
        self.apply(init_weights)

    def forward(self, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        z_BND = self.join(self.proj_in(z_BND))
        for layer in self.layers:
            z_BND = layer(z_BND)
        patches_BND, classes_BKD = self.split(self.norm(z_BND))
        return self.masks(patches_BND @ self.proj_patch, classes_BKD @ self.proj_class, grid)
