"""Tables and figures of `analysis.measures.compare`: differences with their paired intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from analysis.maths.conventions import MEANS
from analysis.maths.multiplicity import holm
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
from analysis.show.spread import bootstrap_words, figure_words, over_units, seeds_of, together_words, trainings
from analysis.show.tables import Cell, Column, Estimate, Table, number, percent

# what else may be compared: of the last two less is better
ALSO = {"boundary_miou": "Boundary mIoU", "ece": "ECE", "brier": "Brier score (x 100)"}


def _means(records: Sequence[Record]) -> dict[str, str]:
    """The scores of whole models that all records compare, by key."""
    return MEANS | {key: shown for key, shown in ALSO.items() if all(key in record.measured for record in records)}


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Differences to the reference: a row a class; a row a model, with p values; and a sentence on each model.

    Raises:
        RecordError: different references, images or classes.
    """
    _require_alike(records)
    if not all("p" in record.measured["miou"] for record in records):
        return {"": _table(records)}  # of before there were p values
    beside = {"-beside": _beside(records)} if _means(records).keys() & ALSO.keys() else {}
    return {"": _table(records), "-models": _models(records), **beside, "-sentences": _sentences(records)}


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


def _differences(record: Record, means: Mapping[str, str]) -> dict[str, Estimate]:
    """Percentage points by name of the row, means first."""
    measured = record.measured
    rows = {shown: percent(measured[key]) for key, shown in means.items()}
    return rows | {row["name"]: percent(row["iou"]) for row in measured["per_class"]}


def _table(records: Sequence[Record]) -> Table:
    first = records[0]
    reference = first.settings["reference"]
    means = _means(records)
    differences = [_differences(record, means) for record in records]
    before: dict[str, float | None] = {row["name"]: row["reference"] for row in first.measured["per_class"]}
    before |= {shown: first.measured["reference"][key] for key, shown in means.items()}
    holds = _after_correction(records)
    rows: list[tuple[Cell, ...]] = [
        (name, math.nan if value is None else 100 * value, *(each[name] for each in differences))
        for name, value in before.items()
    ]
    if holds is not None:
        rows = [
            (*row[:2], *_starred(row[2:], [name in each for each in holds]))
            for name, row in zip(before, rows, strict=True)
        ]
    columns = (
        Column("Class"),
        Column(f"{reference} (%)"),
        *(Column(f"{record.model}, difference", 2) for record in records),
    )
    starred = (
        "" if holds is None else " A star: p below 0.05 after Holm's correction, for classes over models and classes."
    )
    caption = (
        f"IoU of the reference, {reference}, and differences to it in percentage points, {first.data.name} "
        f"{first.data.split}, n = {first.n} images. Brackets: of the paired difference, {together_words(records)}; "
        f"{bootstrap_words(first)}; not corrected for the number of classes and models.{starred}"
    )
    return Table(columns, tuple(rows), caption + _less_is_better(records), summary_rows=len(means), ranked=2)


def _starred(cells: Sequence[Cell], stars: Sequence[bool]) -> list[Cell]:
    return [
        replace(cell, mark="*") if star and isinstance(cell, Estimate) else cell
        for cell, star in zip(cells, stars, strict=True)
    ]


def _after_correction(records: Sequence[Record]) -> list[set[str]] | None:
    """The rows of each model whose difference remains after Holm's correction; None: the records have no p values."""
    if not all("p" in record.measured["miou"] for record in records):
        return None
    found: list[set[str]] = [set() for _ in records]
    for key, shown in _means(records).items():
        for names, p in zip(found, _adjusted(records, key), strict=True):
            names |= {shown} if p < 0.05 else set()
    rows = [[number(row["iou"].get("p")) for row in record.measured["per_class"]] for record in records]
    for record, names, adjusted in zip(records, found, holm(rows), strict=True):
        per_class = record.measured["per_class"]
        names |= {row["name"] for row, p in zip(per_class, adjusted, strict=True) if p < 0.05}
    return found


def _adjusted(records: Sequence[Record], key: str) -> list[float]:
    """P values of one score after Holm's correction over models."""
    return [float(p) for p in holm([number(record.measured[key].get("p")) for record in records])]


def _models(records: Sequence[Record]) -> Table:
    first = records[0]
    adjusted = {key: _adjusted(records, key) for key in MEANS}
    rows: list[tuple[Cell, ...]] = []
    for index, record in enumerate(records):
        miou = percent(record.measured["miou"])
        rows.append(
            (
                record.model,
                100 * number(record.measured["model"]["miou"]),
                miou,
                number(record.measured["miou"].get("p")),
                adjusted["miou"][index],
                percent(record.measured["macc"]),
                adjusted["macc"][index],
                len(seeds_of(record)) or 1,
                _near_zero(record),
            )
        )
    columns = (
        Column("Model"),
        Column("mIoU (%)"),
        Column("difference", 2),
        Column("p", 4, positive=True),
        Column("p, Holm", 4, positive=True),
        Column("mAcc, difference", 2),
        Column("p, Holm, of mAcc", 4, positive=True),
        Column("Trainings", 0),
        Column("Monte Carlo"),
    )
    caption = (
        f"Differences to {first.settings['reference']} ({_reference_miou(first):.1f} % mIoU) in percentage points, "
        f"{first.data.name} {first.data.split}, n = {first.n} images. Brackets: of the paired difference, "
        f"{together_words(records)}; {bootstrap_words(first)}. p: two-sided; Holm: corrected for {_count(records)}. "
        "Monte Carlo: the error of an end that is no farther from 0, so other draws may turn its sign."
    )
    return Table(columns, tuple(rows), caption)


def _beside(records: Sequence[Record]) -> Table:
    """A row for each model and each score that is no accuracy."""
    first = records[0]
    rows: list[tuple[Cell, ...]] = []
    for key, shown in _means(records).items():
        if key in ALSO:
            for record, adjusted in zip(records, _adjusted(records, key), strict=True):
                both = (100 * number(record.measured[side][key]) for side in ("reference", "model"))
                stored = record.measured[key]
                rows.append((shown, record.model, *both, percent(stored), number(stored.get("p")), adjusted))
    columns = (
        Column("Score"),
        Column("Model"),
        Column(f"{first.settings['reference']} (%)"),
        Column("model (%)"),
        Column("difference", 2),
        Column("p", 4, positive=True),
        Column("p, Holm", 4, positive=True),
    )
    caption = (
        f"Differences to {first.settings['reference']} in percentage points, {first.data.name} {first.data.split}, "
        f"n = {first.n} images. Brackets: of the paired difference, {together_words(records)}; "
        f"{bootstrap_words(first)}. p: two-sided; Holm: corrected for {_count(records)}.{_less_is_better(records)}"
    )
    return Table(columns, tuple(rows), caption)


def _count(records: Sequence[Record]) -> str:
    return f"{len(records)} model{'s' * (len(records) != 1)}"


def _less_is_better(records: Sequence[Record]) -> str:
    return " Of ECE and Brier score less is better." if {"ece", "brier"} & _means(records).keys() else ""


def _near_zero(record: Record) -> str:
    """The Monte Carlo error of the ends where one of them is within it of 0."""
    miou = record.measured["miou"]
    error = number(miou.get("error"))
    near = any(abs(number(miou[end])) < error for end in ("low", "high"))
    return f"±{100 * error:.2f}" if near else ""


def _reference_miou(record: Record) -> float:
    return 100 * number(record.measured["reference"]["miou"])


def _sentences(records: Sequence[Record]) -> Table:
    """What a person may put into a paper."""
    adjusted = _adjusted(records, "miou")
    rows = tuple((sentence(record, p, len(records)),) for record, p in zip(records, adjusted, strict=True))
    return Table((Column("In words"),), rows, "Sentences for a text; numbers are those of the tables.")


def sentence(record: Record, adjusted: float, models: int) -> str:
    """The difference of the mIoU of one model in words.

    Args:
        adjusted: its p value after Holm's correction.
        models: how many were compared with the reference.
    """
    miou, reference = percent(record.measured["miou"]), record.settings["reference"]
    more = "higher" if miou.value >= 0 else "lower"
    text = (
        f"On {record.data.name} {record.data.split}, the mIoU of {record.model} was {abs(miou.value):.1f} percentage "
        f"points {more} than that of {reference} ({_reference_miou(record):.1f} %"
    )
    if math.isnan(miou.low):
        return f"{text}; {over_units(record)}; {trainings(record)})."
    corrected = f", {_p(adjusted)} after Holm's correction for {models} models" if models > 1 else ""
    return (
        f"{text}; paired {over_units(record)}: {miou.low:.1f} to {miou.high:.1f}; "
        f"{_p(number(record.measured['miou'].get('p')))}{corrected}; {trainings(record)})."
    )


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _draw(records: Sequence[Record], stem: Path) -> None:
    first = records[0]
    reference = first.settings["reference"]
    differences = [_differences(record, MEANS) for record in records]
    every = [row["name"] for row in first.measured["per_class"]]
    whose = f" by {first.model}" if len(records) > 1 else ""
    ends = (f"that gain most{whose}", f"that lose most{whose}")
    names, rules, chosen = extremes({name: [differences[0][name].value] for name in every}, ends)
    with figure_style(len(records)) as colours:
        figure = new_figure(0.95 + (len(names) + 1.4) * max(0.17, 0.07 * len(records)))
        axes = figure.subplots()
        axes.axvline(0, color="0.3", linewidth=0.8)
        places = rows_below_total(axes, "mIoU", names)
        rules_between(axes, places, rules)
        for index, (record, shown) in enumerate(zip(records, differences, strict=True)):
            centres, _ = side_by_side(places, index, len(records))
            for name, centre in zip(("mIoU", *names), centres, strict=True):
                each = shown[name]
                label = record.model if name == "mIoU" else None
                axes.plot([each.low, each.high], [centre, centre], color=colours[index], linewidth=1.2)
                axes.plot(each.value, centre, "o", color=colours[index], markersize=3, label=label)
                trainings_behind(axes, each, centre, colours[index])
        axes.set_xlabel(
            f"IoU minus that of {reference} (points),\npaired {figure_words(first)},\n"
            f"{first.data.name} {first.data.split} (n = {first.n} images)" + (f";\n{chosen}" if chosen else "")
        )
        model_legend(figure, records, COLUMN)
        save_figure(figure, f"{stem}.png")
