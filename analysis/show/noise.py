"""Tables and figures of noise sweeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from analysis.maths.levels import TARGETS
from analysis.record import Record, RecordError
from analysis.show.figures import (
    COLUMN,
    PAGE,
    curves_behind,
    error_bars,
    figure_style,
    legend_height,
    model_legend,
    new_figure,
    save_figure,
)
from analysis.show.spread import LEAST, behind_words, figure_words, seeds_of, together_words
from analysis.show.tables import Cell, Column, Estimate, Table, estimate, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODELS = 10  # in one figure: as many as there are colours
TOGETHER = 4  # in one panel; more have a panel each, since their bands would hide each other
LOGARITHMIC = 20  # the axis is, where the largest level is that many times the smallest

Group = Sequence[Record]


def tables(records: Group) -> dict[str, Table]:
    """The curves, and sigma_50 where it was sought; one set for each target and scale that is among the records.

    Raises:
        RecordError: records of other images or classes than the first, or more than ``MODELS``.
    """
    found = {}
    for suffix, group in _by_target(records).items():
        found[f"{suffix}-curve"] = curve_table(group)
        if any("sigma_50" in record.measured for record in group):
            found[f"{suffix}-sigma50"] = sigma_50_table(group)
        if ratios := ratio_table(group):
            found[f"{suffix}-ratio"] = ratios
    return found


def figures(records: Group, stem: Path) -> None:
    """The curves, one figure for each target and scale.

    Raises:
        RecordError: see `tables`.
    """
    for suffix, group in _by_target(records).items():
        noise_curves(group, stem.with_name(f"{stem.name}{suffix}"))


def _by_target(records: Group) -> dict[str, Group]:
    """Records of one target and scale, by what their files' names end in."""
    found: dict[tuple[str, bool], list[Record]] = {}
    for record in records:
        found.setdefault((record.settings["target"], record.settings["relative"]), []).append(record)
    for group in found.values():
        require_comparable(group)
    if len(found) == 1:
        return {"": records}
    return {f"-{target}{'-relative' * relative}": group for (target, relative), group in found.items()}


def require_comparable(records: Group) -> None:
    """Raise a RecordError unless the records are of the same images and classes, and not too many."""
    first = records[0]
    for record in records:
        if record.data != first.data:
            raise RecordError(
                f"{record.file_name} was measured on other images than {first.file_name}: draw records of one dataset, "
                "split and number of images."
            )
        if record.measured["classes"] != first.measured["classes"]:
            raise RecordError(f"{record.file_name} has other classes than {first.file_name}: draw them apart.")
    if len(records) > MODELS:
        raise RecordError(f"One figure takes at most {MODELS} models, not {len(records)}: name fewer.")


def conditions(record: Record) -> str:
    """What a sweep was measured on, in a line."""
    settings = record.settings
    if settings["target"] == "input":
        what = "noise on photos of pixels in [0, 1], at their stored size, clipped, 8 bits"
    else:
        scale = "in units of each tensor's rms" if settings["relative"] else "absolute"
        what = f"noise on {TARGETS[settings['target']]}, {scale}"
    pairs = " antithetic pairs" if settings["antithetic"] else ""
    draws = f"{settings['draws']}{pairs or (' draws' if settings['draws'] > 1 else ' draw')}"
    return (
        f"{record.data.name} {record.data.split}, n = {record.n} images; {what}; {draws}, seed {record.seeds['noise']}"
    )


def curve_table(records: Group) -> Table:
    """A row for each model and level."""
    levels = [point["sigma"] for record in records for point in record.measured["curve"] if point["sigma"] > 0]
    digits = 2 - math.floor(math.log10(min(levels))) if levels else 1
    rows: list[tuple[Cell, ...]] = [
        (
            record.model,
            point["sigma"],
            percent(point["miou"]),
            100 * point["smallest"],
            100 * point["largest"],
            percent({"value": point["miou"]["value"], **point["images"]}),
            len(point["draws"]),
        )
        for record in records
        for point in record.measured["curve"]
    ]
    columns = (
        Column("Model"),
        Column("sigma", max(1, digits)),
        Column("mIoU (%), draws"),
        Column("Min (%)"),
        Column("Max (%)"),
        Column("mIoU (%), images"),
        Column("Rows"),
    )
    caption = (
        f"{conditions(records[0])}. Brackets, draws: 95 % Student's t interval of the mean over draws (over pairs, if "
        f"antithetic){_and_trainings(records)}. Brackets, images: of it, {together_words(records)}; "
        f"{records[0].settings['resamples']} resamples. Min and max over rows."
    )
    return Table(columns, tuple(rows), caption)


def sigma_50_table(records: Group) -> Table:
    """The clean mIoU and sigma_50 of each model, most robust first."""
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        clean = record.measured["curve"][0]
        half = record.measured.get("sigma_50", {"value": None, "low": None, "high": None})
        rows.append(
            (
                record.model,
                percent({"value": clean["miou"]["value"], **clean["images"]}),
                estimate(half),
            )
        )
    smallest = min((row[2].value for row in rows if isinstance(row[2], Estimate) and row[2].value > 0), default=1.0)
    digits = max(2, 2 - math.floor(math.log10(smallest)))
    columns = (Column("Model"), Column("Clean mIoU (%)"), Column("sigma_50", digits))
    caption = (
        f"{conditions(records[0])}. sigma_50: the noise that halves the clean mIoU, geometric mean over draws, 95 % "
        f"Student's t interval of its logarithm{_and_trainings(records)}. Clean mIoU: {together_words(records)}."
    )
    return Table(columns, tuple(sorted(rows, key=_by_sigma_50)), f"{caption}{_lowest(records)}{_unpaired(records)}")


def _and_trainings(records: Group) -> str:
    """What else an interval over draws is about."""
    several = any(len(seeds_of(record)) >= LEAST for record in records)
    return f", and over trainings where these are at least {LEAST}" if several else ""


def _lowest(records: Group) -> str:
    """How sure it is that a lower noise does not halve the mIoU too."""
    grids = [float(record.settings.get("grid", math.inf)) for record in records if "sigma_50" in record.measured]
    if math.inf in grids:
        return (
            " Lower noise between two levels of the sweep was not looked at: a curve that dips there would be missed."
        )
    start = min(point["sigma"] for record in records for point in record.measured["curve"] if point["sigma"] > 0)
    return (
        f" It is the lowest on a grid of levels at most a factor of {max(grids):g} apart, from {start:g} on: narrower "
        "dips would be missed."
    )


def _unpaired(records: Group) -> str:
    alike = len({_random_numbers(record) for record in records}) == 1
    return "" if alike else " The draws of these models differ (--draws, --antithetic, --seed): no ratios in pairs."


def ratio_table(records: Group) -> Table | None:
    """How many times the noise of the first model each other one bears; None: fewer than two have a sigma_50.

    Draws are paired: all models were given the same random numbers.
    """
    from analysis.maths.ratios import paired_ratios

    compared = [record for record in records if _draws(record)]
    if len(compared) < 2 or len({_random_numbers(record) for record in compared}) > 1:
        return None
    first, *others = compared
    found = paired_ratios(_draws(first), [_draws(record) for record in others])
    rows: list[tuple[Cell, ...]] = [
        (record.model, Estimate(ratio.value, ratio.low, ratio.high), ratio.p, ratio.adjusted)
        for record, ratio in zip(others, found, strict=True)
    ]
    columns = (
        Column("Model"),
        Column(f"sigma_50, multiple of {first.model}", 2),
        Column("p", 3, positive=True),
        Column("p, Holm", 3, positive=True),
    )
    caption = (
        f"{conditions(first)}. Ratios of sigma_50 in pairs of draws, all models having been given the same random "
        "numbers: geometric mean, 95 % Student's t interval of the logarithm; p of no difference, and adjusted for "
        f"{len(others)} models (Holm 1979). They hold the draws, not other images or trainings."
    )
    if any(len(seeds_of(record)) > 1 for record in compared):
        caption += " Of several trainings the sigma_50 of a draw is their geometric mean."
    return Table(columns, tuple(rows), caption)


def _random_numbers(record: Record) -> tuple[object, ...]:
    """What two models must have in common for their draws to be the same."""
    return record.settings["draws"], record.settings["antithetic"], record.seeds["noise"]


def _draws(record: Record) -> list[float]:
    """sigma_50 of each draw; empty where one has none."""
    found = record.measured.get("sigma_50", {}).get("draws", [])
    return [] if None in found else found


def _by_sigma_50(row: tuple[Cell, ...]) -> tuple[bool, float]:
    half = row[2]
    assert isinstance(half, Estimate)
    return math.isnan(half.value), -half.value


def noise_curves(records: Group, stem: Path) -> None:
    """The mIoU against sigma: mean over draws, its interval, smallest and largest; the clean model at 0; sigma_50."""
    levels = sorted({point["sigma"] for record in records for point in record.measured["curve"]})[1:]
    with figure_style(len(records)) as colours:
        names = [record.model for record in records]
        apart = len(records) > TOGETHER
        width, across = (PAGE, 3) if apart else (COLUMN, 1)
        down = -(-len(records) // across) if apart else 1
        figure = new_figure((1.0 + 1.35 * down) if apart else (2.7 + legend_height(names, width)), width)
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat
        for axes in panels[len(records) if apart else 1 :]:
            axes.set_axis_off()
        for index, (record, colour) in enumerate(zip(records, colours, strict=False)):
            axes = panels[index if apart else 0]
            _curve(axes, record, colour)
            if apart:
                axes.set_title(record.model, fontsize=7)
                for other in records:
                    curve = other.measured["curve"]
                    mean = [100 * point["miou"]["value"] for point in curve]
                    axes.plot([point["sigma"] for point in curve], mean, color="0.75", linewidth=0.6, zorder=1)
        halves = [record.measured.get("sigma_50", {"value": None})["value"] for record in records]
        last = max([*levels, *(half for half in halves if half is not None)], default=0.0)
        for axes in panels[: len(records) if apart else 1]:
            if levels and last >= LOGARITHMIC * levels[0]:
                axes.set_xscale("symlog", linthresh=levels[0], linscale=0.4)
                axes.set_xlim(-0.12 * levels[0], last * 1.25)
            elif levels:
                axes.set_xlim(-0.03 * last, last * 1.04)
            axes.set_ylim(bottom=0)
        settings = records[0].settings
        unit = " (units of rms)" if settings["relative"] else ""
        unit = " (pixels in [0, 1])" if settings["target"] == "input" else unit
        for index, axes in enumerate(panels[: len(records) if apart else 1]):
            if index + across >= len(records) or not apart:
                axes.set_xlabel(f"noise σ{unit}" + ("" if apart else "; 0: the clean model"))
                axes.tick_params(labelbottom=True)
            if index % across == 0:
                axes.set_ylabel("mIoU (%)")
        if not apart:
            model_legend(figure, records, width, left=True)
        several = settings["draws"] > 1
        over = "draws and trainings" if any(len(seeds_of(record)) >= LEAST for record in records) else "draws"
        spread = f"band: 95 % t interval of the mean over {over}; dotted: min, max\n" if several else ""
        halved = any("sigma_50" in record.measured for record in records)
        half = f"\n◆ σ50, halves the clean mIoU; bars across: its 95 % t interval over {over}" if halved else ""
        grey = "; 0: the clean model; grey: the other models" if apart else ""
        draws = f"{'antithetic pairs' if settings['antithetic'] else 'draws'}: {settings['draws']}"
        behind = behind_words(records, "lines").replace(" F", "\nf").rstrip(".")
        where = f"{records[0].data.name} {records[0].data.split}, n = {records[0].n} images"
        words = (
            f"{where}, target: {settings['target']}, {draws}{grey}\n{spread}"
            f"upright bars: {figure_words(records[0])}{half}{behind}"
        )
        if apart:
            figure.supxlabel(fill(words.replace("\n", "; "), int(20 * width)), fontsize=6, color="0.3")
        else:
            panels[0].set_title(words, fontsize=6, loc="left")
        save_figure(figure, stem)


def _curve(axes: Axes, record: Record, colour: tuple[float, float, float]) -> None:
    curve = record.measured["curve"]
    sigma = [point["sigma"] for point in curve]
    mean = [100 * point["miou"]["value"] for point in curve]

    def edges(name: str) -> list[float]:  # a single draw, and the clean model, have no interval
        return [
            value if point["miou"][name] is None else 100 * point["miou"][name]
            for point, value in zip(curve, mean, strict=True)
        ]

    axes.fill_between(sigma, edges("low"), edges("high"), color=colour, alpha=0.18, linewidth=0)
    curves_behind(axes, sigma, [percent(point["miou"]) for point in curve], colour)
    for extreme in ("smallest", "largest"):
        axes.plot(sigma, [100 * point[extreme] for point in curve], color=colour, linewidth=0.5, linestyle=":")
    images = error_bars(
        [percent({"value": value / 100, **point["images"]}) for point, value in zip(curve, mean, strict=True)]
    )
    axes.errorbar(
        sigma,
        mean,
        yerr=images,
        color=colour,
        linewidth=1.2,
        elinewidth=0.6,
        marker="o",
        markersize=2.2,
        label=record.model,
    )
    half = record.measured.get("sigma_50", {"value": None})
    if half["value"] is not None:
        ends = None if half["low"] is None else [[half["value"] - half["low"]], [half["high"] - half["value"]]]
        axes.errorbar(
            [half["value"]],
            [mean[0] / 2],
            xerr=ends,
            color=colour,
            elinewidth=1.0,
            capsize=1.5,
            marker="D",
            markersize=4,
            markeredgecolor="white",
            markeredgewidth=0.5,
            zorder=4,
        )
