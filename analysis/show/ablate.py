"""Table and figure of `analysis.measures.ablate`: what each change of a decoder does to mIoU, and to R^c."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.record import Record, in_a_name, notes
from analysis.show.figures import (
    PAGE,
    error_bars,
    figure_style,
    legend_height,
    model_legend,
    new_figure,
    save_figure,
    trainings_behind,
)
from analysis.show.spread import bootstrap_words, figure_words, together_words
from analysis.show.tables import Cell, Column, Estimate, Table, estimate, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW = 0.15  # inches
_TOGETHER = 3


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """A row a variant of a model, after one of the model as it is; then its heads dropped one after another."""
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        base = record.measured
        rate = None if base["rate"] is None else estimate(base["rate"])
        rows.append((record.model, "as trained", percent(base["miou"]), None, rate, None))
        for title, row in _rows(record):
            change = None if row["rate"] is None else estimate(row["rate"])
            rows.append((record.model, title, None, percent(row["miou"]), None, change))
    columns = (
        Column("Model"),
        Column("Decoder"),
        Column("mIoU (%)"),
        Column("Change (points)", 2),
        Column("R^c (nats)"),
        Column("Change of R^c (%)", 2),
    )
    first = records[0]
    pruned = (
        " Heads are pruned in the order of what each alone costs on the other half of the units."
        if any(record.measured["pruning"] for record in records)
        else ""
    )
    remarks = "".join(f" {note}" for note in notes(records))
    caption = (
        f"{first.data.name} {first.data.split}, n = {first.n} images. Changes are those to the decoder as it was "
        "trained, paired; their intervals are not corrected for the number of variants. R^c: sum over layers, of the "
        f"tokens of one window an image after a layer in its subspaces as trained, eps = {first.settings['eps']:g}. "
        f"Brackets: {together_words(records)}; "
        f"{bootstrap_words(first)}.{pruned}{remarks}"
    )
    return {"": Table(columns, tuple(rows), caption)}


def _rows(record: Record) -> list[tuple[str, Mapping[str, Any]]]:
    variants = [(_title(row), row) for row in record.measured["variants"]]
    pruned = enumerate(record.measured["pruning"], start=1)
    return variants + [(f"{count} {'head' if count == 1 else 'heads'} pruned", row) for count, row in pruned]


def _title(row: Mapping[str, Any]) -> str:
    """``layers.0, step x 0.5``."""
    place = "all layers" if row["layer"] == "all" else row["layer"].removeprefix("decoder.")
    kind, index = row["kind"], row["number"]
    if kind == "step":
        return f"{place} dropped" if index == 0 else f"{place}, step x {index:g}"
    if kind == "head":
        return f"{place}, head {index:g} dropped"
    if kind == "gradient":
        return f"{place}, gradient step of R^c"
    return f"subspaces: {kind}" + ("" if index is None else f" {index:g}")


def figures(records: Sequence[Record], stem: Path) -> None:
    """One of up to `_TOGETHER` models, of more one each, as their variants would fill pages."""
    shown = [record for record in records if record.measured["variants"]]
    if len(shown) > _TOGETHER:
        for record in shown:
            _figure([record], stem.with_name(f"{stem.name}-{in_a_name(record.model)}"))
    elif shown:
        _figure(shown, stem)


def _figure(records: Sequence[Record], stem: Path) -> None:
    """Rows of variants, their change of mIoU beside that of R^c; to the right each against the other, and pruning."""
    titles = list(dict.fromkeys(_title(row) for record in records for row in record.measured["variants"]))
    with figure_style(len(records)) as colours:
        height = max(3.6, 0.7 + _ROW * len(titles) * max(1.0, 0.5 * len(records)))
        figure = new_figure(height + legend_height([record.model for record in records], PAGE), PAGE)
        left, right = figure.subfigures(1, 2, width_ratios=(1.9, 1), squeeze=False)[0]
        accuracy, rate = left.subplots(1, 2, sharey=True)
        against, pruning = right.subplots(2, 1)
        for index, (record, colour) in enumerate(zip(records, colours, strict=False)):
            variants = record.measured["variants"]
            places = [titles.index(_title(row)) + 0.7 * ((index + 0.5) / len(records) - 0.5) for row in variants]
            changes, rates = [percent(row["miou"]) for row in variants], [_rate(row) for row in variants]
            for axes, values in ((accuracy, changes), (rate, rates)):
                look = {"color": colour, "markersize": 2.6, "linewidth": 0.8}
                axes.errorbar([each.value for each in values], places, xerr=error_bars(values), fmt="o", **look)
                for value, place in zip(values, places, strict=True):
                    trainings_behind(axes, value, place, colour)
            pairs = [(y.value, x.value) for x, y in zip(changes, rates, strict=True)]
            against.plot(*zip(*pairs, strict=True), "o", color=colour, markersize=2.6)
            pruned = [Estimate(0.0, 0.0, 0.0), *(percent(row["miou"]) for row in record.measured["pruning"])]
            counts = list(range(len(pruned)))
            low, high = (
                [each.value if math.isnan(end) else end for each, end in zip(pruned, ends, strict=True)]
                for ends in ([each.low for each in pruned], [each.high for each in pruned])
            )
            pruning.fill_between(counts, low, high, color=colour, alpha=0.18, linewidth=0)
            pruning.plot(
                counts, [each.value for each in pruned], "o-", color=colour, markersize=2.6, label=record.model
            )
        _rows_named(accuracy, titles)
        for axes in (accuracy, rate):
            axes.axvline(0, color="0.3", linewidth=0.6)
        first = records[0]
        accuracy.set_xlabel(f"change of mIoU (points)\n{figure_words(first)}")
        rate.set_xlabel(f"change of Rᶜ (%)\n{first.data.name} {first.data.split} (n = {first.n})")
        for axes in (rate, against):
            _from_small_to_large(axes)
        against.axhline(0, color="0.3", linewidth=0.6)
        against.axvline(0, color="0.3", linewidth=0.6)
        against.set_xlabel("change of Rᶜ (%)")
        against.set_ylabel("change of mIoU (points)")
        pruning.set_xlabel("heads pruned, cheapest first")
        pruning.set_ylabel("change of mIoU (points)")
        model_legend(figure, records, PAGE)
        save_figure(figure, stem)


def _from_small_to_large(axes: Axes) -> None:
    """Changes of a few percent and of thousands along one axis, the outermost not at its ends."""
    low, high = axes.get_xlim()
    if max(-low, high) <= 100:
        return
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(*(end * (1.5 if abs(end) > 10 else 1.2) for end in (min(low, -1), max(high, 1))))
    axes.xaxis.set_major_formatter("{x:g}")


def _rate(row: Mapping[str, Any]) -> Estimate:
    return Estimate(math.nan) if row["rate"] is None else estimate(row["rate"])


def _rows_named(axes: Axes, titles: Sequence[str]) -> None:
    axes.set_yticks(range(len(titles)), titles, fontsize=5.5)
    axes.set_ylim(len(titles) - 0.4, -0.6)
