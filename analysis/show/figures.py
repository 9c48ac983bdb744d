"""Figures rendered from results records and training logs, PNG and PDF, sized for one column of a paper.

The same input gives the same bytes: no dates inside. Colours are seaborn's ``colorblind`` palette, and ``husl`` where
that does not suffice.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.record import Record, RecordError
from analysis.show.tables import Estimate, evaluation, percent
from whitebox.files import write_atomically
from whitebox.foreign import parse_json
from whitebox.text import drawn_lines

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

COLUMN, PAGE = 3.5, 7.2  # inches, the width of one column and of a page
DPI = 220  # of the PNG


def read_metrics(path: str | os.PathLike[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The log of a training, ``metrics.jsonl``: one JSON object a line.

    Returns:
        The training lines (``step``, ``loss``, ``lr``, ...) and the evaluation lines (``step``, ``miou`` as a
        fraction, ...), both by ascending step. Of lines with the same step, as a resumed run may write them, the last
        counts. A last line cut short, as a killed run leaves it, is left out.

    Raises:
        RecordError: no such file, a broken line before the last, or no training line.
    """
    import pandas as pd

    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise RecordError(f"The training log {os.fspath(path)} cannot be read: {error.strerror}.") from error
    entries: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = parse_json(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise RecordError(f"{os.fspath(path)}, line {number} is not JSON; remove that line.") from error
        if not isinstance(entry, dict) or "step" not in entry:
            raise RecordError(f"{os.fspath(path)}, line {number} has no key 'step'; remove that line.")
        for key in ("step", "loss", "lr", "miou"):
            if not isinstance(entry.get(key), int | float | None):
                raise RecordError(f"{os.fspath(path)}, line {number}: {key} is no number; remove that line.")
        entries.append(entry)
    evaluations = [entry for entry in entries if "miou" in entry]
    training = [entry for entry in entries if "loss" in entry and "miou" not in entry]
    if not training:
        raise RecordError(f"{os.fspath(path)} has no training steps yet; nothing to draw.")

    def table(rows: list[dict[str, Any]], needed: list[str]) -> pd.DataFrame:
        frame = pd.DataFrame(rows, columns=list(dict.fromkeys([*needed, *(key for row in rows for key in row)])))
        frame = frame.astype(dict.fromkeys(needed, float))
        return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)

    return table(training, ["step", "loss", "lr"]), table(evaluations, ["step", "miou"]).dropna(subset="miou")


def training_curves(metrics: str | os.PathLike[str], output: str | os.PathLike[str]) -> list[Path]:
    """Loss (as logged, and smoothed), validation mIoU and learning rate over the steps of one training.

    Args:
        metrics: a run's ``metrics.jsonl``, see `read_metrics`.
        output: the PNG's path; a PDF is written beside it.

    Raises:
        RecordError: the log cannot be read or holds no step.
        OutputError: the folder cannot be written.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    training, validation = read_metrics(metrics)
    window = max(1, len(training) // 25)
    smooth = training["loss"].rolling(2 * window + 1, center=True, min_periods=1).mean()
    dots = "o" if len(training) < 10 else ""  # a line through one point is invisible
    has_validation = not validation.empty
    heights = [3.0, 3.0, 1.5] if has_validation else [3.0, 1.5]
    with figure_style() as colours:
        figure = new_figure(0.5 + 0.42 * sum(heights))
        panels = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        loss, rate = panels[0], panels[-1]
        loss.plot(training["step"], training["loss"], color=colours[0], alpha=0.3, linewidth=0.7, label="as logged")
        mean = f"mean of {2 * window + 1} points"
        loss.plot(training["step"], smooth, color=colours[0], linewidth=1.4, marker=dots, markersize=2.5, label=mean)
        loss.set_ylabel("training loss")
        loss.legend(loc="upper right")
        if has_validation:
            miou = 100 * validation["miou"]
            # the last value is the result: choosing the best would be a choice on the evaluation's own images
            last = f"last: {miou.iloc[-1]:.1f}"
            panels[1].plot(
                validation["step"], miou, color=colours[2], linewidth=1.4, marker="o", markersize=2.5, label=last
            )
            panels[1].set_ylabel("val mIoU (%)")
            panels[1].set_ylim(0, 1.08 * max(1.0, miou.max()))
            panels[1].legend(loc="lower right")
        rate.plot(training["step"], training["lr"], color=colours[7], linewidth=1.4, marker=dots, markersize=2.5)
        rate.set_ylim(bottom=0)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
        rate.locator_params(axis="y", nbins=3)
        rate.set_ylabel("learning\nrate")
        rate.set_xlabel("optimiser step")
        rate.set_xlim(0, 1.02 * training["step"].max())
        rate.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        rate.xaxis.set_major_formatter(EngFormatter(sep=""))  # 120k
        figure.align_ylabels(list(panels))
        return save_figure(figure, output)


def per_class_bars(records: Sequence[Record], output: str | os.PathLike[str]) -> list[Path]:
    """IoU of each class with its 95 % interval, several models side by side, and their mIoU on top.

    Classes are sorted by the mean over models. A class without a value in a record shows a dash.

    Args:
        records: evaluations of the same classes of the same data.
        output: the PNG's path; a PDF is written beside it.

    Raises:
        RecordError: no record, not evaluations, of different data, or a number is missing.
        OutputError: the folder cannot be written.
    """
    if not records:
        raise RecordError("There are no evaluations to draw.")
    first = records[0]
    tables: list[dict[str, Estimate]] = []
    for record in records:
        measured = evaluation(record)
        if record.data != first.data:
            raise RecordError(
                f"{record.file_name} was measured on other data than {first.file_name}; compare records of one dataset."
            )
        tables.append({row["name"]: percent(row["iou"]) for row in measured["per_class"]})
        if tables[-1].keys() != tables[0].keys():
            raise RecordError(f"{record.file_name} has other classes than {first.file_name}; evaluate again.")
    mean = {name: _mean([table[name].value for table in tables]) for name in tables[0]}
    names = sorted(mean, key=lambda name: (math.isnan(mean[name]), -mean[name]))

    thickness = 0.8 / len(records)  # of a bar; one class takes 1
    with figure_style(len(records)) as colours:
        figure = new_figure(0.75 + (len(names) + 1.4) * max(0.17, 0.065 * len(records)))
        axes = figure.subplots()
        axes.grid(visible=False, axis="y")
        for index, (record, table) in enumerate(zip(records, tables, strict=True)):
            bars = [percent(record.measured["miou"]), *(table[name] for name in names)]
            centres = [row + (0.4 if row else 0.0) + (index + 0.5) * thickness - 0.4 for row in range(len(bars))]
            label = f"{record.model} ({record.variant})" if record.variant else record.model
            axes.barh(
                centres,
                [0.0 if math.isnan(bar.value) else bar.value for bar in bars],
                height=thickness,
                color=colours[index],
                label=label,
            )
            for centre, bar in zip(centres, bars, strict=True):
                _interval(axes, centre, bar)
        axes.axhline(0.7, color="0.3", linewidth=0.6)
        rows = [0.0, *(row + 0.4 for row in range(1, len(names) + 1))]
        axes.set_yticks(rows, ["mIoU", *names])
        axes.get_yticklabels()[0].set_fontweight("bold")
        axes.set_ylim(rows[-1] + 0.55, -0.55)
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"IoU (%) and 95 % interval, {first.data.name} {first.data.split} (n = {first.n})")
        figure.legend(loc="outside upper center", ncols=legend_columns([record.model for record in records], COLUMN))
        return save_figure(figure, output)


def _interval(axes: Axes, centre: float, bar: Estimate) -> None:
    if math.isnan(bar.value):
        axes.text(0.8, centre, "–", va="center", ha="left", fontsize=6)
    elif not (math.isnan(bar.low) or math.isnan(bar.high)):
        axes.plot([bar.low, bar.high], [centre, centre], color="0.15", linewidth=0.9, solid_capstyle="butt")


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@contextlib.contextmanager
def figure_style(colours: int = 10) -> Iterator[list[tuple[float, float, float]]]:
    """The look of all figures, for the length of a block; gives at least so many colours, no two alike."""
    import matplotlib as mpl
    import seaborn as sns

    look = {
        **sns.axes_style("whitegrid"),
        "font.size": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "axes.linewidth": 0.6,
        "axes.edgecolor": "0.4",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.linewidth": 0.5,
        "grid.color": "0.9",
        "pdf.fonttype": 42,  # text stays text
        "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same picture on every machine
        "text.parse_math": False,  # a $ in a name is a $
    }
    with mpl.rc_context(look):
        yield [(float(r), float(g), float(b)) for r, g, b in _palette(colours)]


def _palette(colours: int) -> Sequence[Sequence[float]]:
    import seaborn as sns

    few: Sequence[Sequence[float]] = sns.color_palette("colorblind")
    more: Sequence[Sequence[float]] = sns.color_palette("husl", colours)
    return few if colours <= len(few) else more


def new_figure(height: float, width: float = COLUMN) -> Figure:
    """An empty figure of this size in inches, with constrained layout; never on a screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class OwnFigure(Figure):
        """A figure whose legends also show names that begin with _, which matplotlib takes for its own."""

        def legend(self, *given: Any, **settings: Any) -> Legend:
            handles = [*settings.get("handles", ()), *(each for axes in self.axes for each in axes.get_children())]
            for handle in [*handles, *(each for axes in self.axes for each in axes.containers)]:
                label = str(handle.get_label())
                if label.startswith("_") and not re.fullmatch(r"_(child|container)\d+|_nolegend_", label):
                    handle.set_label(f" {label}")
            return super().legend(*given, **settings)

    figure = OwnFigure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def legend_columns(names: Sequence[str], width: float) -> int:
    """How many columns of ``names``, shared out as legends do, fit above a figure so many inches wide."""
    for columns in range(len(names), 1, -1):
        longest = [max(column) for column in np.array_split([len(name) for name in names], columns)]
        if sum(0.38 + 0.056 * length for length in longest) <= width:
            return columns
    return 1


def _drawn_tick(shown: Callable[..., str]) -> Callable[..., str]:
    return lambda *given: drawn_lines(shown(*given), 40)


def save_figure(figure: Figure, output: str | os.PathLike[str], dpi: int = DPI) -> list[Path]:
    """Write OUTPUT as PNG of ``dpi``, and the PDF beside it; letters that the font lacks are shown as their codes."""
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FuncFormatter):  # names at ticks
                formatter.func = _drawn_tick(formatter.func)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text():
            text.set_text(drawn_lines(text.get_text()))
    stem = os.fspath(output)
    stem = stem[:-4] if stem.lower().endswith((".png", ".pdf")) else stem
    options: dict[str, dict[str, Any]] = {"png": {"dpi": dpi}, "pdf": {"metadata": {"CreationDate": None}}}
    for form, choice in options.items():
        write_atomically(Path(f"{stem}.{form}"), partial(figure.savefig, format=form, **choice))
    return [Path(f"{stem}.{form}") for form in options]
