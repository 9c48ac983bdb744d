"""Losses: what a training minimises, from predictions on the patch grid.

A loss is a sum over the images of a batch, divided by numbers that are known from the labels alone. So a batch may be
split over processes and forward passes: the parts' sums are added, and the split changes nothing but memory.

    counts = loss.counts(labels, K)            summed over all parts of the batch
    sums = loss(prediction, labels, patch)     of each part
    loss.mean(sums, counts)                    its share; the shares of all parts add up to the loss of the batch

``CrossEntropy`` is that of the class probabilities a pixel has in the end; ``DiceCrossEntropy`` adds a Dice term, for
classes of few pixels. ``ATMLoss`` is SegViT's, and goes with every
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

from whitebox.errors import ModelError
from whitebox.models.binary_cross_entropy import summed_binary_cross_entropy
from whitebox.models.cross_entropy import IGNORED, require_fit, summed_cross_entropy
from whitebox.models.decoders.base import Prediction, class_scores
from whitebox.models.precision import full_precision


class Loss(ABC):
    """A sum over images, and what it is divided by."""

    @abstractmethod
    def counts(self, labels_BHW: Tensor, num_classes: int) -> list[int]:
        """Whole numbers that add up over the images of a batch; there may be no image."""

    @abstractmethod
    def __call__(self, prediction: Prediction, labels_BHW: Tensor, patch: int) -> Tensor:
        """Sums over some images; ``patch``: pixels a side of a place of the masks, 0 where images were squashed.

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

    Args:
        class_weights: how much a pixel of each class counts, K numbers, in the mean too, as in
            ``torch.nn.CrossEntropyLoss``; None: all alike.
    """

    def __init__(self, class_weights: Sequence[float] | None = None) -> None:
        self.class_weights = class_weights

    def counts(self, labels_BHW: Tensor, num_classes: int) -> list[int]:
        """Labelled pixels: all, or where classes have weights those of each class."""
        if self.class_weights is None:
            return [int((labels_BHW != IGNORED).sum())]
        pixels_N = torch.bincount(labels_BHW.flatten().long(), minlength=IGNORED + 1)
        return [int(pixels) for pixels in pixels_N[:num_classes]]

    def __call__(self, prediction: Prediction, labels_BHW: Tensor, patch: int) -> Tensor:
        if prediction.classes_BKC is None:
            return summed_cross_entropy(prediction.masks_BKhw, labels_BHW, patch, self.class_weights)
        return _summed_share_entropy(prediction, labels_BHW, patch, self.class_weights)

    def mean(self, sums: Tensor, counts: Sequence[int]) -> Tensor:
        if self.class_weights is None:
            return sums / max(1, counts[0])
        total = sum(weight * pixels for weight, pixels in zip(self.class_weights, counts, strict=True))
        return sums / (total or 1.0)


class DiceCrossEntropy(Loss):
    """Cross-entropy plus ``dice`` times the soft Dice loss of the class probabilities.

    Dice of a class in an image: 1 - (2 sum p t + 1) / (sum p + sum t + 1) over the labelled pixels, p the probability,
    t whether it is the label; mean over the pairs of an image and a class that is in it. It does not care how few
    pixels a class has, so it helps with rare ones.

    Source: Milletari et al. 2016 (V-Net, arXiv 1606.04797), with plain sums in the denominator as in Sudre et al. 2017
    (arXiv 1707.03237), smoothed by 1.

    The probabilities of all K classes are made at full resolution: for many classes and large images that takes memory.
    """

    def __init__(self, entropy: CrossEntropy, dice: float) -> None:
        self.entropy, self.dice = entropy, dice

    def counts(self, labels_BHW: Tensor, num_classes: int) -> list[int]:
        """Pairs of an image and a class that is in it; then those of the cross-entropy."""
        present = int(present_classes(labels_BHW, num_classes).sum())
        return [present, *self.entropy.counts(labels_BHW, num_classes)]

    def __call__(self, prediction: Prediction, labels_BHW: Tensor, patch: int) -> Tensor:
        """(2,): cross-entropy, Dice."""
        return torch.stack([self.entropy(prediction, labels_BHW, patch), summed_dice(prediction, labels_BHW, patch)])

    def mean(self, sums: Tensor, counts: Sequence[int]) -> Tensor:
        return self.entropy.mean(sums[0], counts[1:]) + self.dice * sums[1] / max(1, counts[0])


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


class BinaryCrossEntropy(Loss):
    """Each class against all others: binary cross-entropy of each mask's sigmoid, mean over pixels and classes.

    A pixel without a label is of no class, and counts. The loss is the plain sum over a decoder's masks, the auxiliary
    ones of earlier stages too. Masks are upsampled bilinearly.

    Source: SED (Xie et al. 2024, arXiv 2311.15537) and its released code.

    Args:
        names: classes of a training step of an open-vocabulary model: those of its images, and random others up to so
            many in all; None: all. The loss is scaled to what that of all would be on average.
    """

    def __init__(self, names: int | None = None) -> None:
        self.names = names

    def counts(self, labels_BHW: Tensor, num_classes: int) -> list[int]:
        return [labels_BHW.numel() * num_classes]

    def __call__(self, prediction: Prediction, labels_BHW: Tensor, patch: int) -> Tensor:
        """(S,), the last stage first."""
        require_classes(labels_BHW, prediction.masks_BKhw.shape[1])
        H, W = labels_BHW.shape[1:]
        size = padded_size(prediction.masks_BKhw, patch) if patch else (H, W)
        if size[0] < H or size[1] < W:
            raise ModelError(f"Labels of {H} x {W} px do not fit masks that show {size[0]} x {size[1]}.")
        stages = (prediction, *prediction.earlier)
        return torch.stack([summed_binary_cross_entropy(stage.masks_BKhw, labels_BHW, size) for stage in stages])

    def mean(self, sums: Tensor, counts: Sequence[int]) -> Tensor:
        return sums.sum() / max(1, counts[0])


def require_classes(labels_BHW: Tensor, num_classes: int) -> None:
    """Raise an ``IndexError`` where a label is neither a class nor 255."""
    known_BHW = (labels_BHW >= 0) & ((labels_BHW < num_classes) | (labels_BHW == IGNORED))
    if not bool(known_BHW.all()):
        raise IndexError(f"Target {int(labels_BHW[~known_BHW][0])} is out of bounds: there are {num_classes} classes.")


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
def summed_dice(prediction: Prediction, labels_BHW: Tensor, patch: int) -> Tensor:
    """Dice losses of the classes in each image, summed over images and classes, see `DiceCrossEntropy`.

    Raises:
        ModelError: the labels do not fit the masks.
        IndexError: a label is neither a class nor 255.
    """
    present_BK = present_classes(labels_BHW, prediction.masks_BKhw.shape[1])
    counted_BP1 = (labels_BHW != IGNORED).flatten(1)[..., None]
    with full_precision(labels_BHW.device):
        p_BPK = _log_probabilities(prediction, labels_BHW, patch).exp() * counted_BP1
        target_BP = labels_BHW.flatten(1).long()
        inside_BPK = F.one_hot(target_BP.where(counted_BP1[..., 0], 0), p_BPK.shape[-1]) * counted_BP1
        overlap_BK, sizes_BK = (p_BPK * inside_BPK).sum(1), p_BPK.sum(1) + inside_BPK.sum(1)
        return (1 - (2 * overlap_BK + 1) / (sizes_BK + 1))[present_BK].sum()


@torch.compiler.disable
def _summed_share_entropy(
    prediction: Prediction, labels_BHW: Tensor, patch: int, weights_K: Sequence[float] | None
) -> Tensor:
    """Minus the logarithm of the label's share of the scores, summed over the labelled pixels."""
    with full_precision(labels_BHW.device):
        logs_NK = _log_probabilities(prediction, labels_BHW, patch).flatten(0, 1)
        weight_K = None if weights_K is None else logs_NK.new_tensor(weights_K)
        target_N = labels_BHW.flatten().long()
        return F.nll_loss(logs_NK, target_N, weight_K, ignore_index=IGNORED, reduction="sum")


def _log_probabilities(prediction: Prediction, labels_BHW: Tensor, patch: int) -> Tensor:
    """(B, P, K): of a softmax of the masks, or each class's share of the scores."""
    require_fit(prediction.masks_BKhw, labels_BHW, patch)
    size = padded_size(prediction.masks_BKhw, patch)
    masks_BPK = upsampled(prediction.masks_BKhw, labels_BHW, size).flatten(2).transpose(1, 2)
    shares_BKK = prediction.shares_BKK
    if shares_BKK is None:
        return masks_BPK.log_softmax(-1)
    scores_BPK = class_scores(masks_BPK, shares_BKK).clamp_min(torch.finfo(torch.float32).tiny)
    return scores_BPK.log() - scores_BPK.sum(-1, keepdim=True).log()
