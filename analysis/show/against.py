"""Tables and figures of `analysis.measures.baselines`: what was trained, with what was not behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.record import Record
from analysis.show.figures import PAGE, figure_style, legend_columns, new_figure, save_figure
from analysis.show.spread import together_words
from analysis.show.tables import Cell, Column, Estimate, Table, estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES: dict[str, Any] = {"untrained": "--", "random-subspaces": ":", "train": "-."}
_ABREAST = 3  # panels


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Every number beside those of baselines, and the difference; along the training where weights were kept."""
    found = {}
    if any(record.measured["baselines"] for record in records):
        found[""] = _beside_table(records)
    if any(record.measured["epochs"] for record in records):
        found["-epochs"] = _epoch_table(records)
    return found


def figures(records: Sequence[Record], stem: Path) -> None:
    """A panel a quantity along the layers at STEM, and along the training at ``STEM-epochs``."""
    if any(record.measured["baselines"] and record.measured["quantities"] for record in records):
        _draw_beside(records, stem)
    for index, record in enumerate(each for each in records if each.measured["epochs"] and each.measured["quantities"]):
        _draw_epochs(record, stem.with_name(f"{stem.name}-epochs{'' if len(records) == 1 else f'-{index + 1}'}"))


def _rows(record: Record, name: str | None = None) -> Iterator[Mapping[str, Any]]:
    return (row for row in record.measured["quantities"] if name in (None, row["name"]))


def _names(records: Sequence[Record]) -> list[str]:
    """Of quantities, in order."""
    return list(dict.fromkeys(row["name"] for record in records for row in _rows(record)))


def _baselines(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.measured["baselines"]))


def _caption(records: Sequence[Record]) -> str:
    first = records[0]
    draws = first.settings["draws"]
    drawn = f"of {draws} draws" if draws > 1 else "one draw"
    meaning = {
        "untrained": f"untrained: the same architecture with weights drawn anew (a frozen encoder stays), {drawn}",
        "random-subspaces": f"random-subspaces: the trained model with random bases as long as its own, {drawn}",
        "train": "train: the trained model on its training images",
    }
    said = "; ".join(meaning[name] for name in _baselines(records))
    photos = first.data.name == "photos"
    data = f"{first.n} photos" if photos else f"{first.data.name} {first.data.split}".strip()
    count = "" if photos or not first.data.images else f", n = {first.data.images} images"
    return f"{first.measured['of']}, {data}{count}. {said}{'. ' if said else ''}Brackets: {together_words(records)}."


def _beside_table(records: Sequence[Record]) -> Table:
    names = _baselines(records)
    rows: list[tuple[Cell, ...]] = []
    for name in _names(records):
        for record in records:
            for row in _rows(record, name):
                own = estimate(row["trained"], row["factor"])
                known = [
                    _known(row[part].get(baseline), row["factor"])
                    for baseline in names
                    for part in ("against", "minus")
                ]
                rows.append((name, record.model, row["place"], own, *known))
    heads = [head for name in names for head in (Column(name, 2), Column(f"trained minus {name}", 2))]
    meaning = (
        "Each number of the trained model beside those of baselines. Minus: the distances to the ends of both "
        "intervals squared and added, as if they were independent."
    )
    columns = (Column("Quantity"), Column("Model"), Column("Where"), Column("Trained", 2), *heads)
    return Table(columns, tuple(rows), f"{meaning} {_caption(records)}")


def _known(stored: Mapping[str, Any] | None, factor: float) -> Estimate | None:
    return None if stored is None else estimate(stored, factor)


def _epoch_table(records: Sequence[Record]) -> Table:
    epochs = sorted({epoch for record in records for epoch in record.measured["epochs"]})
    rows: list[tuple[Cell, ...]] = []
    for name in _names(records):
        for record in records:
            for row in _rows(record, name):
                known = dict(zip(record.measured["epochs"], row["epochs"], strict=True))
                values = (_known(known.get(epoch), row["factor"]) for epoch in epochs)
                rows.append((name, record.model, row["place"], *values, estimate(row["trained"], row["factor"])))
    heads = (Column("Quantity"), Column("Model"), Column("Where"), *(Column(f"epoch {each:g}", 2) for each in epochs))
    return Table((*heads, Column("result", 2)), tuple(rows), f"Along the training. {_caption(records)}")


def _draw_beside(records: Sequence[Record], stem: Path) -> None:
    """A colour a model; full lines are trained, baselines lightly behind them."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    names, baselines = _names(records), _baselines(records)
    lines = math.ceil(len(names) / _ABREAST)
    with figure_style(len(records)) as colours:
        figure = new_figure(1.2 + 1.9 * lines, PAGE)
        panels = figure.subplots(lines, _ABREAST, squeeze=False)
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        for axes, name in zip(panels.flat, names, strict=False):
            axes.set_title(name, fontsize=8)
            places: dict[float, str] = {}
            for index, record in enumerate(records):
                rows = list(_rows(record, name))
                x = [number if row["position"] is None else row["position"] for number, row in enumerate(rows)]
                places |= dict(zip(x, (row["place"] for row in rows), strict=True))
                for baseline in baselines:
                    behind = [(at, row) for at, row in zip(x, rows, strict=True) if baseline in row["against"]]
                    shown = [estimate(row["against"][baseline], row["factor"]) for _, row in behind]
                    _line(axes, [at for at, _ in behind], shown, colours[index], _DASHES[baseline], faint=True)
                _line(axes, x, [estimate(row["trained"], row["factor"]) for row in rows], colours[index], "-")
            _not_below_zero(axes)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
            if not all("layer" in place or "input" in place for place in places.values()):
                axes.set_xticks(list(places), list(places.values()), fontsize=6)
                axes.margins(x=0.3)
        handles = [
            Line2D([], [], color=colours[index], marker="o", markersize=3, label=f"{record.model}, trained")
            for index, record in enumerate(records)
        ]
        handles += [Line2D([], [], color="0.5", linestyle=_DASHES[name], label=name) for name in baselines]
        columns = legend_columns([str(handle.get_label()) for handle in handles], PAGE)
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        text = f"Across: decoder layers passed (encoder: < 0), or what stands there. {_caption(records)}"
        figure.supxlabel(fill(text, int(20 * PAGE)), fontsize=5.5, color="0.3")
        save_figure(figure, stem)


def _line(
    axes: Axes, x: Sequence[float], values: Sequence[Estimate], colour: Any, dashes: str, faint: bool = False
) -> None:
    look: dict[str, Any] = (
        {"alpha": 0.55, "linewidth": 1.0, "zorder": 1.5} if faint else {"linewidth": 1.3, "marker": "o"}
    )
    axes.plot(x, [each.value for each in values], color=colour, linestyle=dashes, markersize=3, **look)
    low, high = ([getattr(each, end) for each in values] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=colour, alpha=0.1 if faint else 0.2, linewidth=0)


def _not_below_zero(axes: Axes) -> None:
    """A wide interval of few draws may reach below 0, where a rate or a rank does not."""
    drawn = [np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines]
    least = [float(np.nanmin(values)) for values in drawn if np.isfinite(values).any()]
    if axes.get_ylim()[0] < 0 <= min(least, default=-1.0):
        axes.set_ylim(bottom=0)


def _draw_epochs(record: Record, stem: Path) -> None:
    """A panel a quantity, a line a place; dotted: untrained, where that was measured."""
    import seaborn as sns
    from matplotlib.lines import Line2D

    names = _names([record])
    places = list(dict.fromkeys(row["place"] for row in _rows(record)))
    lines = math.ceil(len(names) / _ABREAST)
    with figure_style():
        colours = dict(zip(places, sns.color_palette("viridis_r", len(places) + 1)[1:], strict=True))
        figure = new_figure(1.2 + 1.9 * lines, PAGE)
        panels = figure.subplots(lines, _ABREAST, squeeze=False)
        for axes in panels.flat[len(names) :]:
            axes.set_visible(False)
        for number, (axes, name) in enumerate(zip(panels.flat, names, strict=False)):
            axes.set_title(name, fontsize=8)
            for row in _rows(record, name):
                pairs = [
                    (epoch, estimate(stored, row["factor"]))
                    for epoch, stored in zip(record.measured["epochs"], row["epochs"], strict=True)
                    if stored is not None
                ]
                colour = colours[row["place"]]
                if "untrained" in row["against"]:
                    value = estimate(row["against"]["untrained"], row["factor"]).value
                    axes.axhline(value, color=colour, linewidth=0.8, linestyle=":")
                _line(axes, [epoch for epoch, _ in pairs], [each for _, each in pairs], colour, "-")
            _not_below_zero(axes)
            if number >= len(names) - _ABREAST:
                axes.set_xlabel("epoch")
        handles = [Line2D([], [], color=colours[place], marker="o", markersize=3, label=place) for place in places]
        if "untrained" in record.measured["baselines"]:
            handles.append(Line2D([], [], color="0.5", linestyle=":", label="untrained"))
        columns = legend_columns([str(handle.get_label()) for handle in handles], PAGE)
        figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        figure.supxlabel(fill(f"{record.model}. {_caption([record])}", int(20 * PAGE)), fontsize=5.5, color="0.3")
        save_figure(figure, stem)
