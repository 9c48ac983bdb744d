"""Boundary IoU of an evaluation: how well a model finds the outlines of classes (`whitebox.engine.boundaries`).

Layout of ``measured`` (fractions)::

    {"miou": {"value": 0.31, "low": 0.29, "high": 0.33}, "mask_miou": 0.45,
     "per_class": [{"name": "Sky", "iou": {...}, "mask_iou": 0.91}, ...]}

``mask_*`` are the same of whole masks. Counts beside the record: ``counts`` (N, 3, K), near the boundary in prediction
and label alike, in the prediction, in the label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from analysis.maths.conventions import RESAMPLES
from analysis.measures.extras import SEED, Compared, Extra, ranged_all
from whitebox.errors import require

if TYPE_CHECKING:
    from analysis.maths.resampling import Sampled
    from whitebox.engine.evaluate import Evaluation, Kept


@dataclass(frozen=True)
class Boundary(Extra):
    """Boundary IoU; ``ratio``: how far from a boundary pixels count, as a share of the image's diagonal."""

    kind = "boundary"
    compared: ClassVar = {"boundary_miou": Compared(0)}
    ratio: float = 0.02

    def __post_init__(self) -> None:
        require(0 < self.ratio <= 1, "--boundary-ratio", self.ratio, "it must be above 0 and at most 1")

    @property
    def settings(self) -> Mapping[str, Any]:
        """The ratio."""
        return {"boundary_ratio": self.ratio}

    def wanted(self, kept: Kept) -> Kept:
        """Pixels near boundaries."""
        return replace(kept, boundary=self.ratio)

    def arrays(self, evaluation: Evaluation) -> dict[str, NDArray[Any]] | None:
        """Their counts."""
        return None if evaluation.boundary_N3K is None else {"counts": evaluation.boundary_N3K}

    def restored(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Their counts."""
        return {"boundary_N3K": arrays["counts"]}

    def sampled(self, evaluations: Sequence[Evaluation], unit_N: Sequence[object] | None, seed: int = SEED) -> Sampled:
        """Boundary mIoU, and Boundary IoU of each class."""
        from analysis.maths.resampling import sampled
        from whitebox.engine.metrics import score_vectors

        counts_SN3K = np.array([each.boundary_N3K for each in evaluations])
        mean_over, K = evaluations[0].mean_over, counts_SN3K.shape[-1]

        def mean_and_classes(sums_xC: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.delete(score_vectors(sums_xC, mean_over), [1, 2, *range(3 + K, 3 + 2 * K)], axis=-1)

        counts_SNC = counts_SN3K.reshape(*counts_SN3K.shape[:2], -1)
        return sampled(counts_SNC, mean_and_classes, unit_N, resamples=RESAMPLES, seed=seed)

    def measured(
        self, evaluations: Sequence[Evaluation], classes: Sequence[str], unit_N: Sequence[object] | None
    ) -> dict[str, Any]:
        """See above."""
        from analysis.maths.resampling import interval

        values = ranged_all(interval(self.sampled(evaluations, unit_N)))
        masks = [each.scores for each in evaluations]
        return {
            "miou": values[0],
            "mask_miou": float(np.mean([mask.miou for mask in masks])),
            "per_class": [
                {"name": name, "iou": value, "mask_iou": float(whole)}
                for name, value, whole in zip(
                    classes, values[1:], np.mean([mask.iou_K for mask in masks], axis=0), strict=True
                )
            ],
        }
