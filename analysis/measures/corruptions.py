"""What the corruptions of ImageNet-C do to a model, alone and beside a reference model.

Severities of one corruption, and models, see the same random numbers. There is one draw a photo, so the error of what
is drawn is part of that of images: intervals are the bootstrap's over images, and quotients of two models take the same
images for both.

Shapes: C corruptions, S severities, R resamples, x = 1 + R: what was measured, then the resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from analysis.maths.corruptions import PACKAGE, group_of, package_version
from analysis.measures.changes import CLEAN, Bench, MeanScores, Values, percentile_interval
from analysis.measures.images import Progress
from analysis.measures.rows import Key
from analysis.record import Record
from whitebox.errors import ConfigError
from whitebox.runs import Run

KIND = "corruptions"  # of records


@dataclass(frozen=True)
class Corrupted:
    """A run's mIoU under corruptions, as measured and on resampled images.

    Attributes:
        clean_x, miou_xCS: fractions.
    """

    bench: Bench
    kinds: tuple[str, ...]
    severities: tuple[int, ...]
    seed: int
    clean_x: Values
    miou_xCS: Values


def measure_corruptions(
    run: Run,
    kinds: tuple[str, ...],
    severities: tuple[int, ...],
    *,
    seed: int,
    folder: Path,
    split: str | None,
    limit: int | None,
    advance: Progress,
) -> Corrupted:
    """Measure a run under each corruption at each severity; rows are kept in ``folder``.

    Raises:
        WhiteboxError: see `Samples`, `Rows`, `corrupt`, ``whitebox.engine.evaluate``.
    """
    bench = Bench(run, split, limit, 0, "corruption")
    shared = {"target": "corruption", "package": package_version(), "seed": seed}
    keys: list[list[Key]] = [
        [{**shared, "kind": kind, "severity": severity} for severity in severities] for kind in kinds
    ]
    with bench.rows(folder) as rows:
        rows.complete([CLEAN, *(key for row in keys for key in row)], bench.measure, advance)
        rows.merge()
        miou = MeanScores(rows)

        def scored(key: Key) -> Values:
            return np.concatenate([[miou([key])], miou.resampled([key], seed)])

        miou_CSx = [[scored(key) for key in row] for row in keys]
        return Corrupted(bench, kinds, severities, seed, scored(CLEAN), np.moveaxis(np.array(miou_CSx), 2, 0))


def corruption_record(found: Corrupted, reference: Corrupted | None) -> Record:
    """The record of a run under corruptions, with its degradation beside a reference model's where there is one.

    ``measured``: ``clean`` and ``mean`` mIoU; ``corruptions``, a list of ``name``, ``group``, ``mean`` over severities,
    and ``severities``, a list of ``severity`` and ``miou``; with a reference its ``reference`` (model, sha256 of its
    weights), ``cd`` and ``relative_cd`` of each corruption, and their means ``mcd`` and ``relative_mcd``. Fractions,
    each with its interval over images.

    Raises:
        ConfigError: the reference was measured on other images.
    """
    mean_xC = found.miou_xCS.mean(2)
    corruptions: list[dict[str, Any]] = [
        {
            "name": kind,
            "group": group_of(kind),
            "mean": estimate(mean_xC[:, c]),
            "severities": [
                {"severity": severity, "miou": estimate(found.miou_xCS[:, c, s])}
                for s, severity in enumerate(found.severities)
            ],
        }
        for c, kind in enumerate(found.kinds)
    ]
    measured: dict[str, Any] = {"clean": estimate(found.clean_x), "mean": estimate(mean_xC.mean(1))}
    if reference is not None:
        if reference.bench.samples.data != found.bench.samples.data:
            raise ConfigError(
                f"The reference {reference.bench.run.name} was measured on other images than {found.bench.run.name}."
            )
        cd_xC = degradation(found.miou_xCS, reference.miou_xCS)
        relative_xC = relative_degradation(
            found.miou_xCS, found.clean_x[:, None], reference.miou_xCS, reference.clean_x[:, None]
        )
        for c, corruption in enumerate(corruptions):
            corruption |= {"cd": estimate(cd_xC[:, c]), "relative_cd": estimate(relative_xC[:, c])}
        measured |= {"mcd": estimate(cd_xC.mean(1)), "relative_mcd": estimate(relative_xC.mean(1))}
        measured["reference"] = {"model": reference.bench.run.name, "weights": reference.bench.weights.sha256}
    measured["corruptions"] = corruptions
    settings = {
        "kinds": list(found.kinds),
        "severities": list(found.severities),
        "package": f"{PACKAGE} {package_version()}",
        "reference": None if reference is None else reference.bench.weights.sha256,
    }
    return found.bench.record(KIND, measured, found.seed, settings, "")


def estimate(values_x: Values) -> dict[str, float]:
    """What was measured, and the interval of its resamples; none where one of them has no value."""
    low, high = (np.nan, np.nan) if np.isnan(values_x).any() else percentile_interval(values_x[1:])
    return {"value": float(values_x[0]), "low": low, "high": high}


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
