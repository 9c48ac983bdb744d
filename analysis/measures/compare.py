"""Is one model better than another? Paired bootstrap of the difference, from per-image counts, without a rerun.

Two models see the same images, so an image that is hard for one is mostly hard for the other, and the two intervals of
`whitebox eval` may overlap although one model is better on nearly every image. Here each bootstrap draw takes the same
images for both and keeps the difference of their scores (``whitebox.engine.metrics.paired_bootstrap``; Efron and
Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 6 and 13). The interval holds the choice of images; the
spread between trainings it does not hold.

Layout of ``measured`` for ``kind="compare"`` (fractions, model minus reference)::

    {"miou": {"value": -0.011, "low": -0.015, "high": -0.007}, "macc": {...}, "aacc": {...},
     "model": {"miou": 0.348, "macc": ..., "aacc": ...}, "reference": {...},
     "per_class": [{"name": "Sky", "iou": {...}, "model": 0.89, "reference": 0.90}, ...]}

Shapes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.ask import ask
from analysis.maths.conventions import RESAMPLES
from analysis.maths.intervals import ranged
from analysis.measures.evaluation import Evaluated
from analysis.record import Answer, Question, Record, RecordError
from whitebox.errors import ConfigError

KIND = "compare"
MEANS = ("miou", "macc", "aacc")


def distinct_names(weights: Sequence[Path]) -> list[str]:
    """Names that tell runs apart: of the folders of their weights, with as many folders above as are needed.

    Raises:
        ConfigError: the same weights twice.
    """
    files = [path.resolve() for path in weights]
    for index, file in enumerate(files):
        if file in files[:index]:
            raise ConfigError(f"{weights[index]} is named twice: a model cannot be compared with itself.")
    folders = [file.parent.parts for file in files]
    parts = folders if len(set(folders)) == len(folders) else [file.parts for file in files]
    depth = 1
    while len({each[-depth:] for each in parts}) < len(parts):
        depth += 1
    return ["/".join(each[-depth:]) for each in parts]


def compare(
    reference: Evaluated,
    model: Evaluated,
    folder: Path,
    seed: int = 0,
    notes: Sequence[str] = (),
    *,
    again: bool = False,
) -> Record:
    """The record of ``model - reference``; scores of both, and the differences with their paired intervals.

    Args:
        folder: the record is below it.
        seed: of the bootstrap.
        notes: remarks for below the table.
        again: whatever is stored.

    Raises:
        RecordError: they have different classes, images or labels.
    """
    classes = _classes(model.record)
    for what, ours, theirs in (
        ("classes", classes, _classes(reference.record)),
        ("images", model.record.n, reference.record.n),
        ("images or labels", model.record.data.fingerprint, reference.record.data.fingerprint),
    ):
        if ours != theirs:
            raise RecordError(
                f"{model.name} and {reference.name} were evaluated on different {what}; only the same images with the "
                "same classes can be compared (--dataset, --split, --limit)."
            )
    settings, others = model.record.settings, reference.record.settings
    weights = reference.record.weights
    question = Question(
        kind=KIND,
        model=model.name,
        data=model.record.data,
        weights=model.record.weights,
        variant=model.record.variant,
        seeds={"bootstrap": seed},
        settings={
            "reference": reference.name,
            "reference_weights": weights and weights.sha256,
            "resamples": RESAMPLES,
            "evaluation": {"model": settings, "reference": others},
        },
    )
    unlike = [
        f"{key} is {value}, that of the reference {others.get(key)}"
        for key, value in settings.items()
        if value != others.get(key)
    ]

    def answer() -> Answer:
        measured = differences(reference, model, classes, seed)
        return Answer(measured={**measured, "notes": [*notes, *unlike]}, n=model.record.n)

    return ask(question, answer, folder / "records", again=again)


def differences(reference: Evaluated, model: Evaluated, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """``measured`` but for its notes.

    Raises:
        RecordError: the counts cannot be read.
    """
    from whitebox.engine.metrics import paired_bootstrap

    first, second = reference.evaluation, model.evaluation
    interval = paired_bootstrap(second.counts_N3K, first.counts_N3K, RESAMPLES, seed, mean_over=second.mean_over)
    scores, base = second.scores, first.scores

    def difference(ours: float, theirs: float, low_high: Sequence[float]) -> dict[str, float]:
        if ours == theirs == 0:  # found by neither: no resample can differ, and that is no certainty
            low_high = (math.nan, math.nan)
        return ranged(ours - theirs, low_high)

    return {
        **{key: difference(getattr(scores, key), getattr(base, key), getattr(interval, key)) for key in MEANS},
        "model": {key: getattr(scores, key) for key in MEANS},
        "reference": {key: getattr(base, key) for key in MEANS},
        "per_class": [
            {
                "name": name,
                "iou": difference(scores.iou_K[index], base.iou_K[index], interval.iou_K2[index].tolist()),
                "model": float(scores.iou_K[index]),
                "reference": float(base.iou_K[index]),
            }
            for index, name in enumerate(classes)
        ],
    }


def _classes(record: Record) -> list[str]:
    return [row["name"] for row in record.measured["per_class"]]
