"""Tables of `analysis.measures.variance`, and under noise of `analysis.measures.noise_variance`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.maths.conventions import MEANS
from analysis.record import Record
from analysis.show.noise import conditions
from analysis.show.spread import unit_words
from analysis.show.tables import Cell, Column, Table, number

_SOURCES = ("seed", "unit", "residual")


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Classes of one model, or a row a model; under noise a row for each model and level."""
    if "levels" in records[0].measured:
        return {"": _levels(records)}
    return {"": _models(records) if len(records) > 1 else _classes(records[0])}


def figures(records: Sequence[Record], stem: Path) -> None:
    """None: three numbers a row are read in a table."""


def _columns(first: str) -> tuple[Column, ...]:
    sds = (Column("sd, seed", 2), Column("sd, unit", 2), Column("sd, residual", 2))
    shares = (Column("of the variance: seed (%)", 0), Column("unit (%)", 0), Column("residual (%)", 0))
    return (Column(first), Column("mIoU (%)" if first == "Model" else "IoU (%)"), *sds, *shares)


def _cells(record: Record, stored: Mapping[str, Any]) -> list[Cell]:
    """The value, its standard deviations, and each source's share of the variance of the mean, all in percent."""
    seeds, units = record.measured["seeds"], record.measured["units"]
    sds = [number(stored[source]) for source in _SOURCES]
    variances = [sd**2 / count for sd, count in zip(sds, (seeds, units, seeds * units), strict=True)]
    total = sum(variances)
    shares = [100 * each / total if total > 0 else float("nan") for each in variances]
    return [100 * number(stored["value"]), *(100 * sd for sd in sds), *shares]


def _classes(record: Record) -> Table:
    rows = [(row["name"], *_cells(record, row)) for row in record.measured["per_class"]]
    means = [(shown, *_cells(record, record.measured[key])) for key, shown in MEANS.items()]
    return Table(_columns("Class"), (*rows, *means), f"{record.model}, {_caption(record)}", summary_rows=len(means))


def _models(records: Sequence[Record]) -> Table:
    rows = tuple((record.model, *_cells(record, record.measured["miou"])) for record in records)
    return Table(_columns("Model"), rows, _caption(records[0]))


def _caption(record: Record) -> str:
    seeds = record.measured["seeds"]
    one = " Of one training seed and residual are unknown, and unit holds the residual." if seeds == 1 else ""
    return (
        f"{record.data.name} {record.data.split}, n = {record.n} images, {unit_words(record.settings['unit'])}, "
        f"{seeds} training{'s' * (seeds != 1)}. sd in percentage points: of a training on very many units, of a unit "
        "for the mean of very many trainings, and of a training on a unit beside both. Shares: of the variance of the "
        f"mean over the seeds and units there are.{one}"
    )


def _levels(records: Sequence[Record]) -> Table:
    sources = (*_SOURCES[:2], "draw", _SOURCES[2])
    rows: list[tuple[Cell, ...]] = [
        (
            record.model,
            level["sigma"],
            *(100 * number(level[key]) for key in ("value", *sources)),
            *(100 * number(level["shares"].get(source)) for source in sources),
        )
        for record in records
        for level in record.measured["levels"]
    ]
    columns = (
        Column("Model"),
        Column("sigma", 4),
        Column("mIoU (%)"),
        *(Column(f"sd, {source}", 2) for source in sources),
        *(Column(f"{'of the variance: ' * (source == 'seed')}{source} (%)", 0) for source in sources),
    )
    counts = {record.model: record.measured["seeds"] for record in records}
    trained = ", ".join(f"{model} {count}" for model, count in counts.items())
    caption = (
        f"{conditions(records[0])}; {unit_words(records[0].settings['unit'])}; trainings: {trained}. sd in percentage "
        "points: between trainings, units and draws of the noise, each on very many of the others, and of a training "
        "on a unit in a draw beside all three. Of one training seed is unknown, and unit and draw hold its "
        "interactions. Shares: of the variance of the mean over the trainings, units and draws there are. mIoU: the "
        "jackknife's mean over units."
    )
    return Table(columns, tuple(rows), caption)
