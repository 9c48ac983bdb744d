"""Binary cross-entropy of upsampled masks, every class against all others, without K maps of full size.

The masks of a few classes are upsampled at a time and their gradient is found on the way, as small as the masks; the
backward pass only scales it. With x a logit, each pixel and class gives softplus(x), minus x where the class is the
label: no one-hot labels are made.

The result is ``F.binary_cross_entropy_with_logits(F.interpolate(masks, size, mode="bilinear")[..., :H, :W],
one_hot(labels), reduction="sum")`` with zeros where the label is 255, and so is its gradient, up to rounding.

Shapes: B batch, K classes, H W pixels, h w grid of the masks, n masks (B * K).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from whitebox.models.precision import full_precision

# Logits at hand at once: a processor wants them in its cache, a GPU wants large kernels (128 MB).
_ON_CPU, _ELSEWHERE = 2**21, 2**25


@torch.compiler.disable  # a loop over classes is nothing to unroll
def summed_binary_cross_entropy(masks_BKhw: Tensor, labels_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Summed over all pixels and classes, those of unlabelled pixels too.

    Args:
        masks_BKhw: logits, any float type; computed in float32 (float64 stays) whatever autocast says.
        labels_BHW: integers; what is no class is a pixel of none.
        size: of the upsampled masks, of which the top left (H, W) are the labels' pixels.

    Returns:
        A scalar, differentiable once with respect to the masks.
    """
    exact_BKhw = masks_BKhw if masks_BKhw.dtype == torch.float64 else masks_BKhw.float()
    wanted = exact_BKhw.requires_grad and torch.is_grad_enabled()
    return cast(Tensor, _Summed.apply(exact_BKhw, labels_BHW, size, wanted))


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, masks_BKhw: Tensor, labels_BHW: Tensor, size: tuple[int, int], wanted: bool) -> Tensor:
        with full_precision(masks_BKhw.device):
            loss, gradient_BKhw = _loss_and_gradient(masks_BKhw, labels_BHW, size, wanted)
        if gradient_BKhw is not None:
            ctx.save_for_backward(gradient_BKhw)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_BKhw,) = ctx.saved_tensors
        return gradient_BKhw * scale, None, None, None


def _loss_and_gradient(
    masks_BKhw: Tensor, labels_BHW: Tensor, size: tuple[int, int], wanted: bool
) -> tuple[Tensor, Tensor | None]:
    B, K = masks_BKhw.shape[:2]
    H, W = labels_BHW.shape[1:]
    at_once = _ON_CPU * torch.get_num_threads() if masks_BKhw.device.type == "cpu" else _ELSEWHERE
    step = max(1, at_once // (size[0] * size[1]))
    gradient_BKhw = torch.empty_like(masks_BKhw) if wanted else None
    total = masks_BKhw.new_zeros((), dtype=torch.float64)  # a sum of some 1e8 numbers
    for image in range(B):
        for start in range(0, K, step):
            part_nhw = masks_BKhw[image, start : start + step].detach().requires_grad_(wanted)
            classes_n = torch.arange(start, start + len(part_nhw), device=labels_BHW.device)
            is_label_nHW = labels_BHW[image] == classes_n[:, None, None]
            with torch.set_grad_enabled(wanted):
                x_1nHW = F.interpolate(part_nhw[None], size=size, mode="bilinear", align_corners=False)[..., :H, :W]
                loss = F.softplus(x_1nHW).sum() - (x_1nHW[0] * is_label_nHW).sum()
            if gradient_BKhw is not None:
                (gradient_BKhw[image, start : start + step],) = torch.autograd.grad(loss, part_nhw)
            total += loss.detach()
    return total.to(masks_BKhw.dtype), gradient_BKhw
