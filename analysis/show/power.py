"""Tables of `analysis.measures.power`: the differences that a study could show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.record import Record, RecordError
from analysis.show.spread import LEAST, unit_words
from analysis.show.tables import Cell, Column, Table, number

_SOURCES = ("seed", "unit", "residual")


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """A row for each model and number of seeds.

    Raises:
        RecordError: of other studies.
    """
    first = records[0]
    keys = ("units", "power", "comparisons", "unit")
    if any(record.settings[key] != first.settings[key] for record in records for key in keys):
        raise RecordError("These are of studies with other units, power or comparisons: render them apart.")
    about = (
        f"{first.data.name} {first.data.split}, n = {first.n} images; standard deviations of the differences of these "
        f"runs, which have {unit_words(first.settings['unit'])}"
    )
    rows = {f"{record.model} - {record.settings['reference']}": record.measured for record in records}
    return {
        "": power_table(rows, power=first.settings["power"], comparisons=first.settings["comparisons"], about=about)
    }


def figures(records: Sequence[Record], stem: Path) -> None:
    """None: three numbers a row are read in a table."""


def power_table(studies: Mapping[str, Mapping[str, Any]], *, power: float, comparisons: int, about: str) -> Table:
    """The smallest difference that could be shown, by numbers of seeds and units.

    Args:
        studies: by name, what `analysis.measures.power` lays out; all of the same units.
        about: what they are of.
    """
    rows: list[tuple[Cell, ...]] = [
        (name, *(number(study["sd"][source]) for source in _SOURCES), each["seeds"], *map(number, each["differences"]))
        for name, study in studies.items()
        for each in study["smallest"]
    ]
    columns = (
        Column("Difference"),
        *(Column(f"sd, {source}", 2) for source in _SOURCES),
        Column("Seeds", 0),
        *(Column(f"{count} units", 2) for count in next(iter(studies.values()))["units"]),
    )
    corrected = f" after Holm's correction for {comparisons} comparisons, at its strictest" if comparisons > 1 else ""
    caption = (
        f"{about}. The smallest paired difference (percentage points) that is found with a power of {100 * power:g} %, "
        f"two-sided at 5 %{corrected}, with as many trainings of each model, and units. Fewer than {LEAST} trainings "
        "show no difference between models, however many units there are."
    )
    return Table(columns, tuple(rows), caption)
