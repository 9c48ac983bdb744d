"""Figures rendered from results records and training logs, PNG and PDF, sized for one column of a paper.

The same input gives the same bytes: no dates inside. Colours are seaborn's ``colorblind`` palette, and ``husl`` where
that does not suffice.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from whitebox.files import write_atomically
from whitebox.text import drawn_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

    from analysis.record import Record
    from analysis.show.tables import Estimate

COLUMN, PAGE = 3.5, 7.2  # inches, the width of one column and of a page
DPI = 220  # of the PNG
MARKERS = "os^Dv<>P"  # a line's own, beside its colour
FEW = 40  # classes with a row each; of more there are the extremes, and the table has all
_TRIES = 4  # to draw a figure so that no label is cut: broken lines move the axes a little


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
        "figure.autolayout": False,  # `_lay_out` has found all places
        "figure.constrained_layout.use": False,
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


def legend_height(names: Sequence[str], width: float) -> float:
    """Inches that a legend of ``names`` takes, above a figure so many inches wide."""
    return 0.13 * math.ceil(len(names) / legend_columns(names, width))


def model_legend(figure: Figure, records: Sequence[Record], width: float, left: bool = False) -> None:
    """The models of ``records`` above a figure, in as many columns as fit."""
    columns = legend_columns([record.model for record in records], width)
    figure.legend(loc="outside upper left" if left else "outside upper center", ncols=columns)


def rows_below_total(axes: Axes, total: str, names: Sequence[str]) -> list[float]:
    """Make rows from top to bottom: a total in bold, a rule, then ``names``; gives their centres, one apart."""
    places = [0.0, *(row + 0.4 for row in range(1, len(names) + 1))]
    axes.grid(visible=False, axis="y")
    axes.axhline(0.7, color="0.3", linewidth=0.6)
    axes.set_yticks(places, [total, *names])
    axes.get_yticklabels()[0].set_fontweight("bold")
    axes.set_ylim(places[-1] + 0.55, -0.55)
    return places


def extremes(
    values: Mapping[str, Sequence[float]], ends: tuple[str, str] = ("best", "worst")
) -> tuple[list[str], list[int], str]:
    """Which rows a figure shows, best first: all, and of more than ``FEW`` the best, those that differ most, the worst.

    Args:
        values: of each row, one number a model; larger is better, NaN is unknown.
        ends: what the first and the last ones are called.

    Returns:
        Names; after how many of them a rule is drawn; and what was chosen, in words.
    """
    known = {name: [value for value in each if not math.isnan(value)] for name, each in values.items()}
    mean = {name: sum(each) / len(each) if each else math.nan for name, each in known.items()}
    ordered = sorted(values, key=lambda name: (math.isnan(mean[name]), -mean[name]))
    if len(ordered) <= FEW:
        return ordered, [], ""
    several = max(map(len, values.values())) > 1
    count = FEW // 4 if several else FEW // 2
    best, worst = ordered[:count], [name for name in ordered if known[name]][-count:]
    spread = {name: max(known[name], default=0.0) - min(known[name], default=0.0) for name in ordered}
    others = sorted(set(ordered) - {*best, *worst}, key=lambda name: (-spread[name], ordered.index(name)))
    changed = [name for name in ordered if name in others[:count]] if several else []
    middle = f", the {count} that differ most" if several else ""
    words = f"the {count} {ends[0]}{middle} and the {count} {ends[1]} of {len(ordered)} classes; all: in the table"
    rules = [count, 2 * count] if several else [count]
    return [*best, *changed, *worst], rules, words


def rules_between(axes: Axes, places: Sequence[float], rules: Sequence[int]) -> None:
    """Dotted lines in rows below a total, each after so many of them."""
    for rule in rules:
        axes.axhline((places[rule] + places[rule + 1]) / 2, color="0.5", linewidth=0.6, linestyle=":")


def side_by_side(places: Sequence[float], index: int, count: int) -> tuple[list[float], float]:
    """Where in each row the bar of model ``index`` of ``count`` has its centre, and how thick it is."""
    thickness = 0.8 / count
    return [place + (index + 0.5) * thickness - 0.4 for place in places], thickness


def trainings_behind(axes: Axes, shown: Estimate, at: float, colour: Any) -> None:
    """The value of each training lightly behind their mean, at a height; nothing where there was one."""
    if len(shown.seeds) > 1:
        places = [at] * len(shown.seeds)
        axes.plot(shown.seeds, places, "|", color=colour, alpha=0.45, markersize=5, markeredgewidth=0.9, zorder=1.5)


def dots_of_rows(rows: Sequence[str], panels: Mapping[str, Sequence[Estimate]], stem: Path, caption: str) -> None:
    """A figure of numbers: a panel each, rows from top to bottom, with intervals, and single trainings behind.

    Args:
        panels: by the label of an axis, an estimate a row.
    """
    with figure_style() as colours:
        figure = new_figure(0.85 + 0.17 * len(rows), PAGE)
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (label, shown) in zip(every, panels.items(), strict=True):
            for row, each in enumerate(shown):
                trainings_behind(axes, each, row, colours[0])
                axes.plot([each.low, each.high], [row, row], color=colours[0], linewidth=1.2)
                axes.plot(each.value, row, "o", color=colours[0], markersize=3.5)
            axes.margins(x=0.15)
            axes.set_xlabel(label)
        every[0].set_yticks(range(len(rows)), rows)
        every[0].set_ylim(len(rows) - 0.5, -0.5)
        figure.supxlabel(caption, fontsize=6)
        save_figure(figure, stem)


def curves_behind(axes: Axes, x: Sequence[float], shown: Sequence[Estimate], colour: Any, line: str = "-") -> None:
    """The curve of each training lightly behind that of their mean; nothing where there was one."""
    if min((len(each.seeds) for each in shown), default=0) > 1:
        for values in zip(*(each.seeds for each in shown), strict=True):
            axes.plot(x, values, line, color=colour, alpha=0.4, linewidth=0.5, zorder=1.5)


def error_bars(shown: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of the intervals below and above, as matplotlib takes them; 0 where there is none."""
    lengths = [[each.value - each.low for each in shown], [each.high - each.value for each in shown]]
    return [[0.0 if math.isnan(end) else max(0.0, end) for end in ends] for ends in lengths]


def _drawn_tick(shown: Callable[..., str]) -> Callable[..., str]:
    return lambda *given: drawn_lines(shown(*given), 40)


def _wrapped(figure: Figure) -> bool:
    """Break the lines of labels and titles that an edge cuts; whether there were any."""
    from matplotlib.text import Text

    names = [(axes.get_xlabel(), axes.get_ylabel(), axes.get_title(), axes.get_title("left")) for axes in figure.axes]
    names.append((figure.get_supxlabel(), figure.get_supylabel(), figure.get_suptitle(), ""))
    own = {name for each in names for name in each if name}
    found = False
    for text in figure.findobj(Text):
        if not isinstance(text, Text) or text.get_text() not in own:
            continue
        extent, upright = text.get_window_extent(), text.get_rotation() == 90
        low, high = (extent.y0, extent.y1) if upright else (extent.x0, extent.x1)
        size = figure.bbox.height if upright else figure.bbox.width
        if low < 0 or high > size:
            centre = (low + high) / 2
            room = size - low if text.get_horizontalalignment() == "left" else 2 * min(centre, size - centre)
            lines = text.get_text().split("\n")
            letters = max(10, int(0.97 * max(map(len, lines)) * room / (high - low)))
            text.set_text("\n".join(fill(line, letters, break_long_words=False) for line in lines))
            found = True
    return found


def _name_symlog(figure: Figure) -> None:
    """Say at each axis that is linear around 0 and logarithmic beyond how far it is linear."""
    from matplotlib.scale import SymmetricalLogTransform

    for axes in figure.axes:
        for axis, above in ((axes.xaxis, figure.get_supxlabel), (axes.yaxis, figure.get_supylabel)):
            transform = axis.get_transform()
            if not isinstance(transform, SymmetricalLogTransform):
                continue
            linear = float(transform.linthresh)
            words = f"linear up to {linear:g}, then logarithmic"
            if axis.get_label_text() and words not in axis.get_label_text():
                axis.set_label_text(f"{axis.get_label_text()}\n({words})")
            elif axis is axes.yaxis and above() and words not in above():
                figure.supylabel(f"{above()}\n({words})", fontsize=8)


def save_figure(figure: Figure, output: str | os.PathLike[str], dpi: int = DPI) -> list[Path]:
    """Write OUTPUT as PNG of ``dpi``, and the PDF beside it; letters that the font lacks are shown as their codes."""
    import matplotlib as mpl
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter, LogFormatter, NullLocator

    for axes in figure.axes:
        if not axes.axison:  # ticks that nobody sees are made and measured again and again
            axes.set(xticks=[], yticks=[])
        for axis in (axes.xaxis, axes.yaxis):
            if not any(axis.get_minor_formatter().format_ticks(list(axis.get_minorticklocs()))):
                axis.set_minor_locator(NullLocator())  # our look has no marks, so nobody sees these either
            formatter = axis.get_major_formatter()
            if isinstance(formatter, FuncFormatter):  # names at ticks
                formatter.func = _drawn_tick(formatter.func)
            elif isinstance(formatter, LogFormatter):
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                    tick.label1.set_parse_math(True)  # matplotlib writes powers as mathtext
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text.get_text():
            text.set_text(drawn_lines(text.get_text()))
    _name_symlog(figure)
    stem = os.fspath(output)
    stem = stem[:-4] if stem.lower().endswith((".png", ".pdf")) else stem
    options: dict[str, dict[str, Any]] = {"png": {"dpi": dpi}, "pdf": {"metadata": {"CreationDate": None}}}
    # All that has a name is there; what is made from here on are ticks of axes that finding places makes longer.
    with mpl.rc_context({"text.parse_math": True}), _glyphs_alone():
        _lay_out(figure, dpi)
        for form, choice in options.items():
            write_atomically(Path(f"{stem}.{form}"), partial(figure.savefig, format=form, **choice), flush=False)
    return [Path(f"{stem}.{form}") for form in options]


@contextlib.contextmanager
def _glyphs_alone() -> Iterator[None]:
    """Embed fonts in a PDF without their tables of kerning and ligatures: its letters have their places already.

    fontTools would read all of a font's before it leaves out nearly all, for each figure once more; matplotlib has no
    setting for it.
    """
    from fontTools.subset import Options

    dropped = Options._drop_tables_default
    Options._drop_tables_default = [*dropped, "GDEF", "GPOS", "GSUB", "kern"]
    try:
        yield
    finally:
        Options._drop_tables_default = dropped


def _lay_out(figure: Figure, dpi: int) -> None:
    """Find a place for everything in a figure that is drawn at ``dpi``, once for all its files.

    ``savefig`` would draw the figure to nowhere for it, and again for each file.
    """
    layout, before = figure.get_layout_engine(), figure.get_dpi()
    if layout is None:
        return
    figure.set_dpi(dpi)
    for last in (*[False] * (_TRIES - 1), True):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            layout.execute(figure)
        collapsed = [each for each in found if "collapsed" in str(each.message)]
        for each in found:
            if last or each not in collapsed:
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        if collapsed:
            figure.set_figheight(1.3 * figure.get_figheight())  # labels have left no room for the axes
        elif not _wrapped(figure):
            break
    figure.set_dpi(before)
    figure.set_layout_engine(None)
