"""DEPICT-CA: patch tokens compress themselves, then class embeddings move towards their principal directions.

Paper: Wen and Li, "Rethinking Decoders for Transformer-based Semantic Segmentation: A Compression Perspective",
arXiv 2411.03033 (NeurIPS 2024). Official code: ``QishuaiWen/DEPICT``, ``model/decoder.py`` in mode ``ca``.

    Z_{l+1} = Z_l + step_l * MSSA(LayerNorm(Z_l) | U_l);   Z = LayerNorm(Z_L)
    Q_{l+1} = Q_l + step_l * MSCA(Q_l, LayerNorm_l(Z) | V_l);   masks = cosine(Z, LayerNorm(Q_L))

As in the official code the query of the cross-attention is not normalised, and there are 3 cross-attention layers of
subspace dimension 50 whatever the number of self-attention layers. For ViT-L, 6 self-attention layers are our choice,
by analogy to DEPICT-SA (configs/models/depict-ca-large.yaml). No deliberate deviation from the official code.

Shapes: B batch, N patch tokens, D width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from whitebox.errors import require
from whitebox.models.attention import SubspaceAttention
from whitebox.models.decoders.base import QueryDecoder


@dataclass(frozen=True, kw_only=True)
class DepictCAConfig:
    """Hyper-parameters of DEPICT-CA."""

    name: str = "depict-ca"
    layers: int = 3
    heads: int = 3
    head_dim: int = 100
    cross_layers: int = 3
    cross_head_dim: int = 50
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for key in ("layers", "heads", "head_dim", "cross_layers", "cross_head_dim"):
            require(getattr(self, key) >= 1, f"decoder.{key}", getattr(self, key), "it must be at least 1")
        require(0 <= self.dropout < 1, "decoder.dropout", self.dropout, "it lies in [0, 1)")


class DepictCA(QueryDecoder):
    """MSSA layers on patch tokens, then MSCA layers on class embeddings."""

    Config = DepictCAConfig

    def __init__(self, config: DepictCAConfig, width: int, num_classes: int) -> None:
        super().__init__(config, width, num_classes)
        self.layers = nn.ModuleList(
            SubspaceAttention(width, config.heads, config.head_dim, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.cross_layers = nn.ModuleList(
            SubspaceAttention(width, config.heads, config.cross_head_dim, config.dropout)
            for _ in range(config.cross_layers)
        )
        self.class_norm = nn.LayerNorm(width)

    def forward(self, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        z_BND = self.input(z_BND)
        for layer in self.layers:
            z_BND = layer(z_BND)
        z_BND = self.norm(z_BND)
        q_BKD = self.class_embeddings.expand(z_BND.shape[0], -1, -1)
        for layer in self.cross_layers:
            q_BKD = layer(z_BND, query=q_BKD)
        return self.masks(z_BND, self.class_norm(q_BKD), grid)
