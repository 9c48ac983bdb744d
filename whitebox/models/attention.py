"""The white-box operators MSSA (self) and MSCA (cross), and the black-box MHSA beside them.

Shapes: B batch, N tokens, M queries, D model width, H heads, P subspace dimension (per head).

Sources: MSSA is the multi-head subspace self-attention of CRATE (Yu et al. 2023, eq. 11-13) as DEPICT uses it (Wen
and Li, arXiv 2411.03033; official code ``model/dec_blocks.py``): query, key, value and output map are one and the
same basis U = [U_1 ... U_H], so a layer is a gradient step on the coding rate of the tokens projected on H subspaces.
MSCA is its cross-attention form: queries move towards the principal directions of the tokens. MHSA is the attention
of ViT.
"""

from __future__ import annotations

from typing import Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from timm.layers import Attention as MHSA
from torch import Tensor, nn

from whitebox.models.taps import Tap

__all__ = ["MHSA", "SubspaceAttention", "SubspaceLayer", "attention_weights", "mhsa_weights", "subspace_layers"]


@runtime_checkable
class SubspaceLayer(Protocol):
    """A layer with one subspace (or, in a black-box layer, what stands in its place) per head."""

    @property
    def bases(self) -> Tensor: ...  # (H, P, D)

    @property
    def norm(self) -> nn.LayerNorm: ...  # applied to the tokens before they are projected


def subspace_layers(model: nn.Module) -> dict[str, SubspaceLayer]:
    """The layers of ``model`` that have ``bases``, by module name, in order; empty for a linear decoder."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SubspaceLayer)}


def attention_weights(q_BHMP: Tensor, k_BHNP: Tensor, scale: float) -> Tensor:
    """Softmax attention as an explicit (B, H, M, N) tensor; the forward pass never forms it."""
    return (q_BHMP @ k_BHNP.transpose(-1, -2) * scale).softmax(dim=-1)


def mhsa_weights(attention: MHSA, z_BND: Tensor) -> Tensor:
    """Attention weights (B, H, N, N) of a timm ``Attention`` for its (already normalised) input."""
    B, N, _ = z_BND.shape
    qkv = attention.qkv(z_BND).reshape(B, N, 3, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)
    q, k, _ = qkv.unbind(0)
    return attention_weights(attention.q_norm(q), attention.k_norm(k), attention.scale)


class SubspaceAttention(nn.Module):
    """One white-box layer, z + step * U softmax(U^T x (U^T y)^T P^-1/2) U^T y with y = LayerNorm(tokens).

    Self-attention (MSSA): ``layer(z_BND)``; x = y. Cross-attention (MSCA): ``layer(z_BND, query=q_BMD)``; x is the
    query *without* normalisation, and the query is what is updated, as in the official code.

    Attributes:
        bases: (H, P, D), row i of head h is the i-th direction of subspace h.
        step_size: (1,), learned; its sign is free.
    """

    def __init__(self, width: int, heads: int, head_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        # (H * P, D), heads stacked; entries of variance 1/D and a normal step as in the official code
        self.basis = nn.Parameter(torch.randn(heads * head_dim, width) * width**-0.5)
        self.step_size = nn.Parameter(torch.randn(1))
        self.projected = Tap()
        self.attention = Tap()
        self.update = Tap()
        self.tokens = Tap()

    @property
    def bases(self) -> Tensor:
        """Subspace bases, (H, P, D)."""
        return self.basis.unflatten(0, (self.heads, self.head_dim))

    def project(self, x_BND: Tensor) -> Tensor:
        """Coordinates in every subspace, (B, H, N, P)."""
        return (x_BND @ self.basis.T).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)

    def forward(self, z_BND: Tensor, query: Tensor | None = None) -> Tensor:
        scale = self.head_dim**-0.5
        w_BHNP = self.projected(self.project(self.norm(z_BND)))
        q_BHMP = w_BHNP if query is None else self.project(query)
        if self.attention.listening:
            self.attention(attention_weights(q_BHMP, w_BHNP, scale))
        out_BHMP = F.scaled_dot_product_attention(
            q_BHMP, w_BHNP, w_BHNP, dropout_p=self.dropout if self.training else 0.0, scale=scale
        )
        update_BMD = self.update(self.step_size * (out_BHMP.transpose(1, 2).flatten(2) @ self.basis))
        return cast(Tensor, self.tokens((z_BND if query is None else query) + update_BMD))
