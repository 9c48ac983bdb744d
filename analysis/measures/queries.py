"""Attention as queries and keys, from which any row of it follows; and as few numbers of them as rows need.

A row is softmax(q_m k_c^T + b_c) over columns c. With the mean taken off queries and keys the row stays what it was:
what all keys share adds the same to each column, and what all queries share is the bias b. In MSSA and CRATE queries
and keys are one and the same, W_h = U_h^T LayerNorm(Z), and so they stay. The logits do not change when queries and
keys are turned together, so their directions are those of the singular vectors of the logits, by falling weight. Then
all coordinates of a head are whole multiples of one step, as coarse as rows can bear: directions of little weight need
few bits, or vanish. Float16 would give large coordinates, on which logits depend most, too few digits, and small ones
too many: it takes 1.8 times the room (CamVid, `depict-sa-small` behind DINOv2).

Shapes: H heads, M rows, C columns (tokens), P dimension of a head, r directions kept, N patches, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from whitebox.models import Segmentor
from whitebox.models.attention import ATTENTIONS, CBSA, SubspaceAttention, mhsa_projected
from whitebox.models.decoders.crate import CrateLayer
from whitebox.models.decoders.segmenter_mask import TransformerBlock
from whitebox.models.decoders.segvit import QueryLayer

TOLERANCE = 5e-3  # of the largest value of a row, that any of its values may be off
_SAMPLED = 128  # rows that this is seen on
_BITS = 14.99  # of a coordinate, beside its sign: int16
_HALVINGS = 6  # of the range of bits
Hear = Callable[[str, Tensor, Tensor], None]  # name of an attention tap, queries (H, M, P) and keys (H, C, P)


class Factors(NamedTuple):
    """A layer's attention as a page computes it.

    Attributes:
        q_HrM, k_HrC: int16, in steps; one object where queries are keys.
        step_H: of both.
        b_HC: float32.
        error: largest difference of a value of a sampled row, over the largest value of the row.
    """

    q_HrM: NDArray[np.int16]
    k_HrC: NDArray[np.int16]
    step_H: NDArray[np.float32]
    b_HC: NDArray[np.float32]
    error: float


@contextmanager
def hearing(model: Segmentor, hear: Hear) -> Iterator[None]:
    """Inside the block a forward pass of one image tells the queries and keys of every layer as they are made.

    Queries are scaled, so that q k^T are the logits. Where both are one, ``hear`` is given the same tensor twice.
    """
    with ExitStack() as stack:
        for name, module in model.decoder.named_modules(prefix="decoder"):
            for handle in _hooks(module, partial(hear, f"{name}.attention")):
                stack.callback(handle.remove)
        for index, taps in enumerate(model.encoder.layers):
            block = _encoder_block(model, index)
            if hasattr(taps, "attention") and isinstance(block, ATTENTIONS):
                tell = partial(_tell_mhsa, partial(hear, f"encoder.layers.{index}.attention"))
                stack.callback(block.register_forward_pre_hook(tell, with_kwargs=True).remove)
        yield


def _encoder_block(model: Segmentor, index: int) -> object:
    blocks = getattr(getattr(model.encoder, "vit", None), "blocks", ())
    return getattr(blocks[index], "attn", None) if index < len(blocks) else None


Tell = Callable[[Tensor, Tensor], None]


def _hooks(module: nn.Module, tell: Tell) -> list[Any]:
    """Those that tell a layer's queries and keys; none where it is no layer with attention."""
    if isinstance(module, SubspaceAttention | CrateLayer | CBSA):
        return [module.register_forward_pre_hook(partial(_tell_subspaces, tell), with_kwargs=True)]
    if isinstance(module, TransformerBlock):
        return [module.attn.register_forward_pre_hook(partial(_tell_mhsa, tell), with_kwargs=True)]
    if isinstance(module, QueryLayer):
        queries: list[Tensor] = []

        def note(_: nn.Module, given: Any, out_BMD: Tensor) -> None:
            queries[:] = [_in_heads(out_BMD, module.heads)]

        def told(_: nn.Module, given: Any, out_BND: Tensor) -> None:
            k_HNP = _in_heads(out_BND, module.heads)
            tell(queries[0] * k_HNP.shape[-1] ** -0.5, k_HNP)

        return [module.q.register_forward_hook(note), module.k.register_forward_hook(told)]
    return []


def _in_heads(x_BND: Tensor, heads: int) -> Tensor:
    return x_BND[0].unflatten(-1, (heads, -1)).transpose(0, 1)


def _tell_mhsa(tell: Tell, layer: Any, given: Any, named: dict[str, Any]) -> None:
    q_BHNP, k_BHNP = mhsa_projected(layer, given[0], named.get("rope", given[1] if len(given) > 1 else None))
    tell(q_BHNP[0] * layer.scale, k_BHNP[0])


def _tell_subspaces(
    tell: Tell, layer: SubspaceAttention | CrateLayer | CBSA, given: Any, named: dict[str, Any]
) -> None:
    root = layer.head_dim**-0.25  # on both sides
    w_BHNP = layer.project(layer.norm(given[0]))
    k_HNP = w_BHNP[0] * root
    if isinstance(layer, CBSA):
        grid = cast("tuple[int, int]", named.get("grid", given[1] if len(given) > 1 else None))
        tell(layer.pooled(w_BHNP, grid)[0] * root, k_HNP)
        return
    query_BMD = named.get("query", given[1] if len(given) > 1 else None)
    tell(k_HNP if query_BMD is None else layer.project(query_BMD)[0] * root, k_HNP)


@torch.no_grad()
def factors(q_HMP: Tensor, k_HCP: Tensor, tolerance: float = TOLERANCE) -> Factors:
    """In the coarsest steps with which sampled rows are right within ``tolerance``, as far as int16 can."""
    one = q_HMP is k_HCP
    q_HMP, k_HCP = q_HMP.cpu().float(), k_HCP.cpu().float()
    rows = torch.from_numpy(np.unique(np.linspace(0, q_HMP.shape[1] - 1, _SAMPLED).round().astype(np.int64)))
    exact_HSC = (q_HMP[:, rows] @ k_HCP.mT).softmax(-1)
    k_HCP = k_HCP - k_HCP.mean(1, keepdim=True)
    mean_H1P = q_HMP.mean(1, keepdim=True)
    b_HC = (mean_H1P @ k_HCP.mT)[:, 0]
    q_HMP = q_HMP - mean_H1P
    if one:
        q_HMP = k_HCP = k_HCP @ torch.linalg.eigh(k_HCP.mT @ k_HCP)[1].flip(-1)
    else:
        q_HMP, k_HCP = _balanced(q_HMP, k_HCP)
    largest_H = torch.maximum(q_HMP.abs().amax((1, 2)), k_HCP.abs().amax((1, 2))).clamp_min(1e-12)
    largest_H11 = largest_H[:, None, None]

    def error(bits_H: Tensor) -> Tensor:
        step_H11 = largest_H11 / (2.0 ** bits_H[:, None, None])
        q_HSP, k = ((each / step_H11).round() * step_H11 for each in (q_HMP[:, rows], k_HCP))
        rows_HSC = (q_HSP @ k.mT + b_HC[:, None]).softmax(-1)
        return ((rows_HSC - exact_HSC).abs().amax(-1) / exact_HSC.amax(-1)).amax(-1)

    low_H, high_H = (
        torch.full_like(largest_H, 2.0),
        torch.full_like(largest_H, _BITS),
    )  # steps from 0 to the largest: 2^
    for _ in range(_HALVINGS):
        middle_H = (low_H + high_H) / 2
        enough_H = error(middle_H) <= tolerance
        low_H, high_H = torch.where(enough_H, low_H, middle_H), torch.where(enough_H, middle_H, high_H)
    step_H = largest_H / 2.0**high_H
    q, k = ((each / step_H[:, None, None]).round().mT.short().numpy() for each in (q_HMP, k_HCP))
    kept = int(np.flatnonzero((q != 0).any((0, 2)) & (k != 0).any((0, 2))).max(initial=0)) + 1
    k_HrC = np.ascontiguousarray(k[:, :kept])
    q_HrM = k_HrC if one else np.ascontiguousarray(q[:, :kept])
    return Factors(q_HrM, k_HrC, step_H.numpy(), b_HC.numpy(), float(error(high_H).max()))


def _balanced(q_HMP: Tensor, k_HCP: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys with the same products, their directions by how much these owe to them, shared out evenly."""
    (root_q, back_q), (root_k, back_k) = (_roots(each.mT @ each) for each in (q_HMP, k_HCP))
    left_HPP, singular_HP, right_HPP = torch.linalg.svd(root_q @ root_k)
    spread_H1P = singular_HP.sqrt()[:, None]
    return (q_HMP.double() @ (back_q @ left_HPP) * spread_H1P).float(), (
        k_HCP.double() @ (back_k @ right_HPP.mT) * spread_H1P
    ).float()


def _roots(gram_HPP: Tensor) -> tuple[Tensor, Tensor]:
    """The square root of positive semidefinite matrices, and its pseudo-inverse, float64."""
    value_HP, vector_HPP = torch.linalg.eigh(gram_HPP.double())
    root_HP = value_HP.clamp_min(0).sqrt()
    sure = root_HP > 1e-6 * root_HP.amax(-1, keepdim=True)  # of float32 tokens
    inverse_HP = torch.where(sure, 1 / root_HP.clamp_min(1e-30), 0.0)
    return (
        vector_HPP * root_HP[:, None] @ vector_HPP.mT,
        vector_HPP * inverse_HP[:, None] @ vector_HPP.mT,
    )
