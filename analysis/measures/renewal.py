"""Intervals of stored evaluations and comparisons made anew from the counts beside them; no model and no image is read.

For records of before images had units, and to see what another unit would say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from analysis.maths.conventions import RESAMPLES
from analysis.measures import compare as comparison
from analysis.measures.evaluation import KIND, Evaluated, read_counts, store_evaluation
from analysis.record import Question, Record, RecordError, read_record, write_record
from whitebox.config import DataConfig
from whitebox.data.readers import READERS
from whitebox.data.units import units_of, with_unit


def renew(folders: Sequence[Path], unit: str | None = None) -> int:
    """Replace the evaluations and comparisons below some folders by ones with today's intervals; gives their number.

    Evaluations without counts are left as they are, and so are comparisons of which one side has none.

    Args:
        unit: see `whitebox.data.units.with_unit`; None: that of the dataset.

    Raises:
        RecordError: counts are not those of their record.
        ConfigError, DataError: the unit does not fit the images.
    """
    found = [path for folder in folders for path in sorted(folder.glob("**/records/*.json"))]
    records = {path: read_record(path) for path in found}
    evaluations = [
        _evaluation(path, record, unit)
        for path, record in records.items()
        if record.kind == KIND and path.with_suffix(".npz").is_file() and "training_seeds" not in record.settings
    ]
    known = {(each.record.weights and each.record.weights.sha256, each.record.data): each for each in evaluations}
    count = len(evaluations)
    for path, record in records.items():
        if record.kind != comparison.KIND or record.weights is None:
            continue
        model = known.get((record.weights.sha256, record.data))
        reference = known.get((record.settings["reference_weights"], record.data))
        if model is not None and reference is not None:
            _comparison(path, record, reference, model)
            count += 1
    return count


def _evaluation(path: Path, record: Record, unit: str | None) -> Evaluated:
    evaluation = read_counts(path.with_suffix(".npz"), record)
    name = record.data.name
    data = DataConfig(name=name, kind=name if name in READERS else "folder")
    units = units_of(data if unit is None else with_unit(data, unit), evaluation.names)
    settings = {**record.settings, "resamples": RESAMPLES, "unit": units.described}
    classes = [row["name"] for row in record.measured["per_class"]]
    question = _asked(record, settings)
    renewed = store_evaluation(question, evaluation, classes, units.of_N, path.parent.parent, record.model)
    _keep_origin(renewed.record, record, path.parent)
    _replaced(path, question, ".json", ".npz")
    return renewed


def _comparison(path: Path, record: Record, reference: Evaluated, model: Evaluated) -> None:
    theirs = Evaluated(record.settings["reference"], reference.record, reference.counts)
    ours = Evaluated(record.model, model.record, model.counts)
    notes = [str(note) for note in record.measured.get("notes", ())]
    renewed = comparison.compare(theirs, ours, path.parent.parent, record.seeds["bootstrap"], notes, again=True)
    _keep_origin(renewed, record, path.parent)
    _replaced(path, renewed, ".json")


def _keep_origin(renewed: Record, record: Record, folder: Path) -> None:
    """Predictions are as old as they were: what says how and when they were made stays."""
    origin = {key: getattr(record, key) for key in ("command", "created", "versions", "hardware")}
    write_record(replace(renewed, **origin), folder)


def _asked(record: Record, settings: dict[str, object]) -> Question:
    values = {each.name: getattr(record, each.name) for each in fields(Question)}
    return Question(**{**values, "settings": settings})


def _replaced(path: Path, question: Question, *suffixes: str) -> None:
    """Take a record away that another one has replaced."""
    if path.name == question.file_name:
        return
    if not (path.parent / question.file_name).is_file():
        raise RecordError(f"{path} could not be replaced: {question.file_name} is not there.")
    for suffix in suffixes:
        path.with_suffix(suffix).unlink(missing_ok=True)
