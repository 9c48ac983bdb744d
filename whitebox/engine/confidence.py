"""How sure a model is of each pixel, and whether it is right: binned counts per image.

From them follow calibration and selective prediction (``analysis.maths.calibration``) of any set of images, without
another run. The confidence of a pixel is the largest of its class probabilities; its squared error is that of Brier
(1950), sum_k (p_k - y_k)^2 over all classes, y_k = 1 for the labelled class, else 0. Pixels whose label is ignored
count nowhere.

Bins are 60 of equal width, so that 10, 12, 15, 20 or 30 bins are sums of them; the last, where most pixels are, is
halved towards 1 again and again, down to what float32 tells from 1, so that the surest pixels are ranked too. Sums of
confidences and errors are integers (in units of `UNIT`), exact whatever the order.

Shapes: B bins, H W pixels, P of them, R S pixels of a tile, K classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EQUAL = 60  # bins of equal width
HALVINGS = 17  # of the last one
EDGES = np.array(
    [*(n / EQUAL for n in range(EQUAL)), *(1 - 2.0**-n / EQUAL for n in range(1, HALVINGS + 1)), 1.0]
)  # (B + 1)
BINS = len(EDGES) - 1
UNIT = 2.0**-20


class ConfidenceCounts:
    """The confidence of a model in one image.

    Args:
        label_HW: classes or ``ignore_index``, on the model's device.
    """

    def __init__(self, label_HW: Tensor, ignore_index: int) -> None:
        self.ignored_HW = label_HW == ignore_index
        self.label_HW = label_HW.long().masked_fill(self.ignored_HW, 0)
        self.confidence_HW = torch.empty(label_HW.shape, device=label_HW.device)
        self.squared_HW = torch.empty_like(self.confidence_HW)

    def see(self, rows: slice, columns: slice, probabilities_KRS: Tensor) -> None:
        """Class probabilities of a tile, as ``WindowedPhoto.labels`` gives them."""
        own_RS = probabilities_KRS.gather(0, self.label_HW[rows, columns][None])[0]
        self.confidence_HW[rows, columns] = probabilities_KRS.amax(0)
        self.squared_HW[rows, columns] = probabilities_KRS.square().sum(0) - 2 * own_RS + 1

    def counts(self, prediction_HW: Tensor) -> tuple[Tensor, int]:
        """When all tiles were seen.

        Returns:
            (B, 3) int64 on the CPU: labelled pixels of each bin, those that are right, and the sum of their confidences
            in `UNIT`; and the sum of squared errors over all labelled pixels in `UNIT`.
        """
        bins_P = bins_of(self.confidence_HW).masked_fill_(self.ignored_HW, BINS).flatten()  # a bin more
        wrong_P = (prediction_HW != self.label_HW).flatten()
        pixels_2B = torch.bincount(2 * bins_P + wrong_P, minlength=2 * BINS + 2).reshape(BINS + 1, 2)[:BINS]
        # whole numbers, so their float64 sums are exact, in whatever order
        units_P = (self.confidence_HW.flatten() / UNIT).round_().double()
        sums_B = torch.bincount(bins_P, units_P, minlength=BINS + 1)[:BINS]
        squared = (self.squared_HW / UNIT).round_().masked_fill_(self.ignored_HW, 0).sum(dtype=torch.float64)
        return torch.stack((pixels_2B.sum(1), pixels_2B[:, 0], sums_B.round().long()), 1).cpu(), int(squared)


def bins_of(confidence: Tensor) -> Tensor:
    """The bin of each confidence, int32: that of the last edge of `EDGES` that is not above it.

    By arithmetic, in a tenth of the time that looking it up among the edges takes.
    """
    # the sum of a photo's probabilities times shares that add up to 1 may be above it by rounding
    halvings = (
        ((1 - confidence).clamp_(min=0) * EQUAL).log2_().neg_().clamp_(0, HALVINGS)
    )  # below the last equal bin none
    return (confidence * EQUAL).int().clamp_(max=EQUAL - 1).add_(halvings.int())
