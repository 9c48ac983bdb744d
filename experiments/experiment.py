"""What a figure or table of a paper needs: decoders, a measurement, and the numbers the paper reports.

A measurement gives records, which are rendered as everywhere (`analysis.show.render`). Where a paper states a number,
the same quantity is taken out of the records and shown beside it; a reported number never stands in a measured column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis.ask import Bar
from analysis.record import Record
from analysis.show.spread import interval_words
from analysis.show.tables import Cell, Column, Estimate, Table
from whitebox.runs import Run, SavedRun


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is measured; all that changes an experiment's numbers besides code and weights.

    Attributes:
        split: None: the validation split.
        limit: images; None: all.
        draws: of noise at each level.
        noise: levels of parameter noise, as `parse_levels` takes them; None: as the experiment has them.
        photos: shown where a figure shows photos.
        seed: of everything random.
        output: folder of sweeps' rows; None: each run's.
    """

    split: str | None = None
    limit: int | None = None
    draws: int = 5
    noise: str | None = None
    photos: int = 3
    seed: int = 0
    output: Path | None = None


@dataclass(frozen=True)
class Reported:
    """A number of a paper."""

    model: str  # "depict-sa-tiny"
    quantity: str  # as `Value` calls it
    value: float
    data: str  # "ADE20K val"
    source: str  # where it stands


@dataclass(frozen=True)
class Value:
    """A number of ours."""

    model: str
    quantity: str
    estimate: Estimate


Measure = Callable[[Sequence[Run | SavedRun], Setting, Path, Bar, bool], list[Record]]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A figure or table.

    Attributes:
        name: of the command, "depict-fig7".
        title: what it shows.
        where: in the paper.
        decoders: model names without their size.
        datasets: that it is about; empty: any can be measured, and the paper's numbers stand for its own.
        measure: (runs, setting, folder of records and rows, progress bars, whether again) -> records.
        values: what of the records stands beside ``reported``; a run's name is its key in the second argument, the
            name of its model the value.
    """

    name: str
    title: str
    where: str
    decoders: tuple[str, ...]
    measure: Measure
    datasets: tuple[str, ...] = ()
    values: Callable[[Sequence[Record], dict[str, str]], list[Value]] = lambda records, models: []
    reported: tuple[Reported, ...] = field(default=())

    def size(self, model: str) -> str | None:
        """What follows the decoder in a model's name, ``large-shrunk``; None: it is about other decoders."""
        sizes = (model.removeprefix(f"{decoder}-") for decoder in self.decoders if model.startswith(f"{decoder}-"))
        return next(sizes, None)

    def fits(self, dataset: str) -> bool:
        """Whether it says something on ``dataset``."""
        return not self.datasets or dataset in self.datasets


def beside(experiment: Experiment, records: Sequence[Record], models: dict[str, str]) -> Table | None:
    """Measured beside reported, a row a model and a quantity the paper states; None where it states none.

    Args:
        models: name of each run -> name of its model.
    """
    values = experiment.values(records, models)
    sizes = tuple(f"-{size}" for size in map(experiment.size, models.values()) if size is not None)
    reported = [each for each in experiment.reported if each.model.endswith(sizes)]
    if not reported:
        return None
    rows: list[tuple[Cell, ...]] = []
    asked: list[Value | Reported] = [*values, *reported]
    stated = {each.quantity for each in reported}
    for key in dict.fromkeys((each.model, each.quantity) for each in asked if each.quantity in stated):
        ours = [each.estimate for each in values if (each.model, each.quantity) == key]
        theirs = [each for each in reported if (each.model, each.quantity) == key]
        for index in range(max(len(ours), len(theirs))):
            measured = ours[index] if index < len(ours) else Estimate(math.nan)
            paper: tuple[Cell, ...] = (
                (theirs[index].value, theirs[index].data, theirs[index].source)
                if index < len(theirs)
                else (math.nan, "", "")
            )
            rows.append((*key, measured, *paper))
    first = records[0]
    columns = ("Model", "Quantity", "Measured", "Reported", "Reported on", "Source")
    return Table(
        columns=tuple(Column(name) for name in columns),
        rows=tuple(rows),
        caption=f"{experiment.where}: {experiment.title}. Measured on {first.data.name} {first.data.split} "
        f"(n = {first.n} images), in brackets the {interval_words(first)}; reported by the paper, which gives no "
        "interval, on its own data and weights. ~ in a source: read off a plot.",
    )
