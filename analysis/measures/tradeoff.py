"""Accuracy against cost: mIoU of trained models beside the multiply-adds of their decoders.

Source of the figure: ``assets/performance.png`` of ``QishuaiWen/DEPICT``, mIoU against decoder GFLOPs.

Layout of ``measured``: ``miou`` as in an evaluation, ``scopes`` as in a profile (`analysis.measures.profile.measure`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from analysis.measures.profile import count, stored_cost
from analysis.record import Record, new_record
from analysis.show.figures import COLUMN, figure_style, legend_columns, new_figure, save_figure
from analysis.show.tables import Column, Table, percent
from whitebox.errors import ConfigError
from whitebox.runs import Run

KIND = "tradeoff"


def measure(run: Run, evaluation: Record) -> Record:
    """The record of a run and its evaluation; costs are those of one window.

    Raises:
        ConfigError: the run shows images whole (``inference.window=null``).
    """
    size = run.config.inference.window
    if size is None:
        raise ConfigError(
            f"{run.name} shows images whole (inference.window=null), and its cost is that of one window: give "
            "inference.window and inference.stride."
        )
    return new_record(
        KIND,
        model=run.name,
        data=evaluation.data,
        measured={
            "miou": evaluation.measured["miou"],
            "scopes": {scope: asdict(cost) for scope, cost in count(run.model, size).items()},
        },
        n=evaluation.n,
        weights=evaluation.weights,
        seeds=evaluation.seeds,
        settings={**evaluation.settings, "size": size, "classes": run.model.num_classes},
    )


def render(records: Sequence[Record], stem: Path) -> dict[str, Table]:
    """A point a model, and its table."""
    caption = _caption(records[0])
    rows = []
    with figure_style(len(records)) as colours:
        legend = legend_columns([record.model for record in records], COLUMN)
        figure = new_figure(2.5 + 0.13 * math.ceil(len(records) / legend))
        axes = figure.subplots()
        for index, record in enumerate(records):
            decoder, whole = stored_cost(record, "decoder blocks"), stored_cost(record, "model")
            miou = percent(record.measured["miou"])
            rows.append(
                (record.model, miou, decoder.parameters / 1e6, decoder.gflops, whole.parameters / 1e6, whole.gflops)
            )
            axes.errorbar(
                decoder.gflops,
                miou.value,
                [[miou.value - miou.low], [miou.high - miou.value]],
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
        figure.legend(loc="outside upper center", ncols=legend)
        save_figure(figure, stem)
    columns = (
        Column("Model"),
        Column("mIoU (%)"),
        Column("Decoder blocks (M parameters)", 2),
        Column("Decoder blocks (GFLOPs)", 2),
        Column("Model (M parameters)", 2),
        Column("Model (GFLOPs)", 2),
    )
    return {"": Table(columns, tuple(rows), caption)}


def _caption(first: Record) -> str:
    return (
        f"{first.data.name} {first.data.split}, n = {first.n} images; brackets: 95 % interval over images, one "
        f"training each. GFLOPs = 2 x multiply-adds of matrix products for one window of "
        f"{first.settings['size']} px and {first.settings['classes']} classes; the papers count the decoder's blocks."
    )
