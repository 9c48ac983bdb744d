"""Tables and figures of `analysis.measures.profile`: work, speed and memory of models, by scope and by tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.maths.conventions import BLOCKS, SCOPES, Cost
from analysis.record import Record, RecordError
from analysis.show.figures import (
    PAGE,
    error_bars,
    figure_style,
    legend_columns,
    new_figure,
    save_figure,
    trainings_behind,
)
from analysis.show.spread import seeds_of
from analysis.show.tables import Cell, Column, Estimate, Table, estimate


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """One row a model, and (``-scopes``) one row a model and scope.

    Raises:
        RecordError: timed under different conditions, so not to be compared.
    """
    _require_alike(records)
    return {"": _summary(records), "-scopes": _scopes(records)}


def figures(records: Sequence[Record], stem: Path) -> None:
    """Bars of GFLOPs beside images a second.

    Where a model was measured at several sizes also (``-tokens``) the cost of its decoder against the number of tokens.

    Raises:
        RecordError: see `tables`.
    """
    _require_alike(records)
    _draw(records, stem)
    by_model = {
        model: [each for each in records if each.model == model and "tokens" in each.measured]
        for model in dict.fromkeys(record.model for record in records)
    }
    if several := {model: group for model, group in by_model.items() if len(group) > 1}:
        _draw_tokens(several, stem.with_name(f"{stem.name}-tokens"))


def _require_alike(records: Sequence[Record]) -> None:
    for key in ("batch", "precision", "device", "threads"):
        if len({record.settings[key] for record in records}) > 1:
            raise RecordError(f"These profiles were timed with different {key}; render them apart, or measure again.")
    if len({str(record.hardware) for record in records}) > 1:
        raise RecordError("These profiles were timed on different machines; render them apart, or measure again.")


def stored_cost(record: Record, scope: str) -> Cost:
    """What a record with ``scopes`` holds."""
    return Cost(**record.measured["scopes"][scope])


def stored_speed(record: Record, scope: str) -> Estimate:
    """Images a second of a profile."""
    return estimate(record.measured["images_per_second"][scope])


def timed_under(record: Record) -> str:
    """Machine, precision, batch and version of a profile's times, in words."""
    settings = record.settings
    machine = record.hardware["cpu"] if settings["device"] == "cpu" else ", ".join(record.hardware["gpus"])
    threads = f", {settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"
    return (
        f"{machine}{threads if settings['device'] == 'cpu' else ''}, {settings['precision']}, "
        f"batch {settings['batch']}, torch {record.versions['torch']}"
    )


def _passes(records: Sequence[Record]) -> str:
    """How often was timed."""
    counts = sorted({record.n for record in records})
    return f"{' or '.join(map(str, counts))} pass{'' if counts == [1] else 'es'}"


def _several(records: Sequence[Record]) -> str:
    """What ± is, where some records are of several trainings."""
    return ", ± sd of the medians of several trainings" if any(len(seeds_of(each)) > 1 for each in records) else ""


_CONVENTION = (
    "FLOPs = 2 x MACs of matrix products and convolutions (softmax, norms, pooling, upsampling not counted), one image."
)


_BLOCKS = "Decoder blocks: the decoder's layers alone, N = patches + class tokens, the scope papers publish."


_ALIVE = "most bytes of tensors alive at once"


def _summary(records: Sequence[Record]) -> Table:
    some_published = any(BLOCKS in record.reported for record in records)
    columns = [
        Column("Model"),
        Column("px"),
        Column("Classes"),
        Column("Params (M)", 2),
        Column("Decoder (M)", 2),
        Column("Blocks (G)", 2),
        *([Column("Published (G)", 2)] if some_published else []),
        Column("Decoder (G)", 2),
        Column("Model (G)"),
        Column("Images/s", 2),
        Column("Memory (MB)"),
    ]
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        memory, reported = record.measured["memory"], record.reported.get(BLOCKS)
        rows.append(
            (
                record.model,
                record.settings["size"],
                record.settings["classes"],
                1e-6 * stored_cost(record, "model").parameters,
                1e-6 * stored_cost(record, "decoder").parameters,
                stored_cost(record, "decoder blocks").gflops,
                *([None if reported is None else float(reported["value"])] if some_published else []),
                stored_cost(record, "decoder").gflops,
                stored_cost(record, "model").gflops,
                stored_speed(record, "model"),
                1e-6 * (memory["weights"] + memory["activations"]["model"]),
            )
        )
    caption = (
        f"M: millions of parameters. G: GFLOPs. {_CONVENTION} {_BLOCKS} Images/s: photo in memory to label map, "
        f"median of {_passes(records)}{_several(records)} [quartiles], {timed_under(records[0])}. Memory: weights and "
        f"{_ALIVE}."
    )
    return Table(tuple(columns), tuple(rows), caption + _sources(records))


def _scopes(records: Sequence[Record]) -> Table:
    columns = (
        Column("Model"),
        Column("Scope"),
        Column("Params (M)", 3),
        Column("GMACs", 3),
        Column("GFLOPs", 3),
        Column("Published"),
        Column("Images/s", 2),
        Column("Activations (MB)"),
    )
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        activations = record.measured["memory"]["activations"]
        published_by_scope = {key.rpartition(" ")[0]: key for key in record.reported}
        for scope in SCOPES:
            cost, published_as = stored_cost(record, scope), published_by_scope.get(scope)
            text = ""
            if published_as is not None:
                text = f"{record.reported[published_as]['value']} {published_as.rpartition(' ')[2]}"
            timed = scope in activations
            measured = (stored_speed(record, scope), 1e-6 * activations[scope]) if timed else (None, None)
            numbers = (1e-6 * cost.parameters, 1e-9 * cost.macs, cost.gflops)
            rows.append((record.model, scope, *numbers, text, *measured))
    caption = (
        f"{_CONVENTION} {_BLOCKS} Model: photo in memory to label map. Images/s: median of {_passes(records)}"
        f"{_several(records)} [quartiles], {timed_under(records[0])}. Activations: {_ALIVE}, beside weights."
    )
    return Table(columns, tuple(rows), caption + _sources(records))


def _sources(records: Sequence[Record]) -> str:
    sources = sorted({reported["source"] for record in records for reported in record.reported.values()})
    return f" Published: {'; '.join(sources)}." if sources else ""


def _draw(records: Sequence[Record], stem: Path) -> None:
    names = [f"{record.model}, {record.settings['size']} px" for record in records]
    rows = range(len(records))
    parts = {
        "decoder blocks": [stored_cost(record, "decoder blocks").gflops for record in records],
        "rest of the decoder": [
            stored_cost(record, "decoder").gflops - stored_cost(record, "decoder blocks").gflops for record in records
        ],
        "encoder": [stored_cost(record, "encoder").gflops for record in records],
    }
    speeds = [stored_speed(record, "model") for record in records]
    with figure_style() as colours:
        figure = new_figure(1.15 + 0.24 * len(records), PAGE)
        work, speed = figure.subplots(1, 2, sharey=True)
        left = [0.0] * len(records)
        for (part, values), colour in zip(parts.items(), (colours[0], colours[9], "0.8"), strict=True):
            work.barh(rows, values, left=left, height=0.6, color=colour, linewidth=0, label=part)
            left = [start + value for start, value in zip(left, values, strict=True)]
        for row, record in enumerate(records):
            text = f" {stored_cost(record, 'decoder').gflops:.3g} of {stored_cost(record, 'model').gflops:.3g}"
            work.text(left[row], row, text, va="center", ha="left", fontsize=6)
        work.set_xlim(0, 1.25 * max(left))
        work.set_yticks(rows, names)
        work.set_ylim(len(records) - 0.4, -0.6)
        work.set_xlabel("GFLOPs an image (2 x MACs);\nnumbers: decoder of model")
        values = [each.value for each in speeds]
        speed.errorbar(values, rows, xerr=error_bars(speeds), fmt="o", color=colours[2], markersize=3.5, linewidth=1)
        for row, each in enumerate(speeds):
            trainings_behind(speed, each, row, colours[2])
            speed.text(each.high, row, f"  {each.value:.3g}", va="center", ha="left", fontsize=6)
        speed.set_xlim(0, 1.25 * max(each.high for each in speeds))
        batch, precision = records[0].settings["batch"], records[0].settings["precision"]
        speed.set_xlabel(
            f"images/s to label maps, {precision}, batch {batch};\nmedian and quartiles of {_passes(records)}"
        )
        for axes in (work, speed):
            axes.grid(visible=False, axis="y")
        handles, labels = work.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        save_figure(figure, f"{stem}.png")


def _draw_tokens(records: Mapping[str, Sequence[Record]], stem: Path) -> None:
    """What the decoder of each model costs against the number of patch tokens: by formula, and as measured."""
    from matplotlib.ticker import NullFormatter

    first = next(iter(records.values()))[0]
    with figure_style(len(records)) as colours:
        figure = new_figure(2.9, PAGE)
        work, time_taken, memory = panels = figure.subplots(1, 3)
        for (model, group), colour in zip(records.items(), colours, strict=False):
            ordered = sorted(group, key=lambda record: record.measured["tokens"])
            tokens = [record.measured["tokens"] for record in ordered]
            look: dict[str, Any] = {"color": colour, "linewidth": 1, "markersize": 3.5, "label": model}
            work.plot(tokens, [1e-9 * stored_cost(record, "decoder").macs for record in ordered], "o-", **look)
            seconds = np.array(
                [np.quantile(record.measured["seconds"]["decoder"], [0.25, 0.5, 0.75]) for record in ordered]
            )
            milliseconds = 1e3 * seconds / first.settings["batch"]
            low_high = np.abs(milliseconds[:, [0, 2]] - milliseconds[:, [1]]).T
            time_taken.errorbar(tokens, milliseconds[:, 1], low_high, fmt="o-", **look)
            alive = [record.measured["memory"]["activations"]["decoder"] for record in ordered]
            memory.plot(tokens, [1e-6 * each for each in alive], "o-", **look)
        labels = ("GMACs", "ms an image", "activations (MB)")
        for axes, label in zip(panels, labels, strict=True):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlabel("patch tokens")
            axes.set_ylabel(label)
            axes.yaxis.set_minor_formatter(NullFormatter())
        names = list(records)
        figure.legend(names, loc="outside upper center", ncols=legend_columns(names, PAGE))
        figure.supxlabel(
            f"of the decoder, {first.settings['classes']} classes; time: median and quartiles of {first.n} passes; "
            f"{timed_under(first)}",
            fontsize=6.5,
        )
        save_figure(figure, f"{stem}.png")
