"""The loss from mask logits on the patch grid: upsampling and cross-entropy without K maps of full size.

Bilinear upsampling by a whole factor p has a simple form: between the centres of four neighbouring patches lies a cell
of p x p pixels, whose logits are a fixed (p * p, 4) matrix times the logits of the four patches. So pixels are visited
cell by cell, classes last, a few cells at a time. The masks' gradient is found on the way, while a cell's logits are at
hand; it is as small as the masks, and the backward pass only scales it.

The result is ``F.cross_entropy(F.interpolate(masks, scale_factor=p, mode="bilinear")[..., :H, :W], labels,
ignore_index=255, reduction="sum")``, and so is its gradient, up to rounding.

Shapes: B batch, K classes, H W pixels, h w patch grid, p patch size, C cells, N pixels of some cells (C * p * p).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from whitebox.errors import ModelError
from whitebox.models.precision import full_precision

IGNORED = 255

# Logits at hand at once. A processor wants them in its cache (2 MB a thread), a GPU wants large kernels (128 MB).
_ON_CPU, _ELSEWHERE = 2**19, 2**25


@torch.compiler.disable  # a long loop over cells is nothing to unroll; the masks before it are compiled
def summed_cross_entropy(
    masks_BKhw: Tensor, labels_BHW: Tensor, patch: int, weights_K: Sequence[float] | None = None
) -> Tensor:
    """Cross-entropy of upsampled and cropped masks, summed over the pixels whose label is not 255.

    Args:
        masks_BKhw: logits, any float type; computed in float32 (float64 stays) whatever autocast says.
        labels_BHW: integers, (h - 1) p < H <= h p and so for W.
        patch: p.
        weights_K: how much a pixel of each class counts; None: 1.

    Returns:
        A scalar, differentiable once with respect to the masks.

    Raises:
        ModelError: the labels do not fit the masks.
        IndexError: a label is neither a class nor 255.
    """
    require_fit(masks_BKhw, labels_BHW, patch)
    exact_BKhw = masks_BKhw if masks_BKhw.dtype == torch.float64 else masks_BKhw.float()
    wanted = exact_BKhw.requires_grad and torch.is_grad_enabled()
    return cast(Tensor, _SummedCrossEntropy.apply(exact_BKhw, labels_BHW, patch, weights_K, wanted))


def require_fit(masks_BKhw: Tensor, labels_BHW: Tensor, patch: int) -> None:
    """Raise a ``ModelError`` unless the masks are those of the labels' images, padded to whole patches."""
    B, _, h, w = masks_BKhw.shape
    if patch < 1:
        raise ModelError(
            f"Masks of {h} x {w} places show an image squashed by no whole number: take loss=binary-cross-entropy, or "
            "crops of a whole multiple."
        )
    if labels_BHW.shape != (B, *labels_BHW.shape[1:]) or [-(-side // patch) for side in labels_BHW.shape[1:]] != [h, w]:
        raise ModelError(
            f"Labels of shape {tuple(labels_BHW.shape)} do not fit {B} images of {h} x {w} patches of {patch} px."
        )


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        masks_BKhw: Tensor,
        labels_BHW: Tensor,
        patch: int,
        weights_K: Sequence[float] | None,
        with_gradient: bool,
    ) -> Tensor:
        with full_precision(masks_BKhw.device):
            loss, gradient_BKhw = _loss_and_gradient(masks_BKhw, labels_BHW, patch, weights_K, with_gradient)
        if gradient_BKhw is not None:
            ctx.save_for_backward(gradient_BKhw)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient_BKhw,) = ctx.saved_tensors
        return gradient_BKhw * scale, None, None, None, None


def _loss_and_gradient(
    masks_BKhw: Tensor, labels_BHW: Tensor, patch: int, weights_K: Sequence[float] | None, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    B, K, h, w = masks_BKhw.shape
    weight_K = None if weights_K is None else masks_BKhw.new_tensor(weights_K)
    weights_N4 = _cell_weights(patch).to(masks_BKhw)
    corners_C4K = _corners(masks_BKhw)
    labels_CN = _cell_labels(labels_BHW, (h, w), patch)
    gradient_C4K = torch.empty_like(corners_C4K) if with_gradient else None
    at_once = _ON_CPU * torch.get_num_threads() if masks_BKhw.device.type == "cpu" else _ELSEWHERE
    step = max(1, at_once // (patch * patch * K))
    # made before the loop: small tensors kept between large ones that come and go make a heap grow by a gigabyte
    losses = corners_C4K.new_empty(-(-len(corners_C4K) // step))
    for number, start in enumerate(range(0, len(corners_C4K), step)):
        part_C4K = corners_C4K[start : start + step].requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            logits_CNK = torch.bmm(weights_N4.expand(len(part_C4K), -1, -1), part_C4K)
            target_N = labels_CN[start : start + step].flatten().long()
            logits_NK = logits_CNK.flatten(0, 1)
            loss = F.cross_entropy(logits_NK, target_N, weight_K, ignore_index=IGNORED, reduction="sum")
        if gradient_C4K is not None:
            (gradient_C4K[start : start + step],) = torch.autograd.grad(loss, part_C4K)
        losses[number] = loss.detach()
    return losses.sum(), None if gradient_C4K is None else _sum_corners(gradient_C4K.view(B, h + 1, w + 1, 4, K))


def _cell_weights(patch: int) -> Tensor:
    """(p * p, 4): shares of the patches above left, above right, below left, below right in a cell's pixels."""
    low_p = (torch.arange(patch, dtype=torch.float64) + (0.5 if patch % 2 == 0 else 0)) / patch
    pair_p2 = torch.stack([1 - low_p, low_p], dim=-1)
    return torch.einsum("yi,xj->yxij", pair_p2, pair_p2).reshape(patch * patch, 4)


def _corners(masks_BKhw: Tensor) -> Tensor:
    """(C, 4, K): the patches around each of the B (h + 1) (w + 1) cells; at the border they are repeated."""
    padded_BhwK = F.pad(masks_BKhw, (1, 1, 1, 1), mode="replicate").permute(0, 2, 3, 1)
    above_BhwK, below_BhwK = padded_BhwK[:, :-1], padded_BhwK[:, 1:]
    pairs = [pair for row in (above_BhwK, below_BhwK) for pair in (row[:, :, :-1], row[:, :, 1:])]
    return torch.stack(pairs, dim=3).flatten(0, 2).contiguous()


def _sum_corners(gradient_Bhw4K: Tensor) -> Tensor:
    """The transpose of ``_corners``: (B, h + 1, w + 1, 4, K) -> (B, K, h, w)."""
    B, rows, columns, _, K = gradient_Bhw4K.shape
    sum_BhwK = gradient_Bhw4K.new_zeros(B, rows + 1, columns + 1, K)
    for corner in range(4):
        y, x = divmod(corner, 2)
        sum_BhwK[:, y : y + rows, x : x + columns] += gradient_Bhw4K[:, :, :, corner]
    sum_BhwK[:, 1] += sum_BhwK[:, 0]  # a single patch takes both borders
    sum_BhwK[:, -2] += sum_BhwK[:, -1]
    sum_BhwK[:, :, 1] += sum_BhwK[:, :, 0]
    sum_BhwK[:, :, -2] += sum_BhwK[:, :, -1]
    return sum_BhwK[:, 1:-1, 1:-1].permute(0, 3, 1, 2)


def _cell_labels(labels_BHW: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """(C, p * p): labels cell by cell; outside the image 255. The first cell begins half a patch before the image."""
    (H, W), before = labels_BHW.shape[1:], (patch + 1) // 2
    bottom, right = ((side + 1) * patch - before - length for side, length in zip(grid, (H, W), strict=True))
    padded_BHW = F.pad(labels_BHW, (before, right, before, bottom), value=IGNORED)
    return padded_BHW.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3).flatten(0, 2).flatten(1)
