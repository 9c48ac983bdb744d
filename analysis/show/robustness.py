"""Tables and figures of noise sweeps and of corruptions, from records; noise and corruptions never share a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.maths.corruptions import shown_names
from analysis.maths.perturbation import TARGETS
from analysis.record import Record, RecordError
from analysis.show.figures import COLUMN, PAGE, figure_style, legend_columns, new_figure, save_figure
from analysis.show.tables import Cell, Column, Estimate, Table, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MODELS = 10  # in one figure: as many as there are colours
LOGARITHMIC = 20  # the axis is, where the largest level is that many times the smallest

Group = Sequence[Record]


def render_noise(records: Sequence[Record], stem: Path) -> dict[str, Table]:
    """Curves of mIoU against sigma and their tables, one set for each target and scale that is among the records.

    Raises:
        RecordError: records of other images or classes than the first, or more than ``MODELS``.
        OutputError: the folder cannot be written.
    """
    groups: dict[tuple[str, bool], list[Record]] = {}
    for record in records:
        groups.setdefault((record.settings["target"], record.settings["relative"]), []).append(record)
    tables = {}
    for (target, relative), group in groups.items():
        suffix = f"-{target}{'-relative' if relative else ''}" if len(groups) > 1 else ""
        require_comparable(group)
        noise_curves(group, stem.with_name(f"{stem.name}{suffix}"))
        tables[f"{suffix}-curve"] = curve_table(group)
        if any("sigma_50" in record.measured for record in group):
            tables[f"{suffix}-sigma50"] = sigma_50_table(group)
    return tables


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
            Estimate(*(100 * value for value in (point["miou"]["value"], *point["images"].values()))),
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
        f"antithetic). Brackets, images: 95 % bootstrap interval of it over images, {records[0].settings['resamples']} "
        "resamples. Min and max over rows."
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
                Estimate(*(100 * value for value in (clean["miou"]["value"], *clean["images"].values()))),
                Estimate(*(math.nan if half[key] is None else half[key] for key in ("value", "low", "high"))),
            )
        )
    smallest = min((row[2].value for row in rows if isinstance(row[2], Estimate) and row[2].value > 0), default=1.0)
    digits = max(2, 2 - math.floor(math.log10(smallest)))
    columns = (Column("Model"), Column("Clean mIoU (%)"), Column("sigma_50", digits))
    caption = (
        f"{conditions(records[0])}. sigma_50: the noise that halves the clean mIoU, geometric mean over draws, 95 % "
        "Student's t interval of its logarithm. Clean mIoU: 95 % bootstrap interval over images."
    )
    return Table(columns, tuple(sorted(rows, key=_by_sigma_50)), caption)


def _by_sigma_50(row: tuple[Cell, ...]) -> tuple[bool, float]:
    half = row[2]
    assert isinstance(half, Estimate)
    return math.isnan(half.value), -half.value


def noise_curves(records: Group, stem: Path) -> None:
    """The mIoU against sigma: mean over draws, its interval, smallest and largest; the clean model at 0; sigma_50."""
    levels = sorted({point["sigma"] for record in records for point in record.measured["curve"]})[1:]
    with figure_style(len(records)) as colours:
        names = [record.model for record in records]
        width = COLUMN if len(records) <= 4 else PAGE
        columns = legend_columns(names, width)
        figure = new_figure(2.7 + 0.13 * math.ceil(len(records) / columns), width)
        axes = figure.subplots()
        for record, colour in zip(records, colours, strict=False):
            _curve(axes, record, colour)
        halves = [record.measured.get("sigma_50", {"value": None})["value"] for record in records]
        last = max([*levels, *(half for half in halves if half is not None)], default=0.0)
        if levels and last >= LOGARITHMIC * levels[0]:
            axes.set_xscale("symlog", linthresh=levels[0], linscale=0.4)
            axes.set_xlim(-0.12 * levels[0], last * 1.25)
        elif levels:
            axes.set_xlim(-0.03 * last, last * 1.04)
        axes.set_ylim(bottom=0)
        settings = records[0].settings
        unit = " (units of rms)" if settings["relative"] else ""
        unit = " (pixels in [0, 1])" if settings["target"] == "input" else unit
        axes.set_xlabel(f"noise σ{unit}; 0: the clean model")
        axes.set_ylabel("mIoU (%)")
        figure.legend(loc="outside upper left", ncols=columns)
        several = settings["draws"] > 1
        half = "; ◆ σ50, halves the clean mIoU" if any("sigma_50" in record.measured for record in records) else ""
        spread = "band: 95 % t interval of the mean over draws; dotted: min, max\n" if several else ""
        draws = f"{'antithetic pairs' if settings['antithetic'] else 'draws'}: {settings['draws']}"
        where = f"{records[0].data.name} {records[0].data.split}, n = {records[0].n} images"
        axes.set_title(
            f"{where}, target: {settings['target']}, {draws}\n{spread}bars: 95 % interval over images{half}",
            fontsize=6,
            loc="left",
        )
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
    for extreme in ("smallest", "largest"):
        axes.plot(sigma, [100 * point[extreme] for point in curve], color=colour, linewidth=0.5, linestyle=":")
    images = [
        [max(0.0, value - 100 * point["images"]["low"]) for point, value in zip(curve, mean, strict=True)],
        [max(0.0, 100 * point["images"]["high"] - value) for point, value in zip(curve, mean, strict=True)],
    ]
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


def render_corruptions(records: Sequence[Record], stem: Path) -> dict[str, Table]:
    """Heat maps of corruption by severity, bars of the mean over severities, and their tables.

    Raises:
        RecordError: see `render_noise`; or other corruptions, severities or references than the first.
        OutputError: the folder cannot be written.
    """
    require_comparable(records)
    first = records[0]
    for record in records:
        for what, same in (
            ("corruptions", _kinds(record) == _kinds(first)),
            ("severities", record.settings["severities"] == first.settings["severities"]),
            ("reference", record.measured.get("reference") == first.measured.get("reference")),
        ):
            if not same:
                raise RecordError(f"{record.file_name} has another {what} than {first.file_name}: draw them apart.")
    heat_maps(records, stem)
    mean_bars(records, stem.with_name(f"{stem.name}-mean"))
    tables = {"-severities": severity_table(records), "-mean": mean_table(records)}
    if "reference" in first.measured:
        tables["-degradation"] = degradation_table(records)
    return tables


def _kinds(record: Record) -> list[str]:
    return [corruption["name"] for corruption in record.measured["corruptions"]]


def _corruption_conditions(record: Record) -> str:
    settings = record.settings
    severities = ", ".join(map(str, settings["severities"]))
    return (
        f"{record.data.name} {record.data.split}, n = {record.n} images, photos corrupted at their stored size, "
        f"severities {severities} ({settings['package']}), seed {record.seeds['noise']}. "
        f"Brackets: 95 % bootstrap interval over images, {settings['resamples']} resamples"
    )


def severity_table(records: Group) -> Table:
    """The mIoU of each model under each corruption at each severity."""
    severities = records[0].settings["severities"]
    rows: list[tuple[Cell, ...]] = [
        (
            record.model,
            name,
            percent(record.measured["clean"]),
            *(percent(point["miou"]) for point in corruption["severities"]),
        )
        for record in records
        for name, corruption in zip(shown_names(_kinds(record)), record.measured["corruptions"], strict=True)
    ]
    columns = (Column("Model"), Column("Corruption"), Column("Clean"), *(Column(f"{level}") for level in severities))
    return Table(columns, tuple(rows), f"mIoU (%) by severity. {_corruption_conditions(records[0])}.")


def mean_table(records: Group) -> Table:
    """The mean over severities of each corruption, a column a model."""
    rows: list[tuple[Cell, ...]] = [
        (name, *(percent(record.measured["corruptions"][index]["mean"]) for record in records))
        for index, name in enumerate(shown_names(_kinds(records[0])))
    ]
    rows.append(("mean", *(percent(record.measured["mean"]) for record in records)))
    rows.append(("clean", *(percent(record.measured["clean"]) for record in records)))
    columns = (Column("Corruption"), *(Column(record.model) for record in records))
    caption = f"mIoU (%), mean over severities. {_corruption_conditions(records[0])}."
    return Table(columns, tuple(rows), caption, summary_rows=2)


def degradation_table(records: Group) -> Table:
    """Corruption degradation beside the reference model, two columns a model."""

    def cells(values: Mapping[str, Any], *keys: str) -> list[Cell]:
        return [Estimate(*(math.nan if part is None else part for part in values[key].values())) for key in keys]

    rows: list[tuple[Cell, ...]] = []
    for index, name in enumerate(shown_names(_kinds(records[0]))):
        row: list[Cell] = [name]
        for record in records:
            row += cells(record.measured["corruptions"][index], "cd", "relative_cd")
        rows.append(tuple(row))
    mean: list[Cell] = ["mean"]
    for record in records:
        mean += cells(record.measured, "mcd", "relative_mcd")
    columns = [Column("Corruption")]
    for record in records:
        columns += [Column(f"{record.model}: CD", 3), Column("relative CD", 3)]
    caption = (
        "CD: sum over severities of 1 - mIoU, relative CD: of clean mIoU - mIoU, each as a multiple of that of "
        f"{records[0].measured['reference']['model']}; below 1 is better; a dash: the reference loses nothing. "
        f"{_corruption_conditions(records[0])}."
    )
    return Table(tuple(columns), (*rows, tuple(mean)), caption, summary_rows=1)


def heat_maps(records: Group, stem: Path) -> None:
    """Corruptions down, severities across, one panel a model, one colour scale."""
    names, severities = shown_names(_kinds(records[0])), records[0].settings["severities"]
    across = min(4, len(records))
    down = math.ceil(len(records) / across)
    top = max(percent(record.measured["clean"]).value for record in records)
    with figure_style():
        figure = new_figure(down * (0.75 + 0.155 * len(names)), PAGE if across > 1 else COLUMN)
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for panel in panels.flat[len(records) :]:
            panel.set_axis_off()
        for panel, record in zip(panels.flat, records, strict=False):
            clean = percent(record.measured["clean"]).value
            values = [
                [clean, *(percent(point["miou"]).value for point in corruption["severities"])]
                for corruption in record.measured["corruptions"]
            ]
            image = panel.imshow(values, cmap="viridis", vmin=0, vmax=top, aspect="auto")
            for row, line in enumerate(values):
                for column, value in enumerate(line):
                    colour = "white" if value < 0.6 * top else "black"
                    panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=6, color=colour)
            panel.grid(visible=False)
            panel.set_title(record.model, fontsize=7)
            panel.set_xticks(range(len(severities) + 1), ["clean", *map(str, severities)])
            panel.set_yticks(range(len(names)), names)
        figure.supxlabel("severity", fontsize=8)
        bar = figure.colorbar(image, ax=list(panels.flat), fraction=0.03, pad=0.01)
        bar.set_label(f"mIoU (%), n = {records[0].n} images")
        save_figure(figure, stem)


def mean_bars(records: Group, stem: Path) -> None:
    """Mean over severities of each corruption, models side by side, their clean mIoU on top."""
    names = shown_names(_kinds(records[0]))
    thickness = 0.8 / len(records)  # of a bar; one corruption takes 1
    with figure_style(len(records)) as colours:
        columns = legend_columns([record.model for record in records], COLUMN)
        legend = 0.13 * math.ceil(len(records) / columns)
        figure = new_figure(0.95 + legend + (len(names) + 1.4) * max(0.17, 0.075 * len(records)))
        axes = figure.subplots()
        axes.grid(visible=False, axis="y")
        for index, (record, colour) in enumerate(zip(records, colours, strict=False)):
            corruptions = record.measured["corruptions"]
            bars = [percent(record.measured["clean"]), *(percent(corruption["mean"]) for corruption in corruptions)]
            centres = [row + (0.4 if row else 0.0) + (index + 0.5) * thickness - 0.4 for row in range(len(bars))]
            spread = [[bar.value - bar.low for bar in bars], [bar.high - bar.value for bar in bars]]
            axes.barh(
                centres,
                [bar.value for bar in bars],
                xerr=[[0 if math.isnan(end) else max(0.0, end) for end in ends] for ends in spread],
                height=thickness,
                color=colour,
                error_kw={"elinewidth": 0.7, "ecolor": "0.25"},
                label=record.model,
            )
        axes.axhline(0.7, color="0.3", linewidth=0.6)
        axes.set_yticks([0.0, *(row + 0.4 for row in range(1, len(names) + 1))], ["clean", *names])
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.set_ylim(len(names) + 0.95, -0.55)
        axes.set_xlim(left=0)
        severities = records[0].settings["severities"]
        axes.set_xlabel(
            f"mIoU (%), mean over severities {', '.join(map(str, severities))};\n"
            f"95 % interval over n = {records[0].n} images"
        )
        figure.legend(loc="outside upper left", ncols=columns)
        save_figure(figure, stem)
