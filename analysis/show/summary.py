"""One table and one figure of many models: accuracy, cost, speed and robustness side by side, out of their records.

Nothing is measured here. Records belong together by the weights they were made on. Where a quantity was measured under
several conditions (data, size of the images, machine), those are shown that cover the most models, and no others: a
row never mixes what cannot be compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.record import Record, RecordError, read_records
from analysis.show.figures import PAGE, figure_style, new_figure, save_figure, trainings_behind
from analysis.show.profile import stored_cost, stored_speed, timed_under
from analysis.show.spread import together_words
from analysis.show.tables import Cell, Column, Estimate, Table, estimate, percent

UNKNOWN = Estimate(math.nan)


@dataclass(frozen=True)
class Source:
    """Where numbers come from: a kind of record, and when two of them can be compared.

    Attributes:
        command: measures it.
        fits: whether a record holds it.
        conditions: equal for records that can be compared.
    """

    kind: str
    command: str
    fits: Callable[[Record], bool]
    conditions: Callable[[Record], Hashable]


def _noise(relative: bool) -> Source:
    def fits(record: Record) -> bool:
        return (record.settings["target"], record.settings["relative"]) == ("decoder", relative)

    def conditions(record: Record) -> Hashable:
        return record.data, record.settings["draws"], record.settings["antithetic"]

    option = " --relative" * relative
    return Source("parameter-noise", f"whitebox robustness --noise LEVELS{option}", fits, conditions)


def _timed(record: Record) -> Hashable:
    keys = ("size", "classes", "batch", "precision", "device", "threads")
    return str([record.settings[key] for key in keys]), str(record.hardware), record.versions["torch"]


ACCURACY = Source("eval", "whitebox eval", lambda record: not record.variant, lambda record: record.data)
COST = Source("profile", "whitebox profile", lambda record: True, _timed)
BOUNDARY = Source(
    "boundary",
    "whitebox eval --boundary",
    lambda record: not record.variant,
    lambda record: (record.data, str(record.settings.get("boundary_ratio"))),
)
CALIBRATION = Source(
    "calibration", "whitebox eval --calibration", lambda record: not record.variant, lambda record: record.data
)
ABSOLUTE, RELATIVE = _noise(False), _noise(True)
NOISE = (ABSOLUTE, RELATIVE)
SOURCES = (ACCURACY, COST, *NOISE)
OPTIONAL = (BOUNDARY, CALIBRATION)  # shown where they are there, and never missed


@dataclass(frozen=True)
class Summary:
    """The records of each model (by the hash of its weights), one a source at most."""

    names: dict[str, str]
    chosen: dict[Source, dict[str, Record]]

    @property
    def missing(self) -> list[str]:
        """What is not there, with the command that measures it."""
        return [
            f"{name}: no {source.kind} under the same conditions; `{source.command}`"
            for weights, name in self.names.items()
            for source in SOURCES
            if weights not in self.chosen[source]
        ]


def find_records(folders: Sequence[Path]) -> list[Record]:
    """All records below ``folders``: those in folders called ``records``.

    Raises:
        RecordError: a JSON file there is no record.
    """
    places = dict.fromkeys(place for folder in folders for place in sorted(folder.glob("**/records")))
    return [record for place in places for record in read_records(place)]


def summarise(records: Sequence[Record], split: str | None = None) -> Summary:
    """Choose what can be compared; models by falling mIoU, those without one last.

    Args:
        split: of evaluations and noise, which are of the same images; None: whatever there is the most of.

    Raises:
        RecordError: nothing was evaluated.
    """
    records = _as_families(records)
    usable = {
        source: [
            record
            for record in records
            if record.kind == source.kind and record.weights is not None and source.fits(record)
        ]
        for source in (*SOURCES, *OPTIONAL)
    }
    measured = [record for source in (ACCURACY, *NOISE) for record in usable[source]]
    evaluated = {_images(record) for record in usable[ACCURACY]}
    images = _most_measured(
        [record for record in measured if split in (None, record.data.split) and _images(record) in evaluated]
    )
    chosen = {
        source: _comparable([each for each in found if source is COST or _images(each) == images], source.conditions)
        for source, found in usable.items()
    }
    if not chosen[ACCURACY]:
        which = f" of the split {split}" if split else ""
        raise RecordError(f"There is no evaluation{which} among these records: `whitebox eval RUN` makes one.")
    names = {weights: record.model for found in reversed(chosen.values()) for weights, record in found.items()}

    def order(weights: str) -> float:
        record = chosen[ACCURACY].get(weights)
        return math.inf if record is None else -percent(record.measured["miou"]).value

    return Summary({weights: names[weights] for weights in sorted(names, key=order)}, chosen)


def _as_families(records: Sequence[Record]) -> list[Record]:
    """Without those of trainings that a family's record is the mean of; costs, which are the same, are the family's."""
    families = {
        weights: record
        for record in records
        if record.kind == ACCURACY.kind and record.weights is not None
        for weights in record.settings.get("training_weights", ())
    }
    found = []
    costs = {record.weights.sha256 for record in records if record.kind == COST.kind and record.weights is not None}
    for record in records:
        family = families.get(record.weights.sha256) if record.weights is not None else None
        if family is None:
            found.append(record)
        elif record.kind == COST.kind and family.weights is not None and family.weights.sha256 not in costs:
            costs.add(family.weights.sha256)
            found.append(replace(record, weights=family.weights, model=family.model))
    return found


def _images(record: Record) -> Hashable:
    return record.data.name, record.data.split, record.data.images


def _most_measured(records: Sequence[Record]) -> Hashable:
    """The images that the most records are about, of equals those of the newest."""
    found: dict[Hashable, list[str]] = {}
    for record in records:
        found.setdefault(_images(record), []).append(record.created)
    return max(found, key=lambda images: (len(found[images]), max(found[images])), default=None)


def _comparable(records: Sequence[Record], conditions: Callable[[Record], Hashable]) -> dict[str, Record]:
    """The newest record of each model, under the conditions that have the most models, the newest of equals."""
    groups: dict[Hashable, dict[str, Record]] = {}
    for record in sorted(records, key=lambda record: record.created):
        if record.weights is not None:
            groups.setdefault(conditions(record), {})[record.weights.sha256] = record
    ranked = sorted(groups.values(), key=lambda group: (len(group), max(each.created for each in group.values())))
    return ranked[-1] if ranked else {}


def table(summary: Summary) -> Table:
    """A row a model."""
    quantities = _quantities(summary)
    columns = (Column("Model"), *(Column(each.name, each.decimals) for each in quantities))
    rows: list[tuple[Cell, ...]] = [
        (name, *(each.values[index] for each in quantities)) for index, name in enumerate(summary.names.values())
    ]
    return Table(columns, tuple(rows), _caption(summary))


def figure(summary: Summary, stem: Path) -> None:
    """A panel a quantity and a row a model."""
    _draw(list(summary.names.values()), _quantities(summary), stem)


@dataclass(frozen=True)
class _Quantity:
    name: str
    decimals: int
    logarithmic: bool
    values: list[Estimate]  # in the order of the models


def _quantities(summary: Summary) -> list[_Quantity]:
    def column(
        name: str, decimals: int, source: Source, value: Callable[[Record], Estimate], logarithmic: bool = False
    ) -> _Quantity:
        found = [summary.chosen[source].get(weights) for weights in summary.names]
        return _Quantity(name, decimals, logarithmic, [UNKNOWN if each is None else value(each) for each in found])

    def sigma_50(record: Record) -> Estimate:
        return estimate(record.measured.get("sigma_50") or {})

    optional = {
        BOUNDARY: [column("Boundary IoU (%)", 1, BOUNDARY, lambda record: percent(record.measured["miou"]))],
        CALIBRATION: [column("ECE (%)", 1, CALIBRATION, lambda record: percent(record.measured["ece"]))],
    }
    return [
        column("mIoU (%)", 1, ACCURACY, lambda record: percent(record.measured["miou"])),
        *(each for source, shown in optional.items() if summary.chosen[source] for each in shown),
        column("Parameters (M)", 2, COST, lambda record: Estimate(1e-6 * stored_cost(record, "model").parameters)),
        column("Decoder (M)", 3, COST, lambda record: Estimate(1e-6 * stored_cost(record, "decoder").parameters), True),
        column("Decoder (GFLOPs)", 3, COST, lambda record: Estimate(stored_cost(record, "decoder").gflops), True),
        column("Images/s", 1, COST, lambda record: stored_speed(record, "model")),
        column("sigma_50", 3, ABSOLUTE, sigma_50, True),
        column("sigma_50, relative", 2, RELATIVE, sigma_50, True),
    ]


def _caption(summary: Summary) -> str:
    first = {source: next(iter(found.values())) for source, found in summary.chosen.items() if found}
    accuracy = first[ACCURACY]
    text = (
        f"{accuracy.data.name} {accuracy.data.split}, n = {accuracy.n} images. mIoU: "
        f"{together_words(list(summary.chosen[ACCURACY].values()))}."
    )
    optional = [name for source, name in ((BOUNDARY, "Boundary IoU"), (CALIBRATION, "ECE")) if source in first]
    if optional:
        text += f" {' and '.join(optional)}: intervals alike."
    if COST in first:
        settings, record = first[COST].settings, first[COST]
        text += (
            f" Decoder: all after the encoder, GFLOPs = 2 x MACs for one image of {settings['size']} px and "
            f"{settings['classes']} classes. Images/s: photo in memory to label map, median [quartiles] of {record.n} "
            f"passes, {timed_under(record)}."
        )
    noises = [first[source] for source in NOISE if source in first]
    if noises:
        text += (
            " sigma_50: noise on the decoder's parameters that halves the mIoU; relative: in units of each tensor's "
            f"rms; {noises[0].settings['draws']} draws, seed {noises[0].seeds['noise']}, 95 % interval over draws."
        )
    return text


def _draw(names: Sequence[str], quantities: Sequence[_Quantity], stem: Path) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    rows = range(len(names))
    with figure_style() as colours:
        figure = new_figure(0.75 + 0.2 * len(names), PAGE)
        panels = figure.subplots(1, len(quantities), sharey=True)
        for axes, each in zip(panels, quantities, strict=True):
            for row, value in zip(rows, each.values, strict=True):
                if math.isnan(value.value):
                    axes.text(0.5, row, "–", transform=axes.get_yaxis_transform(), ha="center", va="center")
                    continue
                if not math.isnan(value.low):
                    axes.plot([value.low, value.high], [row, row], color=colours[0], linewidth=1.2)
                axes.plot(value.value, row, "o", color=colours[0], markersize=3.5)
                trainings_behind(axes, value, row, colours[0])
            axes.margins(x=0.15)
            if each.logarithmic:
                axes.set_xscale("log")
                low, high = axes.get_xlim()
                decades = math.log10(high / low)
                axes.xaxis.set_major_locator(LogLocator(subs=(1,) if decades > 2 else (1, 3), numticks=3))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
            else:
                axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.set_xlabel(each.name.replace(" (", "\n(").replace(", ", ",\n"))
            axes.tick_params(axis="x", labelsize=6)
        panels[0].set_yticks(rows, names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        save_figure(figure, stem)
