"""Tables and figures of `analysis.measures.confusion`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.record import Record
from analysis.show.figures import COLUMN, PAGE, figure_style, new_figure, save_figure
from analysis.show.spread import bootstrap_words, together_words
from analysis.show.tables import Cell, Column, Table, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OF_ONE, _EACH = 12, 5  # worst entries of one model, and of each of several
_WRITTEN = 0.005  # share from which a cell has its number
_DARK = 0.5  # from which letters are white


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """The worst confusions."""
    first, several = records[0], len(records) > 1
    most = _EACH if several else _OF_ONE
    rows: list[tuple[Cell, ...]] = [
        (
            *([record.model] if several else ()),
            row["label"],
            row["prediction"],
            percent(row["share"]),
            100 * number(row["of_all"]),
        )
        for record in records
        for row in record.measured["worst"][:most]
    ]
    columns = (
        *([Column("Model")] if several else ()),
        Column("Label"),
        Column("Predicted as"),
        Column("of the label's pixels (%)"),
        Column("of all pixels (%)", 2),
    )
    caption = (
        f"{first.data.name} {first.data.split}, n = {first.n} images: the worst confusions by share of the label's "
        f"pixels. Brackets: {together_words(records)}; {bootstrap_words(first)}."
    )
    caption = caption if several else f"{first.model} on {caption}"
    return {"": Table(columns, tuple(rows), caption)} if rows else {}


def figures(records: Sequence[Record], stem: Path) -> None:
    """The matrix of one model; those of several are drawn each by itself."""
    if len(records) == 1:
        _matrix(records[0], stem)


def _matrix(record: Record, stem: Path) -> None:
    measured = record.measured
    names, shares = measured["names"], [[number(each) for each in row] for row in measured["matrix"]]
    partly = any(row[-1] > 0 for row in shares)
    columns = [*names, "others"] if partly else names
    shares = shares if partly else [row[:-1] for row in shares]
    side = 0.9 + 0.27 * len(columns)
    with figure_style():
        figure = new_figure(min(PAGE, max(COLUMN, side)) * 0.94, min(PAGE, max(COLUMN, side + 0.3)))
        axes = figure.subplots()
        from matplotlib.colors import PowerNorm

        image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), aspect="auto")
        _numbers(axes, shares)
        axes.set_xticks(range(len(columns)), columns, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False)
        if partly:
            axes.axvline(len(names) - 0.5, color="0.3", linewidth=0.8)
        axes.set_xlabel("predicted as")
        axes.set_ylabel("label")
        chosen = "" if not partly else f"; {len(names)} classes of the worst confusions"
        axes.set_title(
            f"{record.model}, {record.data.name} {record.data.split} (n = {record.n})\n% of the label's pixels{chosen}",
            fontsize=6,
            loc="left",
        )
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.01, ticks=[0, 0.01, 0.1, 0.3, 0.6, 1])
        bar.ax.set_yticklabels(["0", "1", "10", "30", "60", "100 %"], fontsize=6)
        save_figure(figure, stem)


def _numbers(axes: Axes, shares: Sequence[Sequence[float]]) -> None:
    for row, line in enumerate(shares):
        for column, share in enumerate(line):
            if share >= _WRITTEN:
                colour = "white" if share**0.5 > _DARK else "0.2"
                text = f"{100 * share:.0f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=5, color=colour)
