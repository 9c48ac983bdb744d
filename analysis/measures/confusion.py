"""What a model takes for what: the confusion matrix of an evaluation, and its worst entries.

Layout of ``measured`` (fractions of the labelled pixels of a class)::

    {"worst": [{"label": "Bicyclist", "prediction": "Pedestrian", "share": {"value", "low", "high"},
                "of_all": 0.004}, ...],
     "classes": [0, 1, 2],                      # of the matrix: all, or those of the worst entries
     "names": ["Sky", ...], "labelled": [0.17, ...],       # of these: share of all labelled pixels
     "matrix": [[0.93, 0.01, 0.02, 0.04], ...]}            # label, prediction; last column: classes that are not shown

The entries of each image lie beside the record of the evaluation (``confusion``, (M, 4): image, label, prediction,
pixels; those that are not 0), so nothing is predicted again for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.maths.conventions import RESAMPLES
from analysis.measures.extras import SEED, Extra, ranged_all

if TYPE_CHECKING:
    from whitebox.engine.evaluate import Evaluation

WORST = 20  # entries that are named
SHOWN = 24  # classes of a matrix that can be read


@dataclass(frozen=True)
class Confusion(Extra):
    """The confusion matrix."""

    kind = "confusion"
    counted = False

    def arrays(self, evaluation: Evaluation) -> dict[str, NDArray[Any]] | None:
        """Nothing of its own; older evaluations have kept none."""
        return None if evaluation.confusion_M4 is None else {}

    def measured(
        self, evaluations: Sequence[Evaluation], classes: Sequence[str], unit_N: Sequence[object] | None
    ) -> dict[str, Any]:
        """See above."""
        from analysis.maths.resampling import estimated

        K, total_KK = len(classes), np.zeros((len(classes), len(classes)), np.int64)
        entries: list[NDArray[np.int64]] = [each.confusion_M4 for each in evaluations if each.confusion_M4 is not None]
        for entries_M4 in entries:
            np.add.at(total_KK, (entries_M4[:, 1], entries_M4[:, 2]), entries_M4[:, 3])
        labelled_K = total_KK.sum(1)
        share_KK = total_KK / np.maximum(1, labelled_K)[:, None]
        wrong_KK = np.where(np.eye(K, dtype=bool), 0.0, share_KK)
        order = np.argsort(-wrong_KK, axis=None, kind="stable")[:WORST]
        worst = [(int(at) // K, int(at) % K) for at in order if wrong_KK.flat[at] > 0]
        sums_SNC = np.array(
            [_pairs(entries_M4, each, worst) for entries_M4, each in zip(entries, evaluations, strict=True)]
        )

        def shares(sums_xC: NDArray[np.float64]) -> NDArray[np.float64]:
            above, below = np.split(sums_xC, 2, axis=-1)
            return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)

        values = ranged_all(estimated(sums_SNC, shares, unit_N, resamples=RESAMPLES, seed=SEED)) if worst else []
        shown = list(range(K)) if K <= SHOWN else _first_classes(worst, SHOWN)
        matrix = share_KK[np.ix_(shown, shown)]
        return {
            "worst": [
                {
                    "label": classes[label],
                    "prediction": classes[prediction],
                    "share": value,
                    "of_all": float(total_KK[label, prediction] / labelled_K.sum()),
                }
                for (label, prediction), value in zip(worst, values, strict=True)
            ],
            "classes": shown,
            "names": [classes[index] for index in shown],
            "labelled": (labelled_K[shown] / max(1, int(labelled_K.sum()))).tolist(),
            "matrix": np.column_stack([matrix, share_KK[shown].sum(1) - matrix.sum(1)]).clip(0, 1).tolist(),
        }


def _pairs(
    entries_M4: NDArray[np.int64], evaluation: Evaluation, worst: Sequence[tuple[int, int]]
) -> NDArray[np.int64]:
    """Of each image, pixels of each pair of label and prediction, then those of the label, (N, 2 W)."""
    labels_NK = evaluation.counts_N3K[:, 2]
    pixels_NW = np.zeros((len(labels_NK), len(worst)), np.int64)
    for column, (label, prediction) in enumerate(worst):
        ours = entries_M4[(entries_M4[:, 1] == label) & (entries_M4[:, 2] == prediction)]
        pixels_NW[ours[:, 0], column] = ours[:, 3]
    return np.hstack([pixels_NW, labels_NK[:, [label for label, _ in worst]]])


def _first_classes(worst: Sequence[tuple[int, int]], most: int) -> list[int]:
    """The classes of the worst entries, in their own order, as many as may be shown."""
    found: dict[int, None] = {}
    for pair in worst:
        if len(found.keys() | set(pair)) > most:
            break
        found.update(dict.fromkeys(pair))
    return sorted(found)
