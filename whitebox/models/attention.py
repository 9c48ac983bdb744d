"""The white-box operators MSSA (self), MSCA (cross), CBSA and TSSA, and the black-box MHSA beside them.

Shapes: B batch, N tokens, M queries, R representatives, D model width, H heads, P subspace dimension (per head),
h w patch grid.

Sources: MSSA is the multi-head subspace self-attention of CRATE (Yu et al. 2023, eq. 11-13) as DEPICT uses it (Wen
and Li, arXiv 2411.03033; official code ``model/dec_blocks.py``): query, key, value and output map are one and the
same basis U = [U_1 ... U_H], so a layer is a gradient step on the coding rate of the tokens projected on H subspaces.
MSCA is its cross-attention form: queries move towards the principal directions of the tokens. CBSA (contract and
broadcast; Wen et al., arXiv 2509.16875) compresses a few representatives and hands the change back to the tokens.
TSSA (token statistics; Wu et al., arXiv 2412.17810) needs only second moments. MHSA is the attention of ViT.

In CBSA and TSSA, as in the released code of CRATE, the output map W is a learned matrix with a bias where the
derivation has the basis itself (``UntiedSubspaces``).
"""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention as MHSA
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from whitebox.models.taps import Readout, Tap

__all__ = [
    "ATTENTIONS",
    "CBSA",
    "MHSA",
    "TSSA",
    "SubspaceAttention",
    "SubspaceLayer",
    "Subspaces",
    "UntiedSubspaces",
    "attention_weights",
    "is_subspace_layer",
    "mhsa_projected",
    "mhsa_weights",
    "subspace_layers",
    "white_box_layers",
]

ATTENTIONS = (MHSA, EvaAttention, AttentionRope)  # what ``mhsa_weights`` knows


class SubspaceLayer(Protocol):
    """A layer with one subspace (or, in a black-box layer, what stands in its place) per head."""

    @property
    def bases(self) -> Tensor: ...  # (H, P, D)

    @property
    def norm(self) -> nn.LayerNorm: ...  # applied to the tokens before they are projected


def is_subspace_layer(module: nn.Module) -> TypeGuard[SubspaceLayer]:
    """Whether a module is a ``SubspaceLayer``; from Python 3.12 on ``isinstance`` does not see what a module holds."""
    return hasattr(module, "bases") and hasattr(module, "norm")


def subspace_layers(model: nn.Module) -> dict[str, SubspaceLayer]:
    """The layers of ``model`` that have ``bases``, by module name, in order; empty for a linear decoder."""
    return {name: module for name, module in model.named_modules() if is_subspace_layer(module)}


def white_box_layers(model: nn.Module) -> dict[str, Subspaces]:
    """Those of `subspace_layers` whose subspaces can be replaced."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Subspaces)}


def attention_weights(q_BHMP: Tensor, k_BHNP: Tensor, scale: float) -> Tensor:
    """Softmax attention as an explicit (B, H, M, N) tensor; MHSA, MSSA and MSCA never form it unless it is recorded."""
    return (q_BHMP @ k_BHNP.transpose(-1, -2) * scale).softmax(dim=-1)


def mhsa_weights(attention: Any, z_BND: Tensor, rope: Tensor | None = None) -> Tensor:
    """Attention weights (B, H, N, N) of a layer of timm's for its (already normalised) input, see `mhsa_projected`."""
    q_BHNP, k_BHNP = mhsa_projected(attention, z_BND, rope)
    return attention_weights(q_BHNP, k_BHNP, attention.scale)


def mhsa_projected(attention: Any, z_BND: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Queries and keys, (B, H, N, P) each, of a layer of timm's for its (already normalised) input.

    Args:
        attention: one of ``ATTENTIONS``: of a ViT, or of an encoder with rotary positions (EVA-02, DINOv3, PE).
        z_BND: class tokens and registers in front.
        rope: sines and cosines of the patches' places, as the layer is given them; None: it has no rotary positions.
    """
    heads = (attention.num_heads, attention.head_dim)
    if attention.qkv is None:
        parts = (attention.q_proj, attention.k_proj)
        q_BHNP, k_BHNP = (part(z_BND).unflatten(-1, (-1, heads[1])).transpose(1, 2) for part in parts)
    else:
        qkv_BNC = attention.qkv(z_BND)
        if getattr(attention, "q_bias", None) is not None:  # EVA's queries and values have a bias, its keys have none
            qkv_BNC = qkv_BNC + torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        q_BHNP, k_BHNP, _ = qkv_BNC.unflatten(-1, (3, *heads)).permute(2, 0, 3, 1, 4).unbind(0)
    q_BHNP, k_BHNP = attention.q_norm(q_BHNP), attention.k_norm(k_BHNP)
    if rope is not None:
        q_BHNP, k_BHNP = _turned(attention, q_BHNP, rope), _turned(attention, k_BHNP, rope)
    if k_BHNP.shape[1] < q_BHNP.shape[1]:  # several heads share their keys
        k_BHNP = k_BHNP.repeat_interleave(q_BHNP.shape[1] // k_BHNP.shape[1], dim=1)
    return q_BHNP, k_BHNP


def _turned(attention: Any, x_BHNP: Tensor, rope: Tensor) -> Tensor:
    """Rotary positions of the patches; class tokens and registers have none."""
    prefix = attention.num_prefix_tokens
    turned = apply_rot_embed_cat(x_BHNP[:, :, prefix:], rope, half=getattr(attention, "rotate_half", False))
    return torch.cat([x_BHNP[:, :, :prefix], turned.to(x_BHNP.dtype)], dim=2)


class Subspaces(nn.Module):
    """What white-box layers share: a LayerNorm and one subspace per head.

    Attributes:
        basis: (H * P, D), the heads' bases stacked.
        bases: (H, P, D), row i of head h is the i-th direction of subspace h.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.norm = nn.LayerNorm(width)
        # entries of variance 1/D as in DEPICT's code
        self.basis = nn.Parameter(torch.randn(heads * head_dim, width) * width**-0.5)

    @property
    def bases(self) -> Tensor:
        """Subspace bases, (H, P, D)."""
        return self.basis.unflatten(0, (self.heads, self.head_dim))

    def project(self, x_BND: Tensor) -> Tensor:
        """Coordinates in every subspace, (B, H, N, P)."""
        return (x_BND @ self.basis.T).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)


class SubspaceAttention(Subspaces):
    """One white-box layer, z + step * U softmax(U^T x (U^T y)^T P^-1/2) U^T y with y = LayerNorm(tokens).

    Self-attention (MSSA): ``layer(z_BND)``; x = y. Cross-attention (MSCA): ``layer(z_BND, query=q_BMD)``; x is the
    query *without* normalisation, and the query is what is updated, as in the official code.

    Attributes:
        step_size: (1,), learned; its sign is free.
    """

    def __init__(self, width: int, heads: int, head_dim: int, dropout: float = 0.0) -> None:
        super().__init__(width, heads, head_dim)
        self.dropout = dropout
        self.step_size = nn.Parameter(torch.randn(1))  # a normal step as in the official code
        self.projected = Tap()
        self.attention = Readout()
        self.update = Tap()
        self.tokens = Tap()

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


class UntiedSubspaces(Subspaces):
    """Subspaces whose output map W is a matrix of its own, with a bias.

    Basis and map start with entries of std 0.02, as every linear layer of the decoders of DEPICT and CBSA.

    Attributes:
        output: H * P -> D.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__(width, heads, head_dim)
        self.output = nn.Linear(heads * head_dim, width)
        for weight in (self.basis, self.output.weight):
            nn.init.trunc_normal_(weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def lift(self, w_BHNP: Tensor) -> Tensor:
        """From coordinates in all subspaces to tokens, (B, N, D)."""
        return cast(Tensor, self.output(w_BHNP.transpose(1, 2).flatten(2)))


class CBSA(UntiedSubspaces):
    """Contract-and-broadcast self-attention: one layer, linear in N.

    With w = U^T LayerNorm(z) and r the patch tokens of w averaged over the cells of a ``pool`` x ``pool`` grid:

        A = softmax(r w^T P^-1/2)                      representatives look at all tokens, (R, N)
        r <- r + step_r * A w                          contract
        c = softmax(r r^T P^-1/2) r                    compress, (R, P)
        z <- z + W (step * A^T c) + bias               broadcast; A^T is not normalised again

    Official code: ``QishuaiWen/CBSA``, ``CBSA_semantic_segmentation/segm/model/dec_blocks.py``.

    Attributes:
        step_size, representative_step: (H, 1, 1), learned; ``step_x`` and ``step_rep`` of the official code.
        any_size: means over cells are a product of matrices, which can be followed for any grid (export).
    """

    any_size = False

    def __init__(self, width: int, heads: int, head_dim: int, pool: int) -> None:
        super().__init__(width, heads, head_dim)
        self.pool = pool
        self.step_size = nn.Parameter(torch.randn(heads, 1, 1))
        self.representative_step = nn.Parameter(torch.randn(heads, 1, 1))
        self.projected = Tap()
        self.representatives = Tap()
        self.attention = Tap()
        self.representative_attention = Readout()
        self.update = Tap()
        self.tokens = Tap()

    def forward(self, z_BND: Tensor, grid: tuple[int, int]) -> Tensor:
        """The first h * w tokens lie on ``grid`` = (h, w); others (class embeddings) only take part in attention."""
        scale = self.head_dim**-0.5
        w_BHNP = self.projected(self.project(self.norm(z_BND)))
        r_BHRP = self.representatives(self.pooled(w_BHNP, grid))
        weights_BHRN = self.attention(attention_weights(r_BHRP, w_BHNP, scale))
        r_BHRP = r_BHRP + self.representative_step * (weights_BHRN @ w_BHNP)
        if self.representative_attention.listening:
            self.representative_attention(attention_weights(r_BHRP, r_BHRP, scale))
        c_BHRP = F.scaled_dot_product_attention(r_BHRP, r_BHRP, r_BHRP, scale=scale)
        update_BND = self.update(self.lift(self.step_size * (weights_BHRN.transpose(-1, -2) @ c_BHRP)))
        return cast(Tensor, self.tokens(z_BND + update_BND))

    def pooled(self, w_BHNP: Tensor, grid: tuple[int, int]) -> Tensor:
        """Means of the patch tokens over the cells of the pooling grid, (B, H, pool * pool, P)."""
        patches_BHPN = w_BHNP[:, :, : grid[0] * grid[1]].transpose(-1, -2)
        map_BChw = patches_BHPN.unflatten(-1, grid).flatten(1, 2)
        if self.any_size:
            rows_Rh, columns_Rw = (cells(self.pool, side, map_BChw) for side in grid)
            pooled = rows_Rh @ map_BChw @ columns_Rw.T
        else:
            pooled = F.adaptive_avg_pool2d(map_BChw, self.pool)
        return pooled.flatten(2).unflatten(1, (self.heads, self.head_dim)).transpose(-1, -2)


def cells(count: int, length: int, like: Tensor) -> Tensor:
    """Means over ``count`` cells of a length, those of ``adaptive_avg_pool2d``, as a matrix (count, length)."""
    first_R1 = torch.arange(count, device=like.device)[:, None]
    place_L = torch.arange(length, device=like.device)
    start_R1 = first_R1 * length // count
    end_R1 = -(-(first_R1 + 1) * length // count)
    within_RL = (place_L >= start_R1) & (place_L < end_R1)
    return within_RL.to(like.dtype) / (end_R1 - start_R1).to(like.dtype)


class TSSA(UntiedSubspaces):
    """Token-statistics self-attention: one layer, linear in N, without a map of tokens by tokens.

    With w = U^T LayerNorm(z), all squares and quotients element by element:

        S_hn = sum_p w_hnp^2 / sum_m w_hmp^2           share of token n in the energy of subspace h
        pi = softmax over heads of (temperature_h * S_hn)            membership, eq. 10
        m_hp = sum_n pi_hn w_hnp^2 / sum_n pi_hn       second moments of the members
        z <- z - W (pi w / (1 + m)) + bias             directions of large variance shrink less

    Official code: ``RobinWu218/ToST``, ``tost_vision/tost.py``, class ``AttentionTSSA``.

    Attributes:
        temperature: (H, 1), learned.
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__(width, heads, head_dim)
        self.temperature = nn.Parameter(torch.ones(heads, 1))
        self.projected = Tap()
        self.membership = Tap()
        self.update = Tap()
        self.tokens = Tap()

    def forward(self, z_BND: Tensor) -> Tensor:
        w_BHNP = self.projected(self.project(self.norm(z_BND)))
        wide = torch.promote_types(w_BHNP.dtype, torch.float32)  # sums of squares overflow float16
        energy_BHNP = w_BHNP.to(wide).square()
        share_BHN = (energy_BHNP / energy_BHNP.sum(dim=-2, keepdim=True).clamp_min(1e-24)).sum(dim=-1)
        pi_BHN = self.membership((self.temperature * share_BHN).softmax(dim=1))
        weights_BHN = pi_BHN / (pi_BHN.sum(dim=-1, keepdim=True) + 1e-8)
        moments_BH1P = (weights_BHN.unsqueeze(-1) * energy_BHNP).sum(dim=-2, keepdim=True)
        shrunk_BHNP = -pi_BHN.unsqueeze(-1) * w_BHNP / (1 + moments_BH1P)
        update_BND = self.update(self.lift(shrunk_BHNP.to(w_BHNP.dtype)))
        return cast(Tensor, self.tokens(z_BND + update_BND))
