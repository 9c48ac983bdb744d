"""Tables rendered from results records: CSV, Markdown, LaTeX (booktabs), and a rich table for the terminal.

One model for all four: columns, rows of cells, and how many rows at the end are summaries. A cell is text, a number, an
`Estimate` (shown as ``45.3 [43.1, 47.0]``, of several trainings as ``45.3 ± 0.4 [43.1, 47.0]``; three or four columns
in CSV), or None (empty). NaN is shown as a dash, and left empty in CSV.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebox.files import write_text
from whitebox.text import csv_text, latex, markdown

if TYPE_CHECKING:
    import rich.console
    import rich.table

DASH = "–"


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN where there is none.

    Attributes:
        sd: over trainings; NaN for one.
        seeds: the value of each training that it is the mean of; empty for one.
        mark: shown behind it.
        decimals: shown of it; None: as its column says.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    sd: float = field(default=math.nan, kw_only=True)
    seeds: tuple[float, ...] = field(default=(), kw_only=True)
    mark: str = field(default="", kw_only=True)
    decimals: int | None = field(default=None, kw_only=True)


Cell = str | int | float | Estimate | None


@dataclass(frozen=True)
class Column:
    """A heading, and how many decimals its numbers show (CSV keeps all).

    Attributes:
        positive: numbers are above 0, so those that would be shown as 0 are shown as below the least that would not.
    """

    name: str
    decimals: int = 1
    positive: bool = False


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of cells under columns; the last ``summary_rows`` stand below a rule.

    Where a table is too long for the screen, its ends are shown: the first and last rows, or those that are first and
    last by the column ``ranked``. A notebook shows it as a table.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    summary_rows: int = 0
    ranked: int | None = None

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row of {len(row)} cells under {len(self.columns)} columns: {row}")

    def shown(self) -> list[list[str]]:
        """The rows as text, as a reader sees them."""
        return [[_shown(cell, column) for cell, column in zip(row, self.columns, strict=True)] for row in self.rows]

    def _escaped(self, escape: Callable[[str], str]) -> list[list[str]]:
        """As ``shown``, where cells that are text, and may be anybody's, are escaped."""
        return [
            [escape(text) if isinstance(cell, str) else text for cell, text in zip(row, texts, strict=True)]
            for row, texts in zip(self.rows, self.shown(), strict=True)
        ]

    def numeric(self) -> list[bool]:
        """Which columns hold numbers, and so are set flush right."""
        return [all(not isinstance(row[index], str) for row in self.rows) for index in range(len(self.columns))]

    def to_csv(self) -> str:
        """Full precision; an estimate takes the columns NAME, NAME low, NAME high, and NAME sd; no caption.

        The last is there where some estimate is of several trainings.
        """
        by_column = [[row[index] for row in self.rows] for index in range(len(self.columns))]
        estimates = [[cell for cell in cells if isinstance(cell, Estimate)] for cells in by_column]
        parts = [
            [""] if not each else ["", " low", " high", *([" sd"] if any(one.sd == one.sd for one in each) else [])]
            for each in estimates
        ]
        heading = [
            f"{csv_text(column.name)}{part}" for column, own in zip(self.columns, parts, strict=True) for part in own
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(heading)
        for row in self.rows:
            values: list[str | int | float | None] = []
            for cell, own in zip(row, parts, strict=True):
                if isinstance(cell, Estimate):
                    values += [cell.value, cell.low, cell.high, cell.sd][: len(own)]
                else:
                    values += [csv_text(cell) if isinstance(cell, str) else cell, *[None] * (len(own) - 1)]
            writer.writerow(["" if value is None or value != value else value for value in values])
        return text.getvalue()

    def to_markdown(self) -> str:
        """A pipe table with the caption below; summary rows are bold."""
        lines = [[markdown(column.name) for column in self.columns]]
        lines.append(["---:" if numeric else "---" for numeric in self.numeric()])
        for index, row in enumerate(self._escaped(markdown)):
            bold = "**" if index >= len(self.rows) - self.summary_rows else ""
            lines.append([f"{bold}{text}{bold}" if text else "" for text in row])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{markdown(self.caption)}\n"

    def to_latex(self, label: str = "") -> str:
        r"""A ``table`` environment for the package booktabs, text escaped; ``\input`` takes it as it is.

        Args:
            label: what ``\ref{tab:LABEL}`` finds it by; letters that TeX takes for something else become ``-``.
        """
        alignment = "".join("r" if numeric else "l" for numeric in self.numeric())
        signs = str.maketrans({DASH: "--", "±": r"$\pm$", "<": "$<$", "-": "$-$"})  # of numbers; texts are escaped
        body = [
            " & ".join(
                text if isinstance(cell, str) else text.translate(signs) for cell, text in zip(row, texts, strict=True)
            )
            + r" \\"
            for row, texts in zip(self.rows, self._escaped(latex), strict=True)
        ]
        if 0 < self.summary_rows < len(body):
            body.insert(len(body) - self.summary_rows, r"\midrule")
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(self.caption)}}}",
            *([rf"\label{{tab:{re.sub(r'[^A-Za-z0-9.:]+', '-', label)}}}"] if label else []),
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            " & ".join(latex(column.name) for column in self.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def to_rows(self) -> list[dict[str, Any]]:
        """An object a row, in JSON's types and full precision; an estimate is ``{"value", "low", "high"}``."""
        return [
            {column.name: _as_json(cell) for column, cell in zip(self.columns, row, strict=True)} for row in self.rows
        ]

    def ends(self, most: int) -> Table:
        """At most so many rows, the summaries among them, what was left out between; itself where it is as short."""
        body, summary = self.rows[: len(self.rows) - self.summary_rows], self.rows[len(self.rows) - self.summary_rows :]
        if len(self.rows) <= most:
            return self
        half = max(1, (most - len(summary) - 1) // 2)
        if (column := self.ranked) is not None:
            known = [row for row in body if not math.isnan(_rank(row[column]))]
            body = tuple(sorted(known, key=lambda row: -_rank(row[column])))
        between = (f"... {len(self.rows) - len(summary) - 2 * half} more", *(None for _ in self.columns[1:]))
        return replace(self, rows=(*body[:half], between, *body[-half:], *summary))

    def show(self) -> None:
        """On the terminal, as much of it as has room there; as JSON all of it."""
        from whitebox import terminal

        if terminal.manner.json:
            terminal.manner.found += self.to_rows()
        else:
            self.print(terminal.table_console())

    def print(self, console: rich.console.Console) -> None:
        """As much of it as has room on the screen: all, or its ends and the beginning of its caption, or nothing."""
        from whitebox import terminal

        room, frame = terminal.manner.room, 4 + bool(self.summary_rows) + 2
        too_little = room < terminal.LEAST + self.summary_rows
        if too_little and not terminal.manner.verbose and room < len(self.rows) + frame - 2:
            terminal.manner.hidden += len(self.rows) + frame  # about; to lay it out, unseen, takes far longer
            return
        whole = self.to_rich()
        lines = len(console.render_lines(whole))
        if terminal.fits(lines):
            console.print(whole)
            return
        if too_little:
            terminal.manner.hidden += lines
            return
        ends = replace(self.ends(min(room, lines - 1) - frame), caption="")
        short = len(console.render_lines(ends.to_rich()))
        terminal.manner.room -= short + 2
        terminal.manner.hidden += lines - short
        console.print(ends.to_rich())
        terminal.print_line(console, _cut(self.caption, 2 * console.width - 8))

    def __repr__(self) -> str:
        lines = [[column.name for column in self.columns], *self.shown()]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        aligned = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([*(line.rstrip() for line in aligned), self.caption])

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def to_rich(self) -> rich.table.Table:
        """For the terminal."""
        from rich.table import Table as RichTable

        from whitebox.terminal import plain

        table = RichTable(caption=plain(self.caption) if self.caption else None, caption_justify="left")
        for column, numeric in zip(self.columns, self.numeric(), strict=True):
            table.add_column(plain(column.name), justify="right" if numeric else "left")
        for index, row in enumerate(self.shown()):
            left = len(self.rows) - index
            summary = left <= self.summary_rows
            table.add_row(
                *(plain(text) for text in row),
                style="bold" if summary else None,
                end_section=left == self.summary_rows + 1,
            )
        return table

    def write(self, stem: str | os.PathLike[str]) -> list[Path]:
        """Write ``STEM.csv``, ``STEM.md`` and ``STEM.tex``; returns their paths.

        Raises:
            OutputError: the folder cannot be written.
        """
        name = os.path.basename(os.fspath(stem))
        texts = {".csv": self.to_csv(), ".md": self.to_markdown(), ".tex": self.to_latex(name)}
        return [write_text(Path(os.fspath(stem) + suffix), text, flush=False) for suffix, text in texts.items()]


def _rank(cell: Cell) -> float:
    value = cell.value if isinstance(cell, Estimate) else cell
    return float(value) if isinstance(value, int | float) else math.nan


def _as_json(cell: Cell) -> Any:
    if isinstance(cell, Estimate):
        return {key: _as_json(getattr(cell, key)) for key in ("value", "low", "high")}
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _cut(text: str, most: int) -> str:
    """The beginning of a text, whole words."""
    return text if len(text) <= most else f"{text[:most].rpartition(' ')[0]} ..."


def percent(stored: Mapping[str, Any]) -> Estimate:
    """``{"value", "low", "high"}`` of a record, fractions or null, as percent or NaN."""
    return estimate(stored, 100)


def estimate(stored: Mapping[str, Any] | float | None, factor: float = 1) -> Estimate:
    """``{"value", "low", "high"}`` or a number of a record, times ``factor``; what is null or not there is NaN."""
    if not isinstance(stored, Mapping):
        return Estimate(factor * number(stored))
    seeds = tuple(factor * number(each) for each in stored.get("seeds") or ())
    value, low, high = (factor * number(stored.get(key)) for key in ("value", "low", "high"))
    sd = abs(factor) * number(stored["sd"]) if "sd" in stored else math.nan
    return Estimate(value, low, high, sd=sd, seeds=seeds)


def estimates(stored: Mapping[str, Any]) -> list[Estimate]:
    """A record's estimates that lie side by side, ``{"value": [...], "low": [...], "high": [...]}``."""
    keys = [key for key in ("value", "low", "high", "sd", "seeds") if key in stored]
    return [estimate(dict(zip(keys, each, strict=True))) for each in zip(*(stored[key] for key in keys), strict=True)]


def stored_cell(stored: Mapping[str, float | None] | float | int | None) -> Estimate | float | int:
    """A record's estimate or number, for a table; a count stays one."""
    if isinstance(stored, Mapping):
        return estimate(stored)
    return stored if isinstance(stored, int) else number(stored)


def number(value: float | None) -> float:
    """A record's number; null, so what was NaN or infinite, becomes NaN."""
    return math.nan if value is None else float(value)


def _decimals(cell: Estimate, column: Column) -> int:
    """So many that an estimate which is not 0 is not shown as ``0.00 [0.00, 0.00]``."""
    decimals = column.decimals if cell.decimals is None else cell.decimals
    size = max((abs(each) for each in (cell.value, cell.low, cell.high) if math.isfinite(each)), default=0.0)
    if cell.low == cell.high or size == 0 or size >= 10**-decimals / 2:
        return decimals
    return min(8, 1 - math.floor(math.log10(size)))


def _shown(cell: Cell, column: Column) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Estimate):
        column = replace(column, decimals=_decimals(cell, column))
        value = _shown(cell.value, column) + ("" if math.isnan(cell.sd) else f" ± {_shown(cell.sd, column)}")
        if math.isnan(cell.low) or math.isnan(cell.high) or cell.low == cell.high:  # all draws alike know no spread
            return f"{value}{cell.mark}"
        return f"{value} [{_shown(cell.low, column)}, {_shown(cell.high, column)}]{cell.mark}"
    if isinstance(cell, int):
        return str(cell)
    if column.positive and 0 <= cell < (least := 10**-column.decimals) / 2:
        return f"<{least:.{column.decimals}f}"
    return DASH if math.isnan(cell) else f"{cell:.{column.decimals}f}"
