"""Principal components of tokens, what their directions segment, and how segmentations agree.

    components    right singular vectors of the (N, D) tokens, their mean subtracted, float64; the entry of largest
                  magnitude is positive
    segmentation  a patch goes to the direction of the largest |cosine| with its token, and there to the end it points
                  to: opposite tokens are as different as cosines can tell
    agreement     normalised mutual information 2 I(A; B) / (H(A) + H(B)) over patches (Vinh et al. 2010, JMLR 11, table
                  2, NMI_sum), blind to which number a segment has: 1 the same segments, about 0 unrelated ones

Shapes: N tokens, D width, P components.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from analysis.maths.agreement import normalised_mutual_information
from whitebox.data.images import IGNORE

SHOWN = 3  # components as red, green, blue
PERCENTILES = (0.01, 0.99)  # of a component's scores: 0 and full colour


class Components(NamedTuple):
    """Principal components of N tokens.

    Attributes:
        directions_PD: unit vectors, by falling variance.
        scores_NP: coordinates of the centred tokens.
        shares_P: of the variance; NaN where all tokens are the same.
    """

    directions_PD: Tensor
    scores_NP: Tensor
    shares_P: Tensor


def principal_components(z_ND: Tensor, count: int) -> Components:
    """The first ``count`` components, fewer where there are fewer tokens or dimensions; float64."""
    centred_ND = z_ND.double() - z_ND.double().mean(0)
    _, singular_P, directions_PD = torch.linalg.svd(centred_ND, full_matrices=False)
    largest_P1 = directions_PD.abs().argmax(1, keepdim=True)
    directions_PD = (directions_PD * directions_PD.gather(1, largest_P1).sign())[:count]
    variance_P = singular_P.square()
    return Components(directions_PD, centred_ND @ directions_PD.T, (variance_P / variance_P.sum())[:count])


def nearest_direction(scores_NP: Tensor) -> Tensor:
    """The end of a component with the largest cosine with each token, (N,): 2 p or, where negative, 2 p + 1."""
    nearest_N = scores_NP.abs().argmax(1)
    return 2 * nearest_N + (scores_NP.gather(1, nearest_N[:, None])[:, 0] < 0)


def as_colours(scores_N3: Tensor) -> Tensor:
    """Scores as red, green and blue in [0, 1], (N, 3); a missing component, or one without spread, is grey."""
    colours_N3 = torch.full((len(scores_N3), SHOWN), 0.5, dtype=torch.float64)
    for index, score_N in enumerate(scores_N3.T[:SHOWN]):
        low, high = torch.quantile(score_N, torch.tensor(PERCENTILES, dtype=score_N.dtype)).tolist()
        if high > low:
            colours_N3[:, index] = ((score_N - low) / (high - low)).clamp(0, 1)
    return colours_N3


def mutual_information(segments_N: Tensor, labels_N: Tensor) -> float:
    """Normalised mutual information of two labellings of the same patches, in [0, 1]; label 255 does not count.

    NaN where both are one segment, or nothing counts.
    """
    counts_N = labels_N != IGNORE
    a_N, b_N = segments_N[counts_N].long(), labels_N[counts_N].long()
    if not a_N.numel():
        return math.nan
    joint_AB = torch.zeros(int(a_N.max()) + 1, int(b_N.max()) + 1, dtype=torch.float64)
    joint_AB.index_put_((a_N, b_N), torch.ones((), dtype=torch.float64), accumulate=True)
    return float(normalised_mutual_information(joint_AB.numpy()))
