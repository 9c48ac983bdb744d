"""CRATE as a decoder: patch tokens and class embeddings are compressed, then sparsified.

Paper of the layers: Yu et al., "White-Box Transformers via Sparse Rate Reduction", NeurIPS 2023, arXiv 2306.01129.
Official code: ``Ma-Lab-Berkeley/CRATE``, ``model/crate.py``.

    Z_0 = [patches, class embeddings]
    Y_l = Z_l + W_l softmax(U_l^T LayerNorm(Z_l) ...)                         MSSA, lowers the coding rate
    Z_{l+1} = relu(X + s D^T (X - D X) - s lambda),  X = LayerNorm(Y_l)       ISTA, one step of a non-negative lasso
    masks = cosine(LayerNorm(Z_L))

As in the official code the output map W_l is a matrix of its own with a bias, which the step of MSSA is part of, s =
lambda = 0.1 are fixed, and there is no residual around ISTA: what leaves a layer is non-negative, and the share of its
zeros is the layer's sparsity (``decoder.layers.{l}.sparse``).

No paper defines this decoder. Assumed here: the frame of DEPICT-SA (3 layers, 6 for ViT-L, 3 heads of 100 dimensions,
cosine masks), linear layers initialised as in CBSA's decoder, dictionaries as in CRATE. The official code leaves W_l
out where one head spans the whole width; here it is always there.

Shapes: B batch, N tokens (patches and classes), D width, H heads, P subspace dimension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from whitebox.errors import require
from whitebox.models.attention import UntiedSubspaces, attention_weights
from whitebox.models.decoders.base import JoinedDecoder
from whitebox.models.taps import Readout, Tap


@dataclass(frozen=True, kw_only=True)
class CrateConfig:
    """Hyper-parameters of the CRATE decoder."""

    name: str = "crate"
    layers: int = 3
    heads: int = 3
    head_dim: int = 100
    ista_step: float = 0.1  # s
    sparsity: float = 0.1  # lambda, the weight of the l1 norm

    def __post_init__(self) -> None:
        for key in ("layers", "heads", "head_dim"):
            require(getattr(self, key) >= 1, f"decoder.{key}", getattr(self, key), "it must be at least 1")
        require(self.ista_step > 0, "decoder.ista_step", self.ista_step, "it must be above 0")
        require(self.sparsity >= 0, "decoder.sparsity", self.sparsity, "it cannot be negative")


def ista(x_BND: Tensor, dictionary_DD: Tensor, step: float, sparsity: float) -> Tensor:
    """One proximal gradient step, from a = x, on 1/2 |x - D a|^2 + sparsity |a|_1 with a >= 0 (CRATE, section 2.4)."""
    residual_BND = x_BND - x_BND @ dictionary_DD.T
    return F.relu(x_BND + step * (residual_BND @ dictionary_DD) - step * sparsity)


class CrateLayer(UntiedSubspaces):
    """MSSA with an output map of its own, then ISTA.

    Attributes:
        dictionary: (D, D).
    """

    def __init__(self, width: int, heads: int, head_dim: int, ista_step: float, sparsity: float) -> None:
        super().__init__(width, heads, head_dim)
        self.ista_step = ista_step
        self.sparsity = sparsity
        self.sparse_norm = nn.LayerNorm(width)
        self.dictionary = nn.Parameter(torch.empty(width, width))
        nn.init.kaiming_uniform_(self.dictionary)
        self.projected = Tap()
        self.attention = Readout()
        self.compressed = Tap()
        self.sparse = Tap()
        self.update = Tap()
        self.tokens = Tap()

    def forward(self, z_BND: Tensor) -> Tensor:
        scale = self.head_dim**-0.5
        w_BHNP = self.projected(self.project(self.norm(z_BND)))
        if self.attention.listening:
            self.attention(attention_weights(w_BHNP, w_BHNP, scale))
        out_BHNP = F.scaled_dot_product_attention(w_BHNP, w_BHNP, w_BHNP, scale=scale)
        y_BND = self.compressed(z_BND + self.lift(out_BHNP))
        out_BND = self.sparse(ista(self.sparse_norm(y_BND), self.dictionary, self.ista_step, self.sparsity))
        return cast(Tensor, self.tokens(self.update.between(z_BND, out_BND)))


class CrateDecoder(JoinedDecoder):
    """Compression and sparsification layers on [patch tokens, class embeddings]."""

    Config = CrateConfig

    def layer(self, config: CrateConfig, width: int) -> nn.Module:
        return CrateLayer(width, config.heads, config.head_dim, config.ista_step, config.sparsity)
