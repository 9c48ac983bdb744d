"""IoU image by image, and weighted by how frequent classes are, from the counts that every evaluation keeps.

Layout of ``measured`` (fractions)::

    {"miou": {"value", "low", "high"}, "fwiou": {...}, "miou_images": {...}, "miou_classes": {...},
     "worst_share": 0.05, "miou_worst": 0.21,               # mean over the worst 5 % of the images
     "quantiles": [{"at": 0.05, "miou": 0.2}, ...],         # of the images' mIoU
     "histogram": [{"from": 0.0, "to": 0.05, "images": 3}, ...],
     "worst": [{"name": "0016E5_08151", "miou": 0.17}, ...]}

Of several trainings, the mIoU of an image is the mean over them. Formulas: `analysis.maths.image_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.maths.conventions import RESAMPLES
from analysis.measures.extras import SEED, Extra, ranged_all

if TYPE_CHECKING:
    from whitebox.engine.evaluate import Evaluation

NUMBERS = ("miou", "fwiou", "miou_images", "miou_classes")
NAMED = 10  # worst images
WORST = 0.05  # share of the images
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 20


@dataclass(frozen=True)
class Images(Extra):
    """Scores of images one by one."""

    kind = "images"
    counted = False

    def measured(
        self, evaluations: Sequence[Evaluation], classes: Sequence[str], unit_N: Sequence[object] | None
    ) -> dict[str, Any]:
        """See above."""
        from analysis.maths.image_scores import frequency_weighted, image_means, image_miou, image_sums
        from analysis.maths.resampling import estimated
        from whitebox.engine.metrics import score_vectors

        mean_over, width = evaluations[0].mean_over, 3 * len(classes)
        counts_SN3K = np.array([each.counts_N3K for each in evaluations])
        flat_SNC = counts_SN3K.reshape(*counts_SN3K.shape[:2], -1)
        sums_SNC = np.concatenate([flat_SNC, [image_sums(each) for each in counts_SN3K]], axis=-1)

        def numbers(sums_xC: NDArray[np.float64]) -> NDArray[np.float64]:
            pooled = sums_xC[..., :width]
            counts_x3K = pooled.reshape(*pooled.shape[:-1], 3, -1)
            single = np.stack([score_vectors(pooled, mean_over)[..., 0], frequency_weighted(counts_x3K)], -1)
            return np.concatenate([single, image_means(sums_xC[..., width:])], -1)

        values = ranged_all(estimated(sums_SNC, numbers, unit_N, resamples=RESAMPLES, seed=SEED))
        miou_N = np.mean([image_miou(each) for each in counts_SN3K], axis=0)  # nan for the same images
        order = np.argsort(miou_N, kind="stable")  # nan last
        known_N = miou_N[order][: int((~np.isnan(miou_N)).sum())]
        images, edges = np.histogram(known_N, BINS, (0.0, 1.0))
        lowest = known_N[: max(1, math.floor(WORST * len(known_N)))]
        names = evaluations[0].names
        return {
            **dict(zip(NUMBERS, values, strict=True)),
            "worst_share": WORST,
            "miou_worst": float(lowest.mean()) if len(lowest) else math.nan,
            "quantiles": [
                {"at": at, "miou": float(np.quantile(known_N, at)) if len(known_N) else math.nan} for at in QUANTILES
            ],
            "histogram": [
                {"from": float(edges[index]), "to": float(edges[index + 1]), "images": int(count)}
                for index, count in enumerate(images)
            ],
            "worst": [
                {"name": names[index], "miou": float(miou_N[index])} for index in order[: min(NAMED, len(known_N))]
            ],
        }
