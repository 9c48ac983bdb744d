"""How far a model's confidence can be trusted, and what is gained by leaving out what it is unsure of.

Layout of ``measured`` (fractions; Brier score between 0 and 2)::

    {"ece": {"value", "low", "high"}, "overconfidence": {...}, "brier": {...}, "aurc": {...}, "eaurc": {...},
     "reliability": [{"from": 0.0, "to": 0.0667, "share": 0.01, "confidence": 0.05, "accuracy": {...}}, ...],
     "risk": [{"coverage": 0.05, "risk": {...}}, ...]}

Counts beside the record: ``bins`` (N, B, 3) of pixels, right ones, and summed confidences, and ``squared_error`` (N,);
see `whitebox.engine.confidence`. Formulas: `analysis.maths.calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from analysis.maths.conventions import RESAMPLES
from analysis.measures.extras import SEED, Compared, Extra, ranged_all

if TYPE_CHECKING:
    from analysis.maths.resampling import Sampled
    from whitebox.engine.evaluate import Evaluation, Kept

COVERAGES = np.linspace(0.05, 1, 20)
NUMBERS = ("ece", "overconfidence", "brier", "aurc", "eaurc")


@dataclass(frozen=True)
class Calibration(Extra):
    """Calibration and selective prediction."""

    kind = "calibration"
    compared: ClassVar = {"ece": Compared(NUMBERS.index("ece")), "brier": Compared(NUMBERS.index("brier"), most=2.0)}

    def wanted(self, kept: Kept) -> Kept:
        """The confidence of each pixel."""
        return replace(kept, confidence=True)

    def arrays(self, evaluation: Evaluation) -> dict[str, NDArray[Any]] | None:
        """Its binned counts."""
        if evaluation.confidence_NB3 is None or evaluation.squared_error_N is None:
            return None
        return {"bins": evaluation.confidence_NB3, "squared_error": evaluation.squared_error_N}

    def restored(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Its binned counts."""
        return {"confidence_NB3": arrays["bins"], "squared_error_N": arrays["squared_error"]}

    def sampled(self, evaluations: Sequence[Evaluation], unit_N: Sequence[object] | None, seed: int = SEED) -> Sampled:
        """`NUMBERS`, then the accuracy of each bin, then the risk at each coverage."""
        from analysis.maths import calibration as maths
        from analysis.maths.resampling import sampled

        bins_SN3B = np.array([each.confidence_NB3 for each in evaluations]).swapaxes(2, 3)
        squared_SN1 = np.array([each.squared_error_N for each in evaluations])[..., None]

        def numbers(sums_xC: NDArray[np.float64]) -> NDArray[np.float64]:
            bins_xB3 = sums_xC[..., 1:].reshape(*sums_xC.shape[:-1], 3, -1).swapaxes(-1, -2)  # bins lie side by side
            single = (
                maths.calibration_error(bins_xB3),
                maths.overconfidence(bins_xB3),
                maths.brier_score(sums_xC[..., 0], bins_xB3),
            )
            return np.concatenate(
                [
                    np.stack(single, -1),
                    maths.area_under_risk(bins_xB3),
                    maths.reliability(bins_xB3)[2],
                    maths.risks_at(bins_xB3, COVERAGES),
                ],
                axis=-1,
            )

        sums_SNC = np.concatenate([squared_SN1, bins_SN3B.reshape(*bins_SN3B.shape[:2], -1)], axis=-1)
        return sampled(sums_SNC, numbers, unit_N, resamples=RESAMPLES, seed=seed)

    def measured(
        self, evaluations: Sequence[Evaluation], classes: Sequence[str], unit_N: Sequence[object] | None
    ) -> dict[str, Any]:
        """See above."""
        from analysis.maths import calibration as maths
        from analysis.maths.resampling import interval

        bins_SNB3 = np.array([each.confidence_NB3 for each in evaluations])
        found = interval(self.sampled(evaluations, unit_N))
        least, most = np.zeros(len(found.value_M)), np.ones(len(found.value_M))
        least[NUMBERS.index("overconfidence")], most[NUMBERS.index("brier")] = -1, np.inf
        values = ranged_all(found, least, most)
        share_M, confidence_M, _ = maths.reliability(bins_SNB3.sum((0, 1)))
        edges = maths.bin_edges()
        accuracies = values[len(NUMBERS) : len(NUMBERS) + len(share_M)]
        return {
            **dict(zip(NUMBERS, values, strict=False)),
            "reliability": [
                {
                    "from": float(edges[index]),
                    "to": float(edges[index + 1]),
                    "share": float(share_M[index]),
                    "confidence": float(confidence_M[index]),
                    "accuracy": accuracy,
                }
                for index, accuracy in enumerate(accuracies)
            ],
            "risk": [
                {"coverage": float(coverage), "risk": risk}
                for coverage, risk in zip(COVERAGES, values[len(NUMBERS) + len(share_M) :], strict=True)
            ],
        }
