"""Tables and figures of evaluations: classes of one, several side by side."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.maths.conventions import MEANS
from analysis.record import Record, RecordError
from analysis.show.figures import (
    COLUMN,
    extremes,
    figure_style,
    model_legend,
    new_figure,
    rows_below_total,
    rules_between,
    save_figure,
    side_by_side,
    trainings_behind,
)
from analysis.show.spread import bootstrap_words, figure_words, interval_words, seeds_of, together_words
from analysis.show.tables import Cell, Column, Estimate, Table, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Classes of one evaluation, or several side by side."""
    return {"": _side_by_side(records) if len(records) > 1 else per_class_table(records[0])}


def figures(records: Sequence[Record], stem: Path) -> None:
    """Bars of classes, where all have the same data."""
    if _same_data(records):
        per_class_bars(records, stem)


def _same_data(records: Sequence[Record]) -> bool:
    return all(record.data == records[0].data for record in records)


def _side_by_side(records: Sequence[Record]) -> Table:
    several = any(seeds_of(record) for record in records)
    rows: list[tuple[Cell, ...]] = [
        (
            record.model,
            *(percent(record.measured[name]) for name in MEANS),
            *((len(seeds_of(record)) or 1,) if several else ()),
        )
        for record in records
    ]
    first = records[0]
    what = f"{first.data.name} {first.data.split}, n = {first.n} images" if _same_data(records) else "different data"
    spread = (Column("Trainings", 0),) if several else ()
    return Table(
        columns=(Column("Model"), Column("mIoU (%)"), Column("mAcc (%)"), Column("aAcc (%)"), *spread),
        rows=tuple(rows),
        caption=f"{what}. Brackets: {together_words(records)}; {bootstrap_words(first)}.",
    )


def per_class_table(record: Record) -> Table:
    """IoU of each class with its interval, its accuracy, its share of the labelled pixels; then mIoU, mAcc and aAcc.

    All in percent. The caption says model, data, number of images, and what the intervals are about.

    Raises:
        RecordError: not an evaluation, or a number is missing.
    """
    measured = evaluation(record)
    rows: list[tuple[Cell, ...]] = [
        (str(row["name"]), percent(row["iou"]), percent(row["acc"]), 100 * number(row["label_share"]))
        for row in measured["per_class"]
    ]
    rows.append(("mIoU", percent(measured["miou"]), None, None))
    rows.append(("mAcc", None, percent(measured["macc"]), None))
    rows.append(("aAcc", None, percent(measured["aacc"]), None))
    variant = f" ({record.variant})" if record.variant else ""
    caption = f"{record.model}{variant} on {record.data.name} {record.data.split}, n = {record.n} images."
    if record.settings.get("resamples") is not None:
        caption += f" Brackets: {interval_words(record)}; {bootstrap_words(record)}."
    if seeds := seeds_of(record):
        each = ", ".join(f"{100 * number(value):.1f}" for value in measured["miou"]["seeds"])
        numbers = ", ".join(map(str, seeds))
        caption += f" mIoU of the trainings with seed {numbers}: {each}."
    if record.settings.get("mean_over") == "labelled":
        caption += " mIoU over the classes that are in the truth."
    columns = (Column("Class"), Column("IoU (%)"), Column("Acc (%)"), Column("Label pixels (%)"))
    return Table(columns, tuple(rows), caption, summary_rows=3, ranked=1)


def evaluation(record: Record) -> Mapping[str, Any]:
    """``record.measured`` of an evaluation, checked for the layout that `analysis.record` documents.

    Raises:
        RecordError: not an evaluation, or a number is missing.
    """
    if record.kind != "eval":
        raise RecordError(f"{record.file_name} holds {record.kind!r}, not an evaluation; run `whitebox eval` first.")
    measured = record.measured
    _require(record, "measured", measured, *MEANS, "per_class")
    for key in MEANS:
        _require(record, f"measured.{key}", measured[key], "value")
    for row in measured["per_class"]:
        _require(record, "measured.per_class", row, "name", "iou", "acc", "label_share")
        for key in ("iou", "acc"):
            _require(record, f"measured.per_class.{key}", row[key], "value")
    return measured


def _require(record: Record, where: str, part: Mapping[str, Any], *keys: str) -> None:
    for key in keys:
        if key not in part:
            raise RecordError(f"{record.file_name} lacks {where}.{key}; run `whitebox eval` again.")


def per_class_bars(records: Sequence[Record], output: str | os.PathLike[str]) -> list[Path]:
    """IoU of each class with its 95 % interval, several models side by side, and their mIoU on top.

    Classes are sorted by the mean over models; of many the extremes are shown, which the label says. A class without
    a value in a record shows a dash.

    Args:
        records: evaluations of the same classes of the same data.
        output: the PNG's path; a PDF is written beside it.

    Raises:
        RecordError: no record, not evaluations, of different data, or a number is missing.
        OutputError: the folder cannot be written.
    """
    if not records:
        raise RecordError("There are no evaluations to draw.")
    first = records[0]
    tables: list[dict[str, Estimate]] = []
    for record in records:
        measured = evaluation(record)
        if record.data != first.data:
            raise RecordError(
                f"{record.file_name} was measured on other data than {first.file_name}; compare records of one dataset."
            )
        tables.append({row["name"]: percent(row["iou"]) for row in measured["per_class"]})
        if tables[-1].keys() != tables[0].keys():
            raise RecordError(f"{record.file_name} has other classes than {first.file_name}; evaluate again.")
    names, rules, chosen = extremes({name: [table[name].value for table in tables] for name in tables[0]})

    with figure_style(len(records)) as colours:
        figure = new_figure(0.75 + (len(names) + 1.4) * max(0.17, 0.065 * len(records)))
        axes = figure.subplots()
        places = rows_below_total(axes, "mIoU", names)
        rules_between(axes, places, rules)
        for index, (record, table) in enumerate(zip(records, tables, strict=True)):
            bars = [percent(record.measured["miou"]), *(table[name] for name in names)]
            centres, thickness = side_by_side(places, index, len(records))
            label = f"{record.model} ({record.variant})" if record.variant else record.model
            axes.barh(
                centres,
                [0.0 if math.isnan(bar.value) else bar.value for bar in bars],
                height=thickness,
                color=colours[index],
                label=label,
            )
            for centre, bar in zip(centres, bars, strict=True):
                _interval(axes, centre, bar)
                trainings_behind(axes, bar, centre, "0.15")
        axes.set_xlim(0, 100)
        what = f"IoU (%) and {figure_words(first)}" + (", a line a training" if any(map(seeds_of, records)) else "")
        where = f"{first.data.name} {first.data.split} (n = {first.n} images)"
        axes.set_xlabel(f"{what},\n{where}" + (f";\n{chosen}" if chosen else ""))
        model_legend(figure, records, COLUMN)
        return save_figure(figure, output)


def _interval(axes: Axes, centre: float, bar: Estimate) -> None:
    if math.isnan(bar.value):
        axes.text(0.8, centre, "–", va="center", ha="left", fontsize=6)
    elif not (math.isnan(bar.low) or math.isnan(bar.high)):
        axes.plot([bar.low, bar.high], [centre, centre], color="0.15", linewidth=0.9, solid_capstyle="butt")
