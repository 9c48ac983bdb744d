"""Is one model better than another? Paired intervals of the difference, from per-image counts, without a rerun.

Two models see the same images, so an image that is hard for one is mostly hard for the other, and the two intervals of
`whitebox eval` may overlap although one model is better on nearly every image. Here each draw takes the same units for
both and keeps the difference of their scores (`analysis.maths.resampling`). Where both were trained with the same
seeds, and so saw data in the same order, trainings are compared seed by seed; else their spreads add up. Of fewer than
three trainings the interval holds the choice of units alone.

Layout of ``measured`` for ``kind="compare"`` (fractions, model minus reference; ``p`` is two-sided and not corrected
for the number of comparisons, ``error`` the Monte Carlo error of the ends)::

    {"miou": {"value": -0.011, "low": -0.015, "high": -0.007, "p": 0.001, "error": 0.0001},
     "macc": {...}, "aacc": {...}, and where they were asked for "boundary_miou", "ece", "brier",
     "model": {"miou": 0.348, "macc": ..., "aacc": ...}, "reference": {...},
     "per_class": [{"name": "Sky", "iou": {...}, "model": 0.89, "reference": 0.90}, ...]}

Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.ask import ask
from analysis.maths.conventions import MEANS, RESAMPLES
from analysis.maths.intervals import ranged
from analysis.maths.resampling import Sampled, interval
from analysis.measures.evaluation import Evaluated, sampled_scores
from analysis.measures.extras import Extra, stored_interval
from analysis.record import Answer, Question, Record, RecordError
from whitebox.errors import ConfigError

KIND = "compare"


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
    extras: Sequence[Extra] = (),
) -> Record:
    """The record of ``model - reference``; scores of both, and the differences with their paired intervals.

    Args:
        folder: the record is below it.
        seed: of the bootstrap.
        notes: remarks for below the table.
        again: whatever is stored.
        extras: that both evaluations were asked for, in this order, to be compared too.

    Raises:
        RecordError: they have different classes, images or labels.
    """
    require_same_images(reference, model)
    classes = _classes(model.record)
    settings, others = model.record.settings, reference.record.settings
    question = paired_question(
        KIND,
        reference,
        model,
        {"bootstrap": seed},
        {
            "resamples": RESAMPLES,
            "unit": settings.get("unit"),
            **({"training_seeds": list(model.seeds)} if len(model.seeds) > 1 else {}),
            **({"reference_seeds": list(reference.seeds)} if len(reference.seeds) > 1 else {}),
            **({"also": {extra.kind: dict(extra.settings) for extra in extras}} if extras else {}),
            "evaluation": {"model": settings, "reference": others},
        },
    )
    unlike = [
        f"{key} is {value}, that of the reference {others.get(key)}"
        for key, value in settings.items()
        if value != others.get(key) and key not in ("training_seeds", "training_weights")
    ]

    def answer() -> Answer:
        measured = differences(reference, model, classes, seed)
        for index, extra in enumerate(extras):
            found = extra_differences(reference, model, extra, index, seed)
            measured |= {**found, **{side: {**measured[side], **found[side]} for side in ("model", "reference")}}
        return Answer(measured={**measured, "notes": [*notes, *unlike]}, n=model.record.n)

    return ask(question, answer, folder / "records", again=again)


def paired_question(
    kind: str, reference: Evaluated, model: Evaluated, seeds: dict[str, int], settings: Mapping[str, Any]
) -> Question:
    """What is asked of ``model`` beside ``reference``."""
    weights = reference.record.weights
    return Question(
        kind=kind,
        model=model.name,
        data=model.record.data,
        weights=model.record.weights,
        variant=model.record.variant,
        seeds=seeds,
        settings={"reference": reference.name, "reference_weights": weights and weights.sha256, **settings},
    )


def require_same_images(reference: Evaluated, model: Evaluated) -> None:
    """Raise a RecordError unless two evaluations can be paired."""
    settings, others = model.record.settings, reference.record.settings
    for what, ours, theirs in (
        ("classes", _classes(model.record), _classes(reference.record)),
        ("images", model.record.n, reference.record.n),
        ("images or labels", model.record.data.fingerprint, reference.record.data.fingerprint),
        ("units", settings.get("unit"), others.get("unit")),
    ):
        if ours != theirs:
            raise RecordError(
                f"{model.name} and {reference.name} were evaluated on different {what}; only the same images with the "
                "same classes can be compared (--dataset, --split, --limit)."
            )


def differences(reference: Evaluated, model: Evaluated, classes: Sequence[str], seed: int) -> dict[str, Any]:
    """``measured`` but for its notes.

    Raises:
        RecordError: the counts cannot be read.
    """
    both = [
        sampled_scores(each.counts_SN3K, reference.unit_N, RESAMPLES, seed, each.evaluation.mean_over)
        for each in (model, reference)
    ]
    difference = _paired(reference, model, both, 1.0)
    ours_M, theirs_M = (each.value_M for each in both)
    first_class = len(MEANS)
    return {
        **{key: difference(index) for index, key in enumerate(MEANS)},
        "model": {key: float(ours_M[index]) for index, key in enumerate(MEANS)},
        "reference": {key: float(theirs_M[index]) for index, key in enumerate(MEANS)},
        "per_class": [
            {
                "name": name,
                "iou": difference(first_class + index),
                "model": float(ours_M[first_class + index]),
                "reference": float(theirs_M[first_class + index]),
            }
            for index, name in enumerate(classes)
        ],
    }


def extra_differences(reference: Evaluated, model: Evaluated, extra: Extra, index: int, seed: int) -> dict[str, Any]:
    """What of an extra is compared, by name, and its value for both models.

    Raises:
        RecordError: the counts cannot be read.
    """
    both = [each.sampled(extra, index, reference.unit_N, seed) for each in (model, reference)]
    return {
        **{name: _paired(reference, model, both, each.most)(each.place) for name, each in extra.compared.items()},
        **{
            side: {name: float(found.value_M[each.place]) for name, each in extra.compared.items()}
            for side, found in zip(("model", "reference"), both, strict=True)
        },
    }


def _paired(
    reference: Evaluated, model: Evaluated, both: Sequence[Sampled], most: float
) -> Callable[[int], dict[str, Any]]:
    """The difference of a score, by its index, as records store it.

    Args:
        both: scores of the model, and of the reference.
        most: that they can differ.
    """
    matched = model.seeds == reference.seeds or len(model.seeds) == len(reference.seeds) == 1
    found = interval(both[0].minus(both[1], matched), within=(-most, most))

    def difference(index: int) -> dict[str, Any]:
        ends = (found.low_M[index], found.high_M[index])
        stored = stored_interval(found, index) if matched else ranged(found.value_M[index], ends)
        return {**stored, "p": float(found.p_M[index]), "error": float(found.error_M2[index].max())}

    return difference


def _classes(record: Record) -> list[str]:
    return [row["name"] for row in record.measured["per_class"]]
