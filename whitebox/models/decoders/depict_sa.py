"""DEPICT-SA: patch tokens and class embeddings compress each other in shared subspaces.

Paper: Wen and Li, "Rethinking Decoders for Transformer-based Semantic Segmentation: A Compression Perspective",
arXiv 2411.03033 (NeurIPS 2024). Official code: ``QishuaiWen/DEPICT``, ``model/decoder.py`` in mode ``sa``.

    Z_0 = [patches, class embeddings]
    Z_{l+1} = Z_l + step_l * MSSA(LayerNorm(Z_l) | U_l);   masks = cosine(LayerNorm(Z_L))

The released code fixes 3 layers, 3 heads and a subspace dimension of 100 for every size. The published cost of the
ViT-L model (34.95 GFLOPs) needs layers x heads = 18; 6 layers x 3 heads is our choice, only the product is known
(configs/models/depict-sa-large.yaml). No deliberate deviation from the official code.

Shapes: B batch, N patch tokens, D width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from whitebox.errors import require
from whitebox.models.attention import SubspaceAttention
from whitebox.models.decoders.base import JoinedDecoder


@dataclass(frozen=True, kw_only=True)
class DepictSAConfig:
    """Hyper-parameters of DEPICT-SA."""

    name: str = "depict-sa"
    layers: int = 3
    heads: int = 3
    head_dim: int = 100
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for key in ("layers", "heads", "head_dim"):
            require(getattr(self, key) >= 1, f"decoder.{key}", getattr(self, key), "it must be at least 1")
        require(0 <= self.dropout < 1, "decoder.dropout", self.dropout, "it lies in [0, 1)")


class DepictSA(JoinedDecoder):
    """MSSA layers on [patch tokens, class embeddings]."""

    Config = DepictSAConfig

    def layer(self, config: DepictSAConfig, width: int) -> nn.Module:
        return SubspaceAttention(width, config.heads, config.head_dim, config.dropout)
