"""Rows of attention: through representatives, rolled out over layers, and what is measured of them.

Shapes: H heads, M rows and C columns of a map (tokens), Q chosen rows, N patches, R representatives, T tokens of all
layers, h w patch grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def token_rows(weights_HMC: Tensor, row: int, through: bool) -> Tensor:
    """The row of one token in all heads, (H, C).

    Args:
        weights_HMC: of a layer; rows are tokens, or representatives which look at all tokens.
        through: the latter; the row is that of A^T A, (A^T A)_n = sum_r A_rn A_r, which is never formed.
    """
    if not through:
        return weights_HMC[:, row]
    return torch.einsum("hr,hrc->hc", weights_HMC[:, :, row], weights_HMC)


def rollout(maps: Sequence[Tensor], first_rows: Sequence[int], tokens: int, queries_Q: Sequence[int]) -> Tensor:
    """Attention rollout of some tokens, (Q, T): how much each token at the input of the first layer is theirs.

    Args:
        maps: of the layers from first to last, averaged over heads, (M, C) each; columns are the first C tokens.
        first_rows: the token to which the first row of each map belongs.
        tokens: T; class tokens of an encoder come first, class embeddings of a decoder last.
        queries_Q: places among the T tokens.
    """
    flow_QT = torch.eye(tokens)[list(queries_Q)]
    for weights_MC, first in zip(reversed(maps), reversed(first_rows), strict=True):
        M, C = weights_MC.shape
        updated_QM = flow_QT[:, first : first + M] / 2
        flow_QT = flow_QT.clone()
        flow_QT[:, first : first + M] = updated_QM
        flow_QT[:, :C] += updated_QM @ weights_MC
    return flow_QT


def map_numbers(
    row_N: Tensor,
    grid: tuple[int, int],
    region_hw: Tensor | None,
    patch: tuple[int, int] | None,
    whole: float = 1.0,
) -> dict[str, float]:
    """What is measured of one row over patches; NaN where it does not apply.

    Args:
        row_N: attention to the patches of ``grid``, not negative.
        region_hw: which patches are predicted as the class in question, bool.
        patch: (row, column) of the query.
        whole: what the row sums up to over all its tokens.

    Returns:
        ``maximum``, ``on_patches``, ``entropy`` (nats), ``entropy_share`` (of ln N), ``in_region``, ``region``
        (fractions), ``distance`` (patches).
    """
    row_N = row_N.double()
    mass = float(row_N.sum())
    p_hw = (row_N / mass if mass > 0 else torch.full_like(row_N, math.nan)).view(grid)
    entropy = float(torch.special.entr(p_hw).sum())
    has_region = region_hw is not None and bool(region_hw.any())
    numbers = {
        "maximum": float(row_N.max()),
        "on_patches": mass / whole if whole > 0 else math.nan,
        "entropy": entropy,
        "entropy_share": entropy / math.log(row_N.numel()) if row_N.numel() > 1 else math.nan,
        "in_region": float(p_hw[region_hw].sum()) if has_region else math.nan,
        "region": float(region_hw.double().mean()) if region_hw is not None else math.nan,
        "distance": math.nan,
    }
    if patch is not None:
        y_h1, x_1w = torch.arange(grid[0]).view(-1, 1) - patch[0], torch.arange(grid[1]).view(1, -1) - patch[1]
        numbers["distance"] = float((p_hw * torch.hypot(y_h1.double(), x_1w.double())).sum())
    return numbers


def level_numbers(row_N: Tensor, grid: tuple[int, int], region_hw: Tensor | None) -> dict[str, float]:
    """What is measured of a map whose values are no shares: ``maximum``, ``mean``, ``in_region``, ``region``."""
    shares = map_numbers(row_N, grid, region_hw, None)
    return {"mean": float(row_N.double().mean()), **{key: shares[key] for key in ("maximum", "in_region", "region")}}
