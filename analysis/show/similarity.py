"""Tables and figure of `analysis.measures.similarity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.record import Record, notes
from analysis.show.figures import PAGE, figure_style, new_figure, save_figure
from analysis.show.spread import bootstrap_words, over_units
from analysis.show.tables import Cell, Column, Estimate, Table, estimate, number, stored_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ACROSS = 3  # heat maps beside each other


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """CKA of each pair of layers; and subspaces of layers of one name, where two models have some."""
    found = {"": _cka_table(records)}
    if any(record.measured["layers"] for record in records):
        found["-heads"] = _heads_table(records)
    return found


def _cka_table(records: Sequence[Record]) -> Table:
    columns = list(dict.fromkeys(_short(name) for record in records for name in record.measured["second"]))
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        for name, values in zip(record.measured["first"], record.measured["cka"], strict=True):
            cells = dict(zip(map(_short, record.measured["second"]), map(stored_cell, values), strict=True))
            rows.append((record.model, _short(name), *(cells.get(column) for column in columns)))
    first = records[0]
    caption = (
        "CKA of the patch tokens of two layers, rows of the first model and columns of the second: 1 where they differ "
        f"by a rotation and a scale, about 0 where they are independent. {first.data.name} {first.data.split}, "
        f"n = {first.n} images, each window a batch; brackets: {over_units(first)}; {bootstrap_words(first)}."
        + "".join(f" {note}" for note in notes(records))
    )
    return Table((Column("Models"), Column("Layer"), *(Column(name, 2) for name in columns)), tuple(rows), caption)


_NUMBERS = ("same_overlap", "matched_overlap", "same_angle", "matched_angle")


def _heads_table(records: Sequence[Record]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        for layer in record.measured["layers"]:
            cells = ((layer["numbers"][key], estimate(layer["random"][key])) for key in _NUMBERS)
            pairs = ", ".join(f"{first}-{second}" for first, second in layer["matched"])
            rows.append((record.model, _short(layer["name"]), *(cell for pair in cells for cell in pair), pairs))
    means = _means(records) if len(records) > 1 else []
    columns = [
        Column(name, decimals)
        for name, decimals in (("Overlap, same head", 3), ("matched", 3), ("Angle, same head", 1), ("matched", 1))
    ]
    spread = [Column("random", column.decimals) for column in columns]
    first = records[0]
    caption = (
        "Subspaces of two models, means over heads. Overlap: cosine between the maps U^T U and V^T V (1: the same map "
        "up to scale); angle: mean of the principal angles, degrees (0: the same subspace). Same head: of one number. "
        "Matched: heads one to one for the largest sum of overlaps; which with which stands at the end. Random: the "
        "second layer turned by a random rotation, matched as well; mean and 2.5 % to 97.5 % of "
        f"{first.settings['draws']} draws, seed {first.seeds['random']}."
    )
    if means:
        caption += f" Below the rule: the mean over {len(records)} pairs of models, and the least and the most of them."
    both = [each for pair in zip(columns, spread, strict=True) for each in pair]
    return Table(
        (Column("Models"), Column("Layer"), *both, Column("Matched heads")), (*rows, *means), caption, len(means)
    )


def _means(records: Sequence[Record]) -> list[tuple[Cell, ...]]:
    """A row a layer that all pairs have."""
    every = [{layer["name"]: layer for layer in record.measured["layers"]} for record in records]
    rows: list[tuple[Cell, ...]] = []
    for name in every[0]:
        if not all(name in each for each in every):
            continue
        cells: list[Cell] = []
        for key in _NUMBERS:
            for values in (
                [number(each[name]["numbers"][key]) for each in every],
                [number(each[name]["random"][key]["value"]) for each in every],
            ):
                cells.append(Estimate(sum(values) / len(values), min(values), max(values)))
        rows.append(("all pairs", _short(name), *cells, None))
    return rows


def figures(records: Sequence[Record], stem: Path) -> None:
    """A heat map of CKA a pair of models; below it how their heads overlap, beside random rotations."""
    with_heads = [record for record in records if record.measured["layers"]]
    across = min(_ACROSS, len(records))
    lines = -(-len(records) // across)
    rows = sum(len(record.measured["layers"]) for record in with_heads)
    below = 0.9 + 0.17 * rows if rows else 0.0
    with figure_style() as colours:
        above = 2.5 * lines
        figure = new_figure(above + below, PAGE)
        if rows:
            maps, heads = figure.subfigures(2, 1, height_ratios=(above, below), squeeze=False)[:, 0]
            _draw_heads(heads.subplots(1, 2, sharey=True), with_heads, colours)
        else:
            maps = figure.subfigures(1, 1, squeeze=False)[0, 0]
        panels = maps.subplots(lines, across, squeeze=False)
        for axes in panels.flat[len(records) :]:
            axes.set_axis_off()
        for axes, record in zip(panels.flat, records, strict=False):
            _draw_map(axes, record)
        save_figure(figure, stem)


def _draw_map(axes: Axes, record: Record) -> None:
    values = [[number(each["value"]) for each in row] for row in record.measured["cka"]]
    axes.imshow(values, vmin=0, vmax=1, cmap="viridis")
    axes.grid(visible=False)
    for key, axis in (("second", axes.xaxis), ("first", axes.yaxis)):
        names = [_short(name) for name in record.measured[key]]
        axis.set_ticks(range(len(names)), names, fontsize=6)
    axes.tick_params(axis="x", rotation=90)
    if max(len(values), len(values[0])) <= 8:
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                dark = value < 0.6
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color="w" if dark else "k")
    first, _, second = record.model.partition(" | ")
    axes.set_title("CKA", fontsize=7)
    axes.set_ylabel(first, fontsize=7)
    axes.set_xlabel(second or first, fontsize=7)


def _draw_heads(panels: Sequence[Axes], records: Sequence[Record], colours: Sequence[Any]) -> None:
    """Left overlaps, right angles, a row a layer of a pair."""
    labels: list[str] = []
    for record in records:
        for layer in record.measured["layers"]:
            row = len(labels)
            labels.append(f"{record.model}  {_short(layer['name'])}")
            for axes, what in zip(panels, ("overlap", "angle"), strict=True):
                for which, shift, colour, marker in (
                    ("same", -0.15, colours[0], "o"),
                    ("matched", 0.15, colours[1], "D"),
                ):
                    _draw_number(axes, layer, f"{which}_{what}", row + shift, colour, marker)
    for axes, words in zip(panels, ("overlap of heads", "mean principal angle (degrees)"), strict=True):
        axes.set_xlabel(words)
        axes.set_yticks(range(len(labels)), labels, fontsize=6)
        axes.set_ylim(len(labels) - 0.4, -0.6)
    handles = {label: handle for handle, label in zip(*panels[0].get_legend_handles_labels(), strict=True)}
    panels[0].figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=len(handles))


def _draw_number(axes: Axes, layer: Mapping[str, Any], key: str, row: float, colour: Any, marker: str) -> None:
    random = estimate(layer["random"][key])
    which = {"same": "head of the same number", "matched": "matched"}[key.split("_")[0]]
    ends = [random.low, random.high]
    axes.plot(ends, [row, row], color=colour, alpha=0.35, linewidth=4, solid_capstyle="butt", label=f"{which}, random")
    axes.plot(number(layer["numbers"][key]), row, marker, color=colour, markersize=4, label=which)


def _short(name: str) -> str:
    return name.removeprefix("decoder.").replace("encoder.layers.", "encoder ")
