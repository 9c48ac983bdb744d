"""Losses: what a training minimises, from predictions on the patch grid.

A loss is a sum over the images of a batch, divided by numbers that are known from the labels alone. So a batch may be
split over processes and forward passes: the parts' sums are added, and the split changes nothing but memory.

    counts = loss.counts(labels, K)            summed over all parts of the batch
    sums = loss(prediction, labels, patch)     of each part
    loss.mean(sums, counts)                    its share; the shares of all parts add up to the loss of the batch

``CrossEntropy`` is that of the class probabilities a pixel has in the end. ``ATMLoss`` is SegViT's, and goes with every
decoder: in one without class logits the masks themselves have to say which classes are not there.

Shapes: B batch, K classes, C = K + 1, H W pixels, h w patch grid, n pairs of an image and a class that is in it,
P pixels (H * W), S stages (the last one first), T terms (classification, focal, dice).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from whitebox.models.decoders.base import Prediction, class_scores
from whitebox.models.tail import IGNORED, full_precision, require_fit, summed_cross_entropy


class Loss(ABC):
    """A sum over images, and what it is divided by."""

    @abstractmethod
    def counts(self, labels_BHW: Tensor, num_classes: int) -> list[int]:
        """Whole numbers that add up over the images of a batch; there may be no image."""

    @abstractmethod
    def __call__(self, prediction: Prediction, labels_BHW: Tensor, patch: int) -> Tensor:
        """Sums over some images.

        Raises:
            ModelError: the labels do not fit the masks.
            IndexError: a label is neither a class nor 255.
        """

    @abstractmethod
    def mean(self, sums: Tensor, counts: Sequence[int]) -> Tensor:
        """What these sums add to the loss of a batch with these counts."""


class CrossEntropy(Loss):
    """Cross-entropy of the class probabilities, mean over the pixels whose label is not 255.

    The probabilities are the softmax of the logits; of a decoder that gives scores, each class's share of their sum.
    """

    def counts(self, labels_BHW: Tensor, num_classes: int) -> list[int]:
        return [int((labels_BHW != IGNORED).sum())]

    def __call__(self, prediction: Prediction, labels_BHW: Tensor, patch: int) -> Tensor:
        if prediction.classes_BKC is None:
            return summed_cross_entropy(prediction.masks_BKhw, labels_BHW, patch)
        return _summed_share_entropy(prediction, labels_BHW, patch)

    def mean(self, sums: Tensor, counts: Sequence[int]) -> Tensor:
        return sums / max(1, counts[0])


class ATMLoss(Loss):
    """The loss of SegViT: what is each mask, and where.

    Mask k stands for class k, there is no matching. For each stage of a decoder, equally:

        classification  cross-entropy of the K class logits of each image; target k if class k is in the image, else
                        "no object", which counts ``no_object`` times; mean so weighted over all masks of the batch
        focal           sigmoid focal loss (alpha 0.25, gamma 2) of the masks of the classes in an image, upsampled
                        bilinearly; mean over the pixels, then over the n pairs of image and class
        dice            1 - (2 sum pt + 1) / (sum p + sum t + 1) of the same masks, mean over the pairs

    A batch without a labelled pixel has no pair; its focal and dice terms are 0.

    A decoder without class logits has no classification term, and nothing that keeps the mask of an absent class from
    winning pixels. There the focal term sums over all K masks of an image, still divided by the n pairs, as the focal
    loss of detectors is by its positives (Lin et al. 2017, section 4.1); ours.

    Source: SegViT (Zhang et al. 2022, arXiv 2210.05844), with the weights of its released code. That takes the
    classification term of each GPU's images by themselves; here it is taken over the whole batch, as the others are.

    Args:
        ignore: pixels without a label are ``negative``, as in the released code (not of the class), or left out
            (``mask``).
        classification, focal, dice: weights of the terms.
        no_object: weight of that target, above 0.
    """

    def __init__(
        self,
        ignore: str = "negative",
        classification: float = 1.0,
        focal: float = 20.0,
        dice: float = 1.0,
        no_object: float = 0.1,
    ) -> None:
        self.ignore, self.no_object = ignore, no_object
        self.weights_T = (classification, focal, dice)

    def counts(self, labels_BHW: Tensor, num_classes: int) -> list[int]:
        """Pairs of an image and a class that is in it; and of one that is not."""
        present = int(present_classes(labels_BHW, num_classes).sum())
        return [present, len(labels_BHW) * num_classes - present]

    @torch.compiler.disable  # which masks count depends on the labels
    def __call__(self, prediction: Prediction, labels_BHW: Tensor, patch: int) -> Tensor:
        """(S, T)."""
        require_fit(prediction.masks_BKhw, labels_BHW, patch)
        present_BK = present_classes(labels_BHW, prediction.masks_BKhw.shape[1])
        size = padded_size(prediction.masks_BKhw, patch)
        with full_precision(labels_BHW.device):
            stages = (prediction, *prediction.earlier)
            return torch.stack([self._stage(stage, present_BK, labels_BHW, size) for stage in stages])

    def mean(self, sums: Tensor, counts: Sequence[int]) -> Tensor:
        present, absent = counts
        divisors_T = (present + self.no_object * absent, max(1, present), max(1, present))
        scales_T = [weight / divisor for weight, divisor in zip(self.weights_T, divisors_T, strict=True)]
        return (sums * sums.new_tensor(scales_T)).sum()

    def _stage(self, stage: Prediction, present_BK: Tensor, labels_BHW: Tensor, size: tuple[int, int]) -> Tensor:
        """Sums of the terms, (T,); ``size`` of the padded images."""
        classification = stage.masks_BKhw.new_zeros((), dtype=torch.float32)
        if stage.classes_BKC is not None:
            K = present_BK.shape[1]
            target_BK = torch.where(present_BK, torch.arange(K, device=present_BK.device), K)
            weights_C = torch.ones(K + 1, device=present_BK.device)
            weights_C[K] = self.no_object
            classification = F.cross_entropy(
                stage.classes_BKC.float().flatten(0, 1), target_BK.flatten(), weight=weights_C, reduction="sum"
            )
        seen_BK = present_BK  # masks under the focal term
        if stage.classes_BKC is None:
            seen_BK = present_BK.any(1, keepdim=True).expand_as(present_BK)
        images_n, classes_n = seen_BK.nonzero(as_tuple=True)
        masks_nHW = upsampled(stage.masks_BKhw[images_n, classes_n][:, None], labels_BHW, size)[:, 0]
        labels_nHW = labels_BHW[images_n]
        target_nHW = (labels_nHW == classes_n[:, None, None]).float()
        counted_nHW = labels_nHW != IGNORED if self.ignore == "mask" else torch.ones_like(target_nHW)
        focal_n = (sigmoid_focal(masks_nHW, target_nHW) * counted_nHW).sum((1, 2)) / counted_nHW.sum((1, 2))
        p_nHW = masks_nHW.sigmoid() * counted_nHW
        overlap_n, sizes_n = (p_nHW * target_nHW).sum((1, 2)), p_nHW.sum((1, 2)) + target_nHW.sum((1, 2))
        dice_n = (1 - (2 * overlap_n + 1) / (sizes_n + 1))[present_BK[images_n, classes_n]]
        return torch.stack([classification, focal_n.sum(), dice_n.sum()])


def present_classes(labels_BHW: Tensor, num_classes: int) -> Tensor:
    """Which classes are in each image, (B, K) boolean.

    Raises:
        IndexError: a label is neither a class nor 255.
    """
    found = labels_BHW.new_zeros((len(labels_BHW), IGNORED + 1), dtype=torch.bool)
    found.scatter_(1, labels_BHW.flatten(1).long(), True)
    unknown = found[:, num_classes:IGNORED].any(0).nonzero()
    if len(unknown):
        raise IndexError(f"Target {num_classes + int(unknown[0])} is out of bounds: there are {num_classes} classes.")
    return found[:, :num_classes]


def sigmoid_focal(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of each element. Source: Lin et al. 2017, arXiv 1708.02002, equation 5."""
    p = logits.sigmoid()
    right = p * target + (1 - p) * (1 - target)
    share = alpha * target + (1 - alpha) * (1 - target)
    return share * (1 - right) ** gamma * F.binary_cross_entropy_with_logits(logits, target, reduction="none")


def padded_size(masks_BKhw: Tensor, patch: int) -> tuple[int, int]:
    """Pixels of the padded images."""
    return masks_BKhw.shape[2] * patch, masks_BKhw.shape[3] * patch


def upsampled(masks_BKhw: Tensor, labels_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks at the pixels of the labels, float32, (B, K, H, W); ``size`` of the padded images."""
    H, W = labels_BHW.shape[1:]
    return F.interpolate(masks_BKhw.float(), size=size, mode="bilinear", align_corners=False)[..., :H, :W]


@torch.compiler.disable
def _summed_share_entropy(prediction: Prediction, labels_BHW: Tensor, patch: int) -> Tensor:
    """Minus the logarithm of the label's share of the scores, summed over the labelled pixels."""
    require_fit(prediction.masks_BKhw, labels_BHW, patch)
    shares_BKK = prediction.shares_BKK
    assert shares_BKK is not None
    with full_precision(labels_BHW.device):
        size = padded_size(prediction.masks_BKhw, patch)
        masks_BPK = upsampled(prediction.masks_BKhw, labels_BHW, size).flatten(2).transpose(1, 2)
        scores_BPK = class_scores(masks_BPK, shares_BKK).clamp_min(torch.finfo(torch.float32).tiny)
        log_shares_BPK = scores_BPK.log() - scores_BPK.sum(-1, keepdim=True).log()
        target_BP = labels_BHW.flatten(1).long()
        return F.nll_loss(log_shares_BPK.flatten(0, 1), target_BP.flatten(), ignore_index=IGNORED, reduction="sum")
