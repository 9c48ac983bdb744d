"""What corruptions take from a model, as a multiple of what they take from a reference model.

Shapes: S severities, x any further axes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


def degradation(miou_xS: ArrayLike, reference_xS: ArrayLike) -> Values:
    """Corruption degradation CD of a model, sum over severities of 1 - mIoU, as a multiple of a reference model's.

    Below 1: better than the reference. Source: CD of Kamann and Rother, CVPR 2020, after ImageNet-C's corruption error.

    Args:
        miou_xS: mIoU as fractions, severities last.
        reference_xS: those of the reference model, of the same shape.
    """
    return _quotient((1 - np.asarray(miou_xS)).sum(-1), (1 - np.asarray(reference_xS)).sum(-1))


def relative_degradation(
    miou_xS: ArrayLike, clean_x: ArrayLike, reference_xS: ArrayLike, reference_clean_x: ArrayLike
) -> Values:
    """Relative CD: what the corruption takes from the clean mIoU, as a multiple of what it takes from the reference.

    NaN where the reference loses nothing. Source: as `degradation`.
    """
    loss = (np.asarray(clean_x)[..., None] - np.asarray(miou_xS)).sum(-1)
    reference_loss = (np.asarray(reference_clean_x)[..., None] - np.asarray(reference_xS)).sum(-1)
    return _quotient(loss, reference_loss)


def _quotient(above: Values, below: Values) -> Values:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)
