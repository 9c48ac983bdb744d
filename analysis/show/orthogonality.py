"""Tables and figures of `analysis.measures.orthogonality`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.maths.packing import unpacked
from analysis.record import Record
from analysis.show.figures import PAGE, dots_of_rows, figure_style, new_figure, save_figure
from analysis.show.spread import behind_words, bootstrap_words, pictured, seeds_of, shared_words
from analysis.show.tables import Cell, Column, Table, estimate, stored_cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

_ABREAST = 4  # heat maps of classes side by side, at most

_HEADS = {
    "deviation": Column("Deviation", 2),
    "condition": Column("Condition", 1),
    "overlap": Column("Overlap", 2),
    "angle": Column("Mean angle", 1),
    "smallest_angle": Column("Smallest angle", 1),
}
_CLASSES = {
    "deviation": Column("Deviation", 2),
    "cosine": Column("Mean |cos|", 3),
    "largest_cosine": Column("Max |cos|", 2),
    "condition": Column("Condition", 1),
}
_STATES = {"learned": "learned", "after": "after the decoder"}


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Of subspaces, and of class embeddings, where there are some."""
    found = {}
    if layered := [each for each in records if each.measured["layers"]]:
        found["-subspaces"] = _subspaces_table(layered)
    if classed := [each for each in records if each.measured["classes"]]:
        found["-classes"] = _classes_table(classed)
    return found


def figures(records: Sequence[Record], stem: Path) -> None:
    """Heat maps ``STEM-subspaces`` and ``STEM-classes``; of several trainings their numbers too, ``STEM-numbers``."""
    if layered := [each for each in records if each.measured["layers"]]:
        _draw_subspaces(layered, stem.with_name(f"{stem.name}-subspaces"))
    if classed := [each for each in records if each.measured["classes"]]:
        _draw_classes(classed, stem.with_name(f"{stem.name}-classes"))
    if any(len(seeds_of(each)) > 1 for each in layered):
        _draw_numbers(layered, stem.with_name(f"{stem.name}-numbers"))


def _subspaces_table(records: Sequence[Record]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    random: dict[str, tuple[Cell, ...]] = {}
    for each in records:
        for layer in each.measured["layers"]:
            shape = f"{layer['heads']} x {layer['dim']} of {layer['width']}"
            rows.append((each.model, layer["name"].removeprefix("decoder."), shape, *_cells(_HEADS, layer["numbers"])))
            random[shape] = ("random", None, shape, *_cells(_HEADS, layer["random"]))
    caption = (
        "Subspaces U_h (Segmenter: query projection), means over heads or pairs of heads. Deviation: |G - cI| / |G| of "
        "a head's G = U_h U_h^T, c = trace / P (0: orthogonal rows of one length). Condition: of U_h. Overlap: cosine "
        "between U_h^T U_h and U_g^T U_g (0: orthogonal heads). Mean angle: of all principal angles between two heads, "
        f"degrees (90: orthogonal). Smallest angle: of all pairs. {_random_caption(records[0])}"
    )
    columns = (Column("Model"), Column("Layer"), Column("Subspaces"), *_HEADS.values())
    return Table(columns, (*rows, *random.values()), caption, summary_rows=len(random))


def _classes_table(records: Sequence[Record]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    random: dict[str, tuple[Cell, ...]] = {}
    caption = (
        "Class embeddings Q as unit vectors. Deviation: |C - I| / |C| of their cosines C (0: orthonormal). |cos|: of "
        f"two classes. Condition: of Q. {_random_caption(records[0])}"
    )
    for each in records:
        classes = each.measured["classes"]
        shape = f"{len(classes['names'])} in {classes['width']}"
        random[shape] = ("random", None, shape, *_cells(_CLASSES, classes["random"]))
        for state, title in _STATES.items():
            if state in classes:
                rows.append((each.model, title, shape, *_cells(_CLASSES, classes[state]["numbers"])))
    seen = [each for each in records if "after" in each.measured["classes"]]
    if seen:
        data = seen[0].data
        caption += (
            f" After the decoder: mean over {data.images} images of {data.name} {data.split} "
            f"[{shared_words(seen)}; {bootstrap_words(seen[0])}]."
        )
    columns = (Column("Model"), Column("Q"), Column("Shape"), *_CLASSES.values())
    return Table(columns, (*rows, *random.values()), caption, summary_rows=len(random))


def _cells(columns: Mapping[str, Column], numbers: Mapping[str, Any]) -> list[Cell]:
    return [stored_cell(numbers[name]) for name in columns]


def _draw_numbers(records: Sequence[Record], stem: Path) -> None:
    """Of subspaces, a row a layer, with single trainings behind their mean: what the table says."""
    layers = [(each, layer) for each in records for layer in each.measured["layers"]]
    dots_of_rows(
        [f"{each.model}  {layer['name'].removeprefix('decoder.')}" for each, layer in layers],
        {column.name: [estimate(layer["numbers"][name]) for _, layer in layers] for name, column in _HEADS.items()},
        stem,
        f"Of subspaces; definitions are in the table.{behind_words(records, 'ticks')}",
    )


def _random_caption(first: Record) -> str:
    return (
        f"random: mean [2.5 %, 97.5 % percentile] of {first.settings['draws']} standard normal matrices of the same "
        f"shape, seed {first.seeds['random']}."
    )


def _draw_subspaces(records: Sequence[Record], stem: Path) -> None:
    """A line of three layers after another, a model begins a new line."""
    lines = [
        (each, each.measured["layers"][start : start + 3])
        for each in records
        for start in range(0, len(each.measured["layers"]), 3)
    ]
    with figure_style():
        figure = new_figure(0.3 + 1.72 * len(lines), 5.4)
        panels = figure.subplots(len(lines), 3, squeeze=False)
        for row, (held, layers) in zip(panels, lines, strict=True):
            for axes in row:
                axes.set_axis_off()
            for axes, layer in zip(row, layers, strict=False):
                image = _heat_map(axes, layer["gram"], limit=0.5)
                axes.set_title(f"{pictured(held)}\n{_layer_words(held, layer)}", fontsize=6.5)
                _heads(axes, layer["heads"], layer["dim"])
        bar = figure.colorbar(image, ax=panels, shrink=0.6, aspect=30, extend="both")
        bar.set_label("U Uᵀ of all heads, in units of the mean of its diagonal")
        save_figure(figure, stem, dpi=150)  # what looks like noise does not compress


def _layer_words(held: Record, layer: Mapping[str, Any]) -> str:
    """Its name and, of one training, whose picture it is, the unit."""
    unit = "" if len(seeds_of(held)) > 1 else f", unit {layer['unit']:.2g}"
    return f"{str(layer['name']).removeprefix('decoder.')}{unit}"


def _heads(axes: Axes, heads: int, dim: int) -> None:
    """Boundaries between heads, and their indices."""
    for boundary in range(1, heads):
        for line in (axes.axhline, axes.axvline):
            line(dim * boundary - 0.5, color="0.2", linewidth=0.4)
    centres = [dim * (head + 0.5) - 0.5 for head in range(heads)]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(centres, [f"{head}" if heads <= 8 else "" for head in range(heads)], fontsize=6)
    axes.set_xlabel("head", fontsize=6, labelpad=1)


def _draw_classes(records: Sequence[Record], stem: Path) -> None:
    """Models side by side: learned embeddings, and below them those after the decoder, where there are any."""
    states = [state for state in _STATES if any(state in each.measured["classes"] for each in records)]
    columns = min(_ABREAST, len(records))
    width = PAGE if columns > 1 else (PAGE + 1.6) / 2  # one alone is as large as two side by side
    lines = len(states) * math.ceil(len(records) / columns)
    with figure_style():
        figure = new_figure(0.6 + ((width - 1.6) / columns + 0.35) * lines, width)
        panels = figure.subplots(lines, columns, squeeze=False)
        for axes in panels.flat:
            axes.set_axis_off()
        for number, each in enumerate(records):
            block, column = divmod(number, columns)
            classes = each.measured["classes"]
            for index, state in enumerate(states):
                axes = panels[block * len(states) + index, column]
                if state in classes:
                    image = _heat_map(axes, classes[state]["cosines"], limit=1)
                    images = f", {each.data.images} images" if state == "after" else ""
                    axes.set_title(
                        f"{pictured(each)}\n{_STATES[state]}{images}", fontsize=7 if columns < _ABREAST else 6
                    )
                    names = classes["names"] if len(classes["names"]) <= 30 else []
                    place = axes.get_subplotspec()
                    below, beside = (names if outer else [] for outer in (place.is_last_row(), place.is_first_col()))
                    axes.set_xticks(range(len(below)), below, rotation=90, fontsize=5)
                    axes.set_yticks(range(len(beside)), beside, fontsize=5)
        bar = figure.colorbar(image, ax=panels, shrink=0.6, aspect=30)
        bar.set_label("cosine between class embeddings")
        save_figure(figure, stem)


def _heat_map(axes: Axes, stored: Mapping[str, Any], limit: float) -> AxesImage:
    axes.set_axis_on()
    axes.grid(visible=False)
    axes.tick_params(length=0, pad=1)
    return axes.imshow(unpacked(stored), cmap="RdBu_r", vmin=-limit, vmax=limit)
