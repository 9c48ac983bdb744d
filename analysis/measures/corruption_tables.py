"""A run's mIoU under corruptions, as measured and on resampled images; see `corruptions`.

Shapes: C corruptions, S severities, R resamples, x = 1 + R: what was measured, then the resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.consumed import EvaluatedImages
from analysis.maths.corruption_names import group_of, package_version
from analysis.maths.degradation import degradation, relative_degradation
from analysis.maths.intervals import ranged
from analysis.measurement import Progress
from analysis.measures.changes import CLEAN, ChangedRun, MeanScores, Values, unit_interval
from analysis.measures.corruptions import Corruptions
from analysis.measures.rows import Key
from whitebox.runs import Run


@dataclass(frozen=True)
class Corrupted:
    """What was found; fractions."""

    clean_x: Values
    miou_xCS: Values
    units: int


def corrupted(run: Run, options: Corruptions, images: EvaluatedImages, folder: Path, advance: Progress) -> Corrupted:
    """Measure a run under each corruption at each severity; rows are kept in ``folder``.

    Raises:
        WhiteboxError: see `Rows`, `corrupt`, ``whitebox.engine.evaluate``.
    """
    changed = ChangedRun(run, images, 0, "corruption")
    shared = {"target": "corruption", "package": package_version(), "seed": options.seed}
    keys: list[list[Key]] = [
        [{**shared, "kind": kind, "severity": severity} for severity in options.severities] for kind in options.kinds
    ]
    with changed.rows(folder) as rows:
        rows.complete([CLEAN, *(key for row in keys for key in row)], changed.measure, advance)
        rows.merge()
        miou = MeanScores(rows, images.units.of_N)

        def scored(key: Key) -> Values:
            return np.concatenate([[miou([key])], miou.resampled([key], options.seed)])

        miou_CSx = [[scored(key) for key in row] for row in keys]
        return Corrupted(scored(CLEAN), np.moveaxis(np.array(miou_CSx), 2, 0), len(images.units))


def measured_corruptions(options: Corruptions, found: Corrupted, reference: Corrupted | None) -> dict[str, Any]:
    """``measured`` of the record, but for what is said of the reference."""
    mean_xC = found.miou_xCS.mean(2)

    def estimate(values_x: Values) -> dict[str, float]:
        return estimated(values_x, found.units)

    corruptions: list[dict[str, Any]] = [
        {
            "name": kind,
            "group": group_of(kind),
            "mean": estimate(mean_xC[:, c]),
            "severities": [
                {"severity": severity, "miou": estimate(found.miou_xCS[:, c, s])}
                for s, severity in enumerate(options.severities)
            ],
        }
        for c, kind in enumerate(options.kinds)
    ]
    measured: dict[str, Any] = {"clean": estimate(found.clean_x), "mean": estimate(mean_xC.mean(1))}
    if reference is not None:
        cd_xC = degradation(found.miou_xCS, reference.miou_xCS)
        relative_xC = relative_degradation(
            found.miou_xCS, found.clean_x[:, None], reference.miou_xCS, reference.clean_x[:, None]
        )
        for c, corruption in enumerate(corruptions):
            corruption |= {"cd": estimate(cd_xC[:, c]), "relative_cd": estimate(relative_xC[:, c])}
        measured |= {"mcd": estimate(cd_xC.mean(1)), "relative_mcd": estimate(relative_xC.mean(1))}
    return {**measured, "corruptions": corruptions}


def estimated(values_x: Values, units: int) -> dict[str, float]:
    """What was measured, and the interval of its resamples; none where one of them has no value."""
    ends = (np.nan, np.nan) if np.isnan(values_x).any() else unit_interval(values_x[0], values_x[1:], units)
    return ranged(values_x[0], ends)
