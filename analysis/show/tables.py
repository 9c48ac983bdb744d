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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whitebox.files import write_text
from whitebox.text import csv_text, latex, markdown

if TYPE_CHECKING:
    import rich.table

DASH = "–"


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN where there is none.

    Attributes:
        sd: over trainings; NaN for one.
        seeds: the value of each training that it is the mean of; empty for one.
        mark: shown behind it.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    sd: float = field(default=math.nan, kw_only=True)
    seeds: tuple[float, ...] = field(default=(), kw_only=True)
    mark: str = field(default="", kw_only=True)


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


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; the last ``summary_rows`` stand below a rule."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    summary_rows: int = 0

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

    def to_latex(self) -> str:
        r"""A ``table`` environment for the package booktabs, text escaped; ``\input`` takes it as it is."""
        alignment = "".join("r" if numeric else "l" for numeric in self.numeric())
        signs = str.maketrans({DASH: "--", "±": r"$\pm$", "<": "$<$"})  # of numbers; those of texts are escaped
        body = [" & ".join(row).translate(signs) + r" \\" for row in self._escaped(latex)]
        if 0 < self.summary_rows < len(body):
            body.insert(len(body) - self.summary_rows, r"\midrule")
        lines = [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{latex(self.caption)}}}",
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

    def to_rich(self) -> rich.table.Table:
        """For the terminal."""
        from rich.table import Table as RichTable

        from whitebox.terminal import plain

        table = RichTable(caption=plain(self.caption), caption_justify="left")
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
        texts = {".csv": self.to_csv(), ".md": self.to_markdown(), ".tex": self.to_latex()}
        return [write_text(Path(os.fspath(stem) + suffix), text) for suffix, text in texts.items()]


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


def _shown(cell: Cell, column: Column) -> str:
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Estimate):
        value = _shown(cell.value, column) + ("" if math.isnan(cell.sd) else f" ± {_shown(cell.sd, column)}")
        if math.isnan(cell.low) or math.isnan(cell.high):
            return f"{value}{cell.mark}"
        return f"{value} [{_shown(cell.low, column)}, {_shown(cell.high, column)}]{cell.mark}"
    if isinstance(cell, int):
        return str(cell)
    if column.positive and 0 <= cell < (least := 10**-column.decimals) / 2:
        return f"<{least:.{column.decimals}f}"
    return DASH if math.isnan(cell) else f"{cell:.{column.decimals}f}"
