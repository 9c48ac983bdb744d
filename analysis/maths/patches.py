"""Classes of patches, from those of their pixels. Shapes: h w patch grid, H W pixels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from whitebox.data.images import IGNORE


def patch_labels(label_HW: NDArray[np.uint8], patch: int, whole: int | None = None) -> Tensor:
    """The most frequent class among the labelled pixels of each patch, (h, w) int64; 255 where no pixel is labelled.

    Of equally frequent classes the one of the lower index counts. The border is padded with 255 to whole patches, or to
    multiples of ``whole`` px.
    """
    label = torch.from_numpy(np.ascontiguousarray(label_HW)).long()
    (H, W), whole = label.shape, whole or patch
    label = F.pad(label, (0, -W % whole, 0, -H % whole), value=IGNORE)
    h, w = label.shape[0] // patch, label.shape[1] // patch
    pixels = label.unflatten(1, (w, patch)).unflatten(0, (h, patch)).transpose(1, 2).flatten(2).flatten(0, 1)
    counts = torch.zeros(h * w, IGNORE + 1, dtype=torch.int64).scatter_add_(1, pixels, torch.ones_like(pixels))
    counts[:, IGNORE] = 0
    winner = counts.argmax(1)
    winner[counts.sum(1) == 0] = IGNORE
    return winner.unflatten(0, (h, w))
