"""ToST as a decoder: patch tokens and class embeddings compress by their second moments.

Paper of the operator: Wu et al., "Token Statistics Transformer: Linear-Time Attention via Variational Rate Reduction",
arXiv 2412.17810 (ICLR 2025). Official code: ``RobinWu218/ToST``, ``tost_vision/tost.py``.

    Z_0 = [patches, class embeddings]
    Z_{l+1} = Z_l + TSSA(LayerNorm(Z_l) | U_l, W_l);   masks = cosine(LayerNorm(Z_L))

The operator, linear in the number of tokens and without a map of tokens by tokens, is
``whitebox.models.attention.TSSA``.

No paper defines this decoder: noise curves of a "ToST" beside DEPICT and CBT are published, its layers, heads and code
are not. Assumed here, so that only the operator differs from DEPICT-SA:

- the frame of DEPICT-SA: 3 layers (6 for ViT-L), 3 heads of 100 dimensions, LayerNorm eps 1e-5, cosine masks;
- no MLP and no layer scale, which ToST's classifier has after and around the operator;
- no bias in the projection (ToST's classifier has one, CBSA's copy of the operator has none), so that heads are
  subspaces;
- weights start as in CBSA's decoder.

Shapes: B batch, N tokens (patches and classes), D width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from whitebox.errors import require
from whitebox.models.attention import TSSA
from whitebox.models.decoders.base import JoinedDecoder


@dataclass(frozen=True, kw_only=True)
class ToSTConfig:
    """Hyper-parameters of the ToST decoder."""

    name: str = "tost"
    layers: int = 3
    heads: int = 3
    head_dim: int = 100

    def __post_init__(self) -> None:
        for key in ("layers", "heads", "head_dim"):
            require(getattr(self, key) >= 1, f"decoder.{key}", getattr(self, key), "it must be at least 1")


class ToSTDecoder(JoinedDecoder):
    """Token-statistics layers on [patch tokens, class embeddings]."""

    Config = ToSTConfig

    def layer(self, config: ToSTConfig, width: int) -> nn.Module:
        return TSSA(width, config.heads, config.head_dim)
