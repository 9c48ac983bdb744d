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
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.measures.evaluation import RESAMPLES, evaluation_record, evaluation_settings, store_evaluation
from analysis.measures.images import Progress
from analysis.record import Record, RecordError, describe_weights, fingerprint, new_record, read_records
from analysis.show.figures import COLUMN, figure_style, legend_columns, new_figure, save_figure
from analysis.show.tables import Cell, Column, Estimate, Table, percent
from analysis.show.tables import evaluation as evaluation_table
from whitebox.data import build_dataset
from whitebox.engine.distributed import evaluate_together, on_main
from whitebox.engine.evaluate import Evaluation
from whitebox.engine.metrics import paired_bootstrap
from whitebox.errors import ConfigError
from whitebox.runs import Run

KIND = "compare"
MEANS = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc"}


@dataclass(frozen=True)
class Evaluated:
    """A run's evaluation: its record, its per-image counts, and the name it is shown under."""

    name: str
    record: Record
    evaluation: Evaluation


def evaluated(
    run: Run,
    name: str,
    split: str | None = None,
    limit: int | None = None,
    output: Path | None = None,
    advance: Progress | None = None,
) -> Evaluated:
    """The evaluation of a run: the stored one of these images and settings, else a new one, which is then stored.

    Stored ones are looked for among the records of ``output`` and of the run's folder.

    Args:
        split: None: the validation split.
        limit: only the first images.
        output: where a new one is stored; None: the run's folder.
        advance: called after each image that has to be predicted.

    Raises:
        WhiteboxError: the images or stored counts cannot be read, or do not fit the model.
    """
    split = split or run.config.data.val_split
    images = build_dataset(run.config.data, split, augment=False)
    names = images.names[:limit]
    for folder in dict.fromkeys((output or run.folder, run.folder)):
        if found := _stored(run, split, names, images.classes, folder / "records"):
            return Evaluated(name, *found)

    def on_image(index: int, *_: object) -> None:
        if advance is not None:
            advance(index + 1, len(names))

    config = run.config
    evaluation = evaluate_together(run.model, images, config.inference, config.data, limit=limit, on_image=on_image)
    record = evaluation_record(
        evaluation, config, run=run.name, weights=run.weights, classes=images.classes, split=split
    )

    def store() -> None:
        store_evaluation(record, evaluation, output or run.folder)

    on_main(store)
    return Evaluated(name, record, evaluation)


def _stored(
    run: Run, split: str, names: Sequence[str], classes: Sequence[str], folder: Path
) -> tuple[Record, Evaluation] | None:
    """The newest evaluation in ``folder`` of these weights, images, classes and settings that has its counts."""
    asked = (describe_weights(run.weights).sha256, run.config.data.name, split, evaluation_settings(run.config))
    for record in reversed(read_records(folder, "eval")):
        there = (record.weights and record.weights.sha256, record.data.name, record.data.split, record.settings)
        counts = (folder / record.file_name).with_suffix(".npz")
        if there == asked and record.n == len(names) and _classes(record) == list(classes) and counts.is_file():
            stored = read_counts(counts, record)
            if stored.names == tuple(names):
                return record, stored
    return None


def _classes(record: Record) -> list[str]:
    return [row["name"] for row in evaluation_table(record)["per_class"]]


def read_counts(path: Path, record: Record) -> Evaluation:
    """The per-image counts stored beside an evaluation's record.

    Raises:
        RecordError: they cannot be read, or are not those of ``record``.
    """
    try:
        with np.load(path) as arrays:
            names, counts_N3K = tuple(arrays["names"].tolist()), arrays["counts"]
        labelled = fingerprint(zip(names, map(str, counts_N3K[:, 2].tolist()), strict=True))
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise RecordError(f"The counts {path} cannot be read; delete them and their record, and repeat.") from error
    if labelled != record.data.fingerprint:
        raise RecordError(f"The counts {path} are not those of their record; delete both, and repeat.")
    return Evaluation(names, counts_N3K, record.settings.get("mean_over", "occurring"))


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


def compare(reference: Evaluated, model: Evaluated, seed: int = 0, notes: Sequence[str] = ()) -> Record:
    """The record of ``model - reference``; scores of both, and the differences with their paired intervals.

    Args:
        seed: of the bootstrap.
        notes: remarks for below the table.

    Raises:
        RecordError: they have different classes, images or labels.
    """
    first, second = reference.evaluation, model.evaluation
    classes = _classes(model.record)
    for what, ours, theirs in (
        ("classes", classes, _classes(reference.record)),
        ("images", second.names, first.names),
        ("labels", model.record.data.fingerprint, reference.record.data.fingerprint),
    ):
        if ours != theirs:
            raise RecordError(
                f"{model.name} and {reference.name} were evaluated on different {what}; only the same images with the "
                "same classes can be compared (--dataset, --split, --limit)."
            )
    interval = paired_bootstrap(
        second.counts_N3K, first.counts_N3K, RESAMPLES, seed, mean_over=model.evaluation.mean_over
    )
    scores, base = second.scores, first.scores

    def difference(ours: float, theirs: float, low_high: Sequence[float]) -> dict[str, float]:
        return {"value": float(ours - theirs), "low": float(low_high[0]), "high": float(low_high[1])}

    settings, others = model.record.settings, reference.record.settings
    unlike = [
        f"{key} is {value}, that of the reference {others.get(key)}"
        for key, value in settings.items()
        if value != others.get(key)
    ]
    weights = reference.record.weights
    return new_record(
        KIND,
        model=model.name,
        data=model.record.data,
        measured={
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
            "notes": [*notes, *unlike],
        },
        n=model.record.n,
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


def render(records: Sequence[Record], stem: Path) -> Mapping[str, Table]:
    """One row a class and one column a model: its difference to the reference; dots with intervals around zero.

    Raises:
        RecordError: different references, images or classes.
    """
    first = records[0]
    for record in records:
        same = record.data == first.data and [row["name"] for row in record.measured["per_class"]] == [
            row["name"] for row in first.measured["per_class"]
        ]
        references = (record.settings["reference_weights"], first.settings["reference_weights"])
        if not same or references[0] != references[1]:
            raise RecordError(
                f"{record.file_name} has another reference, or other images, than {first.file_name}; render them apart."
            )
    _draw(records, stem)
    return {"": _table(records)}


def _differences(record: Record) -> dict[str, Estimate]:
    """Percentage points by name of the row, means first."""
    measured = record.measured
    rows = {shown: percent(measured[key]) for key, shown in MEANS.items()}
    return rows | {row["name"]: percent(row["iou"]) for row in measured["per_class"]}


def _table(records: Sequence[Record]) -> Table:
    first = records[0]
    reference = first.settings["reference"]
    differences = [_differences(record) for record in records]
    before: dict[str, float | None] = {row["name"]: row["reference"] for row in first.measured["per_class"]}
    before |= {shown: first.measured["reference"][key] for key, shown in MEANS.items()}
    rows: list[tuple[Cell, ...]] = [
        (name, math.nan if value is None else 100 * value, *(each[name] for each in differences))
        for name, value in before.items()
    ]
    columns = (
        Column("Class"),
        Column(f"{reference} (%)"),
        *(Column(f"{record.model}, difference", 2) for record in records),
    )
    caption = (
        f"IoU of the reference, {reference}, and differences to it in percentage points, {first.data.name} "
        f"{first.data.split}, "
        f"n = {first.n} images. Brackets: 95 % interval of the paired difference, {first.settings['resamples']} "
        f"bootstrap draws of the same images for both, seed {first.seeds['bootstrap']}; not corrected for the number "
        "of classes, and without the spread between trainings."
    )
    return Table(columns, tuple(rows), caption, summary_rows=len(MEANS))


def _draw(records: Sequence[Record], stem: Path) -> None:
    first = records[0]
    reference = first.settings["reference"]
    differences = [_differences(record) for record in records]
    names = [row["name"] for row in first.measured["per_class"]]
    leading = differences[0]
    names.sort(key=lambda name: (math.isnan(leading[name].value), -leading[name].value))
    rows = dict(zip(("mIoU", *names), (0.0, *(row + 0.4 for row in range(1, len(names) + 1))), strict=True))
    step = 0.8 / len(records)
    with figure_style(len(records)) as colours:
        figure = new_figure(0.95 + (len(rows) + 0.4) * max(0.17, 0.07 * len(records)))
        axes = figure.subplots()
        axes.grid(visible=False, axis="y")
        axes.axvline(0, color="0.3", linewidth=0.8)
        for index, (record, shown) in enumerate(zip(records, differences, strict=True)):
            for name, row in rows.items():
                centre, each = row + (index + 0.5) * step - 0.4, shown[name]
                label = record.model if name == "mIoU" else None
                axes.plot([each.low, each.high], [centre, centre], color=colours[index], linewidth=1.2)
                axes.plot(each.value, centre, "o", color=colours[index], markersize=3, label=label)
        axes.axhline(0.7, color="0.3", linewidth=0.6)
        axes.set_yticks(list(rows.values()), list(rows))
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.set_ylim(max(rows.values()) + 0.55, -0.55)
        axes.set_xlabel(
            f"IoU minus that of {reference}\n(percentage points, paired 95 % interval),\n"
            f"{first.data.name} {first.data.split} (n = {first.n} images)"
        )
        figure.legend(loc="outside upper center", ncols=legend_columns([record.model for record in records], COLUMN))
        save_figure(figure, f"{stem}.png")
