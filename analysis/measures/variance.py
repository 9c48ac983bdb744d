"""Where the variance of an evaluation's scores comes from: seed, unit, and what is left (`analysis.maths.variance`).

Layout of ``measured`` (standard deviations, fractions; null where it is unknown, as the seed of one training)::

    {"seeds": 5, "units": 10, "miou": {"value": 0.453, "seed": 0.004, "unit": 0.05, "residual": 0.01}, "macc": {...},
     "aacc": {...}, "per_class": [{"name": "Sky", "value": ..., "seed": ..., "unit": ..., "residual": ...}, ...]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.maths.conventions import MEANS
from analysis.measures.extras import SEED, Extra

if TYPE_CHECKING:
    from whitebox.engine.evaluate import Evaluation


@dataclass(frozen=True)
class Variance(Extra):
    """The variance by its source."""

    kind = "variance"
    counted = False

    def measured(
        self, evaluations: Sequence[Evaluation], classes: Sequence[str], unit_N: Sequence[object] | None
    ) -> dict[str, Any]:
        """See above."""
        from analysis.maths.variance import parts
        from analysis.measures.evaluation import sampled_scores

        counts_SN3K = np.stack([each.counts_N3K for each in evaluations])
        found = sampled_scores(counts_SN3K, unit_N, 1, SEED, evaluations[0].mean_over)
        of = parts(found.cells_SUM)

        def row(index: int) -> dict[str, float | None]:
            numbers = {"value": found.value_M, "seed": of.seed_M, "unit": of.unit_M, "residual": of.residual_M}
            return {name: float(each[index]) if np.isfinite(each[index]) else None for name, each in numbers.items()}

        seeds, units, _ = found.cells_SUM.shape
        return {
            "seeds": seeds,
            "units": units,
            **{name: row(index) for index, name in enumerate(MEANS)},
            "per_class": [{"name": name, **row(len(MEANS) + index)} for index, name in enumerate(classes)],
        }
