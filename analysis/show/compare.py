"""Tables and figures of `analysis.measures.compare`: differences with their paired intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from analysis.record import Record, RecordError
from analysis.show.figures import (
    COLUMN,
    figure_style,
    model_legend,
    new_figure,
    rows_below_total,
    save_figure,
    side_by_side,
)
from analysis.show.tables import Cell, Column, Estimate, Table, percent

MEANS = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc"}


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """One row a class and one column a model: its difference to the reference.

    Raises:
        RecordError: different references, images or classes.
    """
    _require_alike(records)
    return {"": _table(records)}


def figures(records: Sequence[Record], stem: Path) -> None:
    """Dots with intervals around zero.

    Raises:
        RecordError: see `tables`.
    """
    _require_alike(records)
    _draw(records, stem)


def _require_alike(records: Sequence[Record]) -> None:
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
    with figure_style(len(records)) as colours:
        figure = new_figure(0.95 + (len(names) + 1.4) * max(0.17, 0.07 * len(records)))
        axes = figure.subplots()
        axes.axvline(0, color="0.3", linewidth=0.8)
        places = rows_below_total(axes, "mIoU", names)
        for index, (record, shown) in enumerate(zip(records, differences, strict=True)):
            centres, _ = side_by_side(places, index, len(records))
            for name, centre in zip(("mIoU", *names), centres, strict=True):
                each = shown[name]
                label = record.model if name == "mIoU" else None
                axes.plot([each.low, each.high], [centre, centre], color=colours[index], linewidth=1.2)
                axes.plot(each.value, centre, "o", color=colours[index], markersize=3, label=label)
        axes.set_xlabel(
            f"IoU minus that of {reference}\n(percentage points, paired 95 % interval),\n"
            f"{first.data.name} {first.data.split} (n = {first.n} images)"
        )
        model_legend(figure, records, COLUMN)
        save_figure(figure, f"{stem}.png")
