"""Tables and figures of corruptions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.maths.corruption_names import shown_names
from analysis.record import Record, RecordError
from analysis.show.figures import (
    COLUMN,
    PAGE,
    error_bars,
    figure_style,
    legend_height,
    model_legend,
    new_figure,
    rows_below_total,
    save_figure,
    side_by_side,
)
from analysis.show.noise import Group, require_comparable
from analysis.show.spread import figure_words, interval_words
from analysis.show.tables import Cell, Column, Estimate, Table, percent


def tables(records: Group) -> dict[str, Table]:
    """By severity, means over severities, and degradation where there is a reference.

    Raises:
        RecordError: see `require_comparable`; or other corruptions, severities or references than the first.
    """
    _require_alike(records)
    found = {"-severities": severity_table(records), "-mean": mean_table(records)}
    if "reference" in records[0].measured:
        found["-degradation"] = degradation_table(records)
    return found


def figures(records: Group, stem: Path) -> None:
    """Heat maps of corruption by severity, and bars of the mean over severities.

    Raises:
        RecordError: see `tables`.
    """
    _require_alike(records)
    heat_maps(records, stem)
    mean_bars(records, stem.with_name(f"{stem.name}-mean"))


def _require_alike(records: Group) -> None:
    require_comparable(records)
    first = records[0]
    for record in records:
        for what, same in (
            ("corruptions", _kinds(record) == _kinds(first)),
            ("severities", record.settings["severities"] == first.settings["severities"]),
            ("reference", record.measured.get("reference") == first.measured.get("reference")),
        ):
            if not same:
                raise RecordError(f"{record.file_name} has another {what} than {first.file_name}: draw them apart.")


def _kinds(record: Record) -> list[str]:
    return [corruption["name"] for corruption in record.measured["corruptions"]]


def _corruption_conditions(record: Record) -> str:
    settings = record.settings
    severities = ", ".join(map(str, settings["severities"]))
    return (
        f"{record.data.name} {record.data.split}, n = {record.n} images, photos corrupted at their stored size, "
        f"severities {severities} ({settings['package']}), seed {record.seeds['noise']}. "
        f"Brackets: {interval_words(record)}; {settings['resamples']} resamples"
    )


def severity_table(records: Group) -> Table:
    """The mIoU of each model under each corruption at each severity."""
    severities = records[0].settings["severities"]
    rows: list[tuple[Cell, ...]] = [
        (
            record.model,
            name,
            percent(record.measured["clean"]),
            *(percent(point["miou"]) for point in corruption["severities"]),
        )
        for record in records
        for name, corruption in zip(shown_names(_kinds(record)), record.measured["corruptions"], strict=True)
    ]
    columns = (Column("Model"), Column("Corruption"), Column("Clean"), *(Column(f"{level}") for level in severities))
    return Table(columns, tuple(rows), f"mIoU (%) by severity. {_corruption_conditions(records[0])}.")


def mean_table(records: Group) -> Table:
    """The mean over severities of each corruption, a column a model."""
    rows: list[tuple[Cell, ...]] = [
        (name, *(percent(record.measured["corruptions"][index]["mean"]) for record in records))
        for index, name in enumerate(shown_names(_kinds(records[0])))
    ]
    rows.append(("mean", *(percent(record.measured["mean"]) for record in records)))
    rows.append(("clean", *(percent(record.measured["clean"]) for record in records)))
    columns = (Column("Corruption"), *(Column(record.model) for record in records))
    caption = f"mIoU (%), mean over severities. {_corruption_conditions(records[0])}."
    return Table(columns, tuple(rows), caption, summary_rows=2)


def degradation_table(records: Group) -> Table:
    """Corruption degradation beside the reference model, two columns a model."""

    def cells(values: Mapping[str, Any], *keys: str) -> list[Cell]:
        return [Estimate(*(math.nan if part is None else part for part in values[key].values())) for key in keys]

    rows: list[tuple[Cell, ...]] = []
    for index, name in enumerate(shown_names(_kinds(records[0]))):
        row: list[Cell] = [name]
        for record in records:
            row += cells(record.measured["corruptions"][index], "cd", "relative_cd")
        rows.append(tuple(row))
    mean: list[Cell] = ["mean"]
    for record in records:
        mean += cells(record.measured, "mcd", "relative_mcd")
    columns = [Column("Corruption")]
    for record in records:
        columns += [Column(f"{record.model}: CD", 3), Column("relative CD", 3)]
    caption = (
        "CD: sum over severities of 1 - mIoU, relative CD: of clean mIoU - mIoU, each as a multiple of that of "
        f"{records[0].measured['reference']['model']}; below 1 is better; a dash: the reference loses nothing. "
        f"{_corruption_conditions(records[0])}."
    )
    return Table(tuple(columns), (*rows, tuple(mean)), caption, summary_rows=1)


def heat_maps(records: Group, stem: Path) -> None:
    """Corruptions down, severities across, one panel a model, one colour scale."""
    names, severities = shown_names(_kinds(records[0])), records[0].settings["severities"]
    across = min(4, len(records))
    down = math.ceil(len(records) / across)
    top = max(percent(record.measured["clean"]).value for record in records)
    with figure_style():
        figure = new_figure(down * (0.75 + 0.155 * len(names)), PAGE if across > 1 else COLUMN)
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for panel in panels.flat[len(records) :]:
            panel.set_axis_off()
        for panel, record in zip(panels.flat, records, strict=False):
            clean = percent(record.measured["clean"]).value
            values = [
                [clean, *(percent(point["miou"]).value for point in corruption["severities"])]
                for corruption in record.measured["corruptions"]
            ]
            image = panel.imshow(values, cmap="viridis", vmin=0, vmax=top, aspect="auto")
            for row, line in enumerate(values):
                for column, value in enumerate(line):
                    colour = "white" if value < 0.6 * top else "black"
                    panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color=colour)
            panel.grid(visible=False)
            panel.set_title(record.model, fontsize=7)
            panel.set_xticks(range(len(severities) + 1), ["clean", *map(str, severities)])
            panel.set_yticks(range(len(names)), names)
        figure.supxlabel("severity", fontsize=8)
        bar = figure.colorbar(image, ax=list(panels.flat), fraction=0.03, pad=0.01)
        bar.set_label(f"mIoU (%), n = {records[0].n} images")
        save_figure(figure, stem)


def mean_bars(records: Group, stem: Path) -> None:
    """Mean over severities of each corruption, models side by side, their clean mIoU on top."""
    names = shown_names(_kinds(records[0]))
    with figure_style(len(records)) as colours:
        legend = legend_height([record.model for record in records], COLUMN)
        figure = new_figure(0.95 + legend + (len(names) + 1.4) * max(0.17, 0.075 * len(records)))
        axes = figure.subplots()
        places = rows_below_total(axes, "clean", names)
        for index, (record, colour) in enumerate(zip(records, colours, strict=False)):
            corruptions = record.measured["corruptions"]
            bars = [percent(record.measured["clean"]), *(percent(corruption["mean"]) for corruption in corruptions)]
            centres, thickness = side_by_side(places, index, len(records))
            axes.barh(
                centres,
                [bar.value for bar in bars],
                xerr=error_bars(bars),
                height=thickness,
                color=colour,
                error_kw={"elinewidth": 0.7, "ecolor": "0.25"},
                label=record.model,
            )
        axes.set_xlim(left=0)
        severities = records[0].settings["severities"]
        axes.set_xlabel(
            f"mIoU (%), mean over severities {', '.join(map(str, severities))};\n"
            f"{figure_words(records[0])}, n = {records[0].n} images"
        )
        model_legend(figure, records, COLUMN, left=True)
        save_figure(figure, stem)
