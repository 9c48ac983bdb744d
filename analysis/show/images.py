"""Tables and figures of `analysis.measures.images`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.record import Record
from analysis.show.figures import COLUMN, figure_style, legend_height, model_legend, new_figure, save_figure
from analysis.show.spread import bootstrap_words, together_words
from analysis.show.tables import Cell, Column, Table, number, percent

_NUMBERS = {
    "miou": "mIoU (%)",
    "fwiou": "FW IoU (%)",
    "miou_images": "mIoU of an image (%)",
    "miou_classes": "mIoU of a class in an image (%)",
}


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """A row a model; of one model, a row a number, and its worst images."""
    if len(records) > 1:
        rows: list[tuple[Cell, ...]] = [(record.model, *_cells(record)) for record in records]
        columns = (Column("Model"), *(Column(name) for name in (*_NUMBERS.values(), _worst_name(records[0]))))
        return {"": Table(columns, tuple(rows), _caption(records))}
    (record,) = records
    names = (*_NUMBERS.values(), _worst_name(record))
    rows = [*zip(names, _cells(record), strict=True)]
    rows += [
        (f"{100 * each['at']:g} % of the images are below (%)", 100 * number(each["miou"]))
        for each in record.measured["quantiles"]
    ]
    worst: list[tuple[Cell, ...]] = [(each["name"], 100 * number(each["miou"])) for each in record.measured["worst"]]
    return {
        "": Table((Column("Number"), Column("Value")), tuple(rows), f"{record.model} on {_caption([record])}"),
        "-worst": Table(
            (Column("Image"), Column("mIoU (%)")),
            tuple(worst),
            f"The images of {record.data.name} {record.data.split} that {record.model} segments worst.",
        ),
    }


def _cells(record: Record) -> tuple[Cell, ...]:
    return (*(percent(record.measured[name]) for name in _NUMBERS), 100 * number(record.measured["miou_worst"]))


def _worst_name(record: Record) -> str:
    return f"of the worst {100 * record.measured['worst_share']:g} % of the images (%)"


def _caption(records: Sequence[Record]) -> str:
    record = records[0]
    return (
        f"{record.data.name} {record.data.split}, n = {record.n} images. FW IoU: classes weighted by their pixels. "
        "mIoU of an image: mean over the classes that are labelled in it, then over images; of a class in an image: "
        f"mean over its images, then over classes. Brackets: {together_words(records)}; {bootstrap_words(record)}."
    )


def figures(records: Sequence[Record], stem: Path) -> None:
    """How many images have which mIoU."""
    with figure_style(len(records)) as colours:
        figure = new_figure(2.5 + legend_height([record.model for record in records], COLUMN))
        axes = figure.subplots()
        for record, colour in zip(records, colours, strict=False):
            rows = record.measured["histogram"]
            edges = [100 * row["from"] for row in rows] + [100.0]
            counts = [row["images"] for row in rows]
            filled = len(records) == 1
            axes.stairs(counts, edges, color=colour, linewidth=1.2, fill=filled, label=record.model)
            value = 100 * number(record.measured["miou_images"]["value"])
            axes.axvline(value, color="0.15" if filled else colour, linewidth=0.8, linestyle="--")
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"mIoU of an image (%), {records[0].data.name} {records[0].data.split} (n = {records[0].n})")
        axes.set_ylabel("images")
        axes.set_title("dashed: mean", fontsize=6, loc="left")
        model_legend(figure, records, COLUMN)
        save_figure(figure, stem)
