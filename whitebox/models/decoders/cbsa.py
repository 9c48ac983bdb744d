"""CBSA, the decoder of CBT: patch tokens and class embeddings compress through a few representatives.

Paper: Wen, Huang and Li, "Towards Interpretable and Efficient Attention: Compressing All by Contracting a Few",
arXiv 2509.16875 (NeurIPS 2025). Official code: ``QishuaiWen/CBSA``,
``CBSA_semantic_segmentation/segm/model/{decoder,dec_blocks}.py``.

    Z_0 = [patches, class embeddings]
    Z_{l+1} = Z_l + CBSA(LayerNorm(Z_l) | U_l, W_l);   masks = cosine(LayerNorm(Z_L))

The operator, linear in the number of tokens, is ``whitebox.models.attention.CBSA``. The published cost (1.5, 2.3, 7.8
and 22.3 GFLOPs for ViT-T, S, B and L) needs layers x heads of 9, 9, 18 and 27: with the 3 heads of 100 dimensions of
the released code, 3 layers for T and S, 6 for B and 9 for L (configs/models/cbsa-{base,large}.yaml). Only the products
are known; the split is our choice.

Deliberate deviations from the official code, which fixes 150 classes, a square grid and 10 x 10 representatives:

- Any number of classes, any grid, any pooling grid. Where the official code runs as it was meant to, results are equal.
- A grid of 8 x 18 patches is pooled as 8 x 18. The official code takes the root of the number of patches, so it pools
  144 tokens of any grid as if they were 12 x 12; for a number that is no square it fails.

Shapes: B batch, N tokens (patches and classes), D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from whitebox.errors import require
from whitebox.models.attention import CBSA
from whitebox.models.decoders.base import JoinedDecoder


@dataclass(frozen=True, kw_only=True)
class CBSAConfig:
    """Hyper-parameters of the CBSA decoder."""

    name: str = "cbsa"
    layers: int = 3
    heads: int = 3
    head_dim: int = 100
    pool: int = 10  # representatives are means over pool x pool cells

    def __post_init__(self) -> None:
        for key in ("layers", "heads", "head_dim", "pool"):
            require(getattr(self, key) >= 1, f"decoder.{key}", getattr(self, key), "it must be at least 1")


class CBSADecoder(JoinedDecoder):
    """Contract-and-broadcast layers on [patch tokens, class embeddings]."""

    Config = CBSAConfig

    def layer(self, config: CBSAConfig, width: int) -> nn.Module:
        return CBSA(width, config.heads, config.head_dim, config.pool)

    def refine(self, layer: nn.Module, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        return cast(Tensor, layer(z_BND, grid))
