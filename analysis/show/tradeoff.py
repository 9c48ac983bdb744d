"""Tables and figures of `analysis.measures.tradeoff`: a point a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.record import Record
from analysis.show.figures import COLUMN, error_bars, figure_style, legend_height, model_legend, new_figure, save_figure
from analysis.show.profile import stored_cost
from analysis.show.spread import together_words
from analysis.show.tables import Column, Table, percent


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """A row a model."""
    rows = []
    for record in records:
        decoder, whole = stored_cost(record, "decoder blocks"), stored_cost(record, "model")
        costs = (decoder.parameters / 1e6, decoder.gflops, whole.parameters / 1e6, whole.gflops)
        rows.append((record.model, percent(record.measured["miou"]), *costs))
    columns = (
        Column("Model"),
        Column("mIoU (%)"),
        Column("Decoder blocks (M parameters)", 2),
        Column("Decoder blocks (GFLOPs)", 2),
        Column("Model (M parameters)", 2),
        Column("Model (GFLOPs)", 2),
    )
    return {"": Table(columns, tuple(rows), _caption(records[0]))}


def figures(records: Sequence[Record], stem: Path) -> None:
    """A point a model."""
    with figure_style(len(records)) as colours:
        figure = new_figure(2.5 + legend_height([record.model for record in records], COLUMN))
        axes = figure.subplots()
        for index, record in enumerate(records):
            miou = percent(record.measured["miou"])
            axes.errorbar(
                stored_cost(record, "decoder blocks").gflops,
                miou.value,
                error_bars([miou]),
                fmt="o",
                markersize=4,
                elinewidth=1,
                color=colours[index],
                label=record.model,
            )
        axes.margins(x=0.15)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.set_xlabel(f"GFLOPs of the decoder's blocks, one window of {records[0].settings['size']} px")
        axes.set_ylabel(f"mIoU (%), {records[0].data.name} {records[0].data.split} (n = {records[0].n})")
        model_legend(figure, records, COLUMN)
        save_figure(figure, stem)


def _caption(first: Record) -> str:
    return (
        f"{first.data.name} {first.data.split}, n = {first.n} images; brackets: {together_words([first])}. "
        f"GFLOPs = 2 x multiply-adds of matrix products for one window of "
        f"{first.settings['size']} px and {first.settings['classes']} classes; the papers count the decoder's blocks."
    )
