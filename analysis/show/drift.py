"""Table and figure of `analysis.measures.drift`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.record import Record
from analysis.show.figures import COLUMN, figure_style, model_legend, new_figure, save_figure
from analysis.show.tables import Cell, Column, Table, estimate


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """A row a layer."""
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        for layer in record.measured["layers"]:
            shown = [estimate(layer[key]) if key in layer else None for key in ("alike", "start", "step")]
            rows.append((record.model, layer["name"].removeprefix("decoder."), *shown, _kept(layer)))
    columns = (
        *map(Column, ("Model", "Layer")),
        *(Column(name, 3) for name in ("Alike", "Step, start", "Step, learned")),
        Column("Sign kept"),
    )
    caption = (
        "Alike: cosine of a layer's subspaces with those it started from. Step: what its update is multiplied with, "
        "above 0 as it is derived, below 0 the other way. Sign kept: trainings whose learned step has the sign of the "
        "start. Mean ± sd over trainings, where there are several."
    )
    return {"": Table(columns, tuple(rows), caption)} if rows else {}


def figures(records: Sequence[Record], stem: Path) -> None:
    """The learned step of each layer of each training against that at the start."""
    shown = [record for record in records if any("step" in layer for layer in record.measured["layers"])]
    if not shown:
        return
    with figure_style(len(shown)) as colours:
        figure = new_figure(3.2, COLUMN)
        axes = figure.subplots()
        for record, colour in zip(shown, colours, strict=False):
            layers = [layer for layer in record.measured["layers"] if "step" in layer]
            pairs = [pair for layer in layers for pair in _steps(layer)]
            axes.plot([then for _, then in pairs], [now for now, _ in pairs], "o", color=colour, markersize=3.5)
            axes.plot([], [], "o", color=colour, label=record.model)
        ends = axes.get_xlim()
        axes.plot(ends, ends, color="0.6", linewidth=0.8, zorder=0)
        for line in (axes.axhline, axes.axvline):
            line(0, color="0.3", linewidth=0.6)
        axes.set_xlabel("step at the start, a dot a layer of a training")
        axes.set_ylabel("step, learned")
        model_legend(figure, shown, COLUMN)
        save_figure(figure, stem)


def _kept(layer: Mapping[str, Any]) -> str | None:
    if "step" not in layer:
        return None
    pairs = _steps(layer)
    return f"{sum(now * then > 0 for now, then in pairs)} of {len(pairs)}"


def _steps(layer: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Learned, and at the start, of each training."""
    own = (layer[key].get("seeds", [layer[key]["value"]]) for key in ("step", "start"))
    return list(zip(*own, strict=True))
