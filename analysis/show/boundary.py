"""Tables and figures of `analysis.measures.boundary`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.record import Record
from analysis.show.figures import (
    COLUMN,
    error_bars,
    extremes,
    figure_style,
    model_legend,
    new_figure,
    rows_below_total,
    rules_between,
    save_figure,
    side_by_side,
)
from analysis.show.spread import bootstrap_words, figure_words, together_words
from analysis.show.tables import Cell, Column, Table, number, percent


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Classes of one model, or a row a model."""
    return {"": _models(records) if len(records) > 1 else _classes(records[0])}


def figures(records: Sequence[Record], stem: Path) -> None:
    """Bars of classes, the IoU of whole masks behind them."""
    first = records[0]
    found = [{row["name"]: row for row in record.measured["per_class"]} for record in records]
    every = [row["name"] for row in first.measured["per_class"]]
    names, rules, chosen = extremes({name: [percent(each[name]["iou"]).value for each in found] for name in every})
    names = names if chosen else every
    with figure_style(len(records)) as colours:
        figure = new_figure(0.75 + (len(names) + 1.4) * max(0.17, 0.065 * len(records)))
        axes = figure.subplots()
        places = rows_below_total(axes, "mean", names)
        rules_between(axes, places, rules)
        for index, (record, colour) in enumerate(zip(records, colours, strict=False)):
            rows = [found[index][name] for name in names]
            bars = [percent(each) for each in (record.measured["miou"], *(row["iou"] for row in rows))]
            masks = [100 * number(each) for each in (record.measured["mask_miou"], *(row["mask_iou"] for row in rows))]
            centres, thickness = side_by_side(places, index, len(records))
            axes.barh(centres, masks, height=thickness, color=colour, alpha=0.3, linewidth=0)
            axes.barh(
                centres,
                [bar.value for bar in bars],
                height=thickness,
                color=colour,
                linewidth=0,
                xerr=error_bars(bars),
                error_kw={"linewidth": 0.9, "ecolor": "0.15"},
                label=record.model,
            )
        axes.set_xlim(0, 100)
        where = f"{first.data.name} {first.data.split} (n = {first.n})"
        axes.set_xlabel(f"Boundary IoU (%), {where}" + (f";\n{chosen}" if chosen else ""))
        axes.set_title(f"bars: {figure_words(first)}; pale: IoU of whole masks", fontsize=6, loc="left")
        model_legend(figure, records, COLUMN)
        save_figure(figure, stem)


def _caption(records: Sequence[Record]) -> str:
    record = records[0]
    return (
        f"{record.data.name} {record.data.split}, n = {record.n} images. Boundary IoU (Cheng et al. 2021): IoU of the "
        f"pixels of each class within {100 * record.settings['boundary_ratio']:g} % of the image's diagonal from its "
        f"boundary. Brackets: {together_words(records)}; {bootstrap_words(record)}."
    )


def _classes(record: Record) -> Table:
    measured = record.measured
    rows: list[tuple[Cell, ...]] = [
        (row["name"], percent(row["iou"]), 100 * number(row["mask_iou"])) for row in measured["per_class"]
    ]
    rows.append(("mean", percent(measured["miou"]), 100 * number(measured["mask_miou"])))
    columns = (Column("Class"), Column("Boundary IoU (%)"), Column("IoU (%)"))
    return Table(columns, tuple(rows), f"{record.model} on {_caption([record])}", summary_rows=1, ranked=1)


def _models(records: Sequence[Record]) -> Table:
    rows = tuple(
        (record.model, percent(record.measured["miou"]), 100 * number(record.measured["mask_miou"]))
        for record in records
    )
    return Table((Column("Model"), Column("Boundary mIoU (%)"), Column("mIoU (%)")), rows, _caption(records))
