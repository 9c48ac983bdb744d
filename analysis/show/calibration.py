"""Tables and figures of `analysis.measures.calibration`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.record import Record
from analysis.show.figures import (
    COLUMN,
    figure_style,
    legend_columns,
    legend_height,
    model_legend,
    new_figure,
    save_figure,
)
from analysis.show.spread import bootstrap_words, figure_words, seeds_of, together_words
from analysis.show.tables import Cell, Column, Estimate, Table, estimate, number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUMBERS = {
    "ece": (Column("ECE (%)", 2), 100),
    "overconfidence": (Column("Confidence - accuracy (%)", 2), 100),
    "brier": (Column("Brier", 3), 1),
    "aurc": (Column("AURC (%)", 2), 100),
    "eaurc": (Column("E-AURC (%)", 2), 100),
}
_COVERAGES = (0.8, 0.9, 1.0)  # whose risks are in the table


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """A row a model; of one model, a row a number."""
    return {"": _of_one(records[0]) if len(records) == 1 else _of_several(records)}


def _of_one(record: Record) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (column.name, replace(estimate(record.measured[name], factor), decimals=column.decimals))
        for name, (column, factor) in _NUMBERS.items()
    ]
    rows += [(_risk_column(coverage).name, percent(_risk(record, coverage))) for coverage in _COVERAGES]
    return Table((Column("Number"), Column("Value", 2)), tuple(rows), f"{record.model} on {_caption([record])}")


def _of_several(records: Sequence[Record]) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (
            record.model,
            *(estimate(record.measured[name], factor) for name, (_, factor) in _NUMBERS.items()),
            *(percent(_risk(record, coverage)) for coverage in _COVERAGES),
        )
        for record in records
    ]
    columns = (
        Column("Model"),
        *(column for column, _ in _NUMBERS.values()),
        *map(_risk_column, _COVERAGES),
    )
    return Table(columns, tuple(rows), _caption(records))


def _risk_column(coverage: float) -> Column:
    return Column(f"Risk at {100 * coverage:g} % (%)", 2)


def _caption(records: Sequence[Record]) -> str:
    first = records[0]
    return (
        f"{first.data.name} {first.data.split}, n = {first.n} images. Confidence: the largest class probability of a "
        f"pixel. ECE: {len(first.measured['reliability'])} bins of equal width. Brier: sum over classes of squared "
        "errors, 0 to 2. Risk at c %: wrong among the c % surest pixels; AURC: its mean over c; E-AURC: what a perfect "
        f"order would save. Brackets: {together_words(records)}; {bootstrap_words(first)}."
    )


def _risk(record: Record, coverage: float) -> dict[str, float | None]:
    found: dict[str, float | None] = min(record.measured["risk"], key=lambda row: abs(row["coverage"] - coverage))[
        "risk"
    ]
    return found


def figures(records: Sequence[Record], stem: Path) -> None:
    """``STEM-reliability`` and ``STEM-risk-coverage``."""
    _reliability(records, stem.with_name(f"{stem.name}-reliability"))
    _risk_coverage(records, stem.with_name(f"{stem.name}-risk-coverage"))


def _reliability(records: Sequence[Record], stem: Path) -> None:
    with figure_style(len(records)) as colours:
        names = [f"{each.model} (ECE {100 * number(each.measured['ece']['value']):.1f} %)" for each in records]
        figure = new_figure(4.4 + legend_height(names, COLUMN))
        axes, shares = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (3.4, 1)})
        axes.plot([0, 100], [0, 100], color="0.5", linewidth=0.8, linestyle="--")
        for record, colour, name in zip(records, colours, names, strict=False):
            bins = [row for row in record.measured["reliability"] if row["accuracy"]["value"] is not None]
            accuracy = [percent(row["accuracy"]) for row in bins]
            marked = {"marker": "o", "markersize": 2.6, "clip_on": False}
            _curve(axes, [100 * row["confidence"] for row in bins], accuracy, colour, label=name, **marked)
            rows = record.measured["reliability"]
            edges = [100 * row["from"] for row in rows] + [100.0]
            shares.stairs([100 * number(row["share"]) for row in rows], edges, color=colour, linewidth=1.0)
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_ylabel("pixels that are right (%)")
        shares.set_ylabel("pixels (%)")
        shares.set_yscale("log")
        least = min((each for each in _shares(records) if each > 0), default=1.0)
        shares.set_ylim(bottom=max(1e-3, least / 2))
        ticks = [tick for tick in (0.001, 0.01, 0.1, 1, 10, 100) if tick >= least / 2]
        shares.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        shares.minorticks_off()
        shares.set_xlabel(f"confidence (%), {_where(records[0])}")
        axes.set_title(f"{_band(records[0])}\ndashed: calibrated; below it: surer than right", fontsize=6, loc="left")
        figure.legend(loc="outside upper center", ncols=legend_columns(names, COLUMN))
        save_figure(figure, stem)


def _shares(records: Sequence[Record]) -> list[float]:
    """Percent of the pixels, of all bins of all models."""
    return [100 * number(row["share"]) for record in records for row in record.measured["reliability"]]


def _risk_coverage(records: Sequence[Record], stem: Path) -> None:
    with figure_style(len(records)) as colours:
        figure = new_figure(2.7 + legend_height([record.model for record in records], COLUMN))
        axes = figure.subplots()
        for record, colour in zip(records, colours, strict=False):
            curve = [row for row in record.measured["risk"] if row["risk"]["value"] is not None]
            risk = [percent(row["risk"]) for row in curve]
            _curve(axes, [100 * row["coverage"] for row in curve], risk, colour, label=record.model)
        axes.set_xlim(0, 100)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"coverage: surest pixels (%), {_where(records[0])}")
        axes.set_ylabel("risk: of these, wrong (%)")
        axes.set_title(_band(records[0]), fontsize=6, loc="left")
        model_legend(figure, records, COLUMN)
        save_figure(figure, stem)


def _curve(axes: Axes, x: Sequence[float], y: Sequence[Estimate], colour: Any, **look: Any) -> None:
    """A line with its band, and that of each training lightly behind it."""
    low, high = (
        [each.value if math.isnan(end) else end for each, end in zip(y, ends, strict=True)]
        for ends in ([each.low for each in y], [each.high for each in y])
    )
    axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    for values in zip(*(each.seeds for each in y), strict=True):
        axes.plot(x, values, color=colour, linewidth=0.5, alpha=0.4)
    axes.plot(x, [each.value for each in y], color=colour, linewidth=1.2, **look)


def _band(record: Record) -> str:
    behind = "; thin: trainings" if len(seeds_of(record)) > 1 else ""
    return f"band: {figure_words(record)}{behind}"


def _where(record: Record) -> str:
    return f"{record.data.name} {record.data.split} (n = {record.n})"
