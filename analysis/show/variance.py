"""Tables of `analysis.measures.variance`, and of the differences that a study could show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.record import Record
from analysis.show.spread import LEAST, unit_words
from analysis.show.tables import Cell, Column, Table, number

_SOURCES = ("seed", "unit", "residual")


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Classes of one model, or a row a model."""
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
    means = [(shown, *_cells(record, record.measured[key])) for key, shown in _MEANS.items()]
    return Table(_columns("Class"), (*rows, *means), f"{record.model}, {_caption(record)}", summary_rows=len(means))


_MEANS = {"miou": "mIoU", "macc": "mAcc", "aacc": "aAcc"}


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


def power_table(
    sources: Mapping[str, tuple[float, float, float]],
    smallest: Mapping[str, Mapping[int, Sequence[float]]],
    units: Sequence[int],
    *,
    power: float,
    comparisons: int,
    about: str,
) -> Table:
    """The smallest difference that could be shown, by numbers of seeds and units.

    Args:
        sources: by name, standard deviations of the difference in percentage points: seed, unit, residual.
        smallest: by name and number of seeds, the differences for each of ``units``.
        about: what they are of.
    """
    rows: list[tuple[Cell, ...]] = [
        (name, *sources[name], seeds, *differences)
        for name, by_seeds in smallest.items()
        for seeds, differences in by_seeds.items()
    ]
    columns = (
        Column("Difference"),
        *(Column(f"sd, {source}", 2) for source in _SOURCES),
        Column("Seeds", 0),
        *(Column(f"{count} units", 2) for count in units),
    )
    corrected = f" after Holm's correction for {comparisons} comparisons, at its strictest" if comparisons > 1 else ""
    caption = (
        f"{about}. The smallest paired difference (percentage points) that is found with a power of {100 * power:g} %, "
        f"two-sided at 5 %{corrected}, with as many trainings of each model, and units. Fewer than {LEAST} trainings "
        "show no difference between models, however many units there are."
    )
    return Table(columns, tuple(rows), caption)
