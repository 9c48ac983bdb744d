"""Where the user reads: tables, lines and bars. Text of others is shown as it is written, and does nothing.

How much a command says, and in what form, is its `Manner`: all of a command's output passes here.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich import console as rich_console
from rich.progress import Task, TextColumn
from rich.text import Text

from whitebox.text import shown

SCREEN = 44  # lines that a command may fill with tables and what belongs to them
LEAST = 12  # lines, below which of a table nothing is worth showing


@dataclass
class Manner:
    """How this command speaks.

    Attributes:
        quiet: errors alone.
        verbose: all rows of all tables, and what is logged on the way.
        json: on standard output one JSON text in place of tables; lines go to standard error.
        found: what that text lists: records, or rows of tables that are made of no record.
        room: lines that are left on the screen; where no command speaks, there is no end of it.
        hidden: lines that had no room.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    found: list[Any] = field(default_factory=list)
    room: int = sys.maxsize
    hidden: int = 0


manner = Manner()


@contextmanager
def speaking(quiet: bool, verbose: bool, as_json: bool) -> Iterator[None]:
    """Inside the block a command speaks so; at its end, where it succeeds, comes the JSON text."""
    global manner
    log, before = logging.getLogger("whitebox"), manner
    level, handlers = log.level, list(log.handlers)
    manner = Manner(quiet, verbose, as_json, room=SCREEN)
    if quiet:
        log.setLevel(logging.ERROR)
    elif verbose:
        log.setLevel(logging.INFO)
        if not logging.getLogger().handlers and not handlers:
            log.addHandler(logging.StreamHandler())
    try:
        yield
        if manner.json:
            sys.stdout.write(json.dumps(manner.found, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        elif manner.hidden:
            print_line(table_console(), f"... and {manner.hidden} more lines; -v shows all, the files above have all")
    finally:
        manner = before
        log.setLevel(level)
        log.handlers[:] = handlers


class Console(rich_console.Console):
    """A console that takes texts as they are written: no markup, no emoji codes, no colours of its own, no escapes."""

    def __init__(self, **settings: Any) -> None:
        if manner.json:
            settings["stderr"] = True
        super().__init__(markup=False, emoji=False, highlight=False, quiet=manner.quiet, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(shown(text), **settings)


class PlainColumn(TextColumn):
    """A column of a progress bar; its text is taken as it is written."""

    def __init__(self, text_format: str) -> None:
        super().__init__(text_format, markup=False)

    def render(self, task: Task) -> Text:
        return plain(super().render(task).plain)


def table_console() -> Console:
    """As wide as the terminal; wide enough for any table where output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 160)


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A list of what there is, all of it; as JSON, an object a row."""
    if manner.json:
        manner.found += [dict(zip(columns, row, strict=True)) for row in rows]
        return
    from rich.table import Table

    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*(plain("" if cell is None else str(cell)) for cell in row))
    table_console().print(table)


def show_record(record: Mapping[str, Any]) -> None:
    """Put a record into the JSON text, once; its tables are shown otherwise."""
    if manner.json and record not in manner.found:
        manner.found.append(record)


def plain(text: str) -> Text:
    """A cell or heading of a rich table, as it is written."""
    return Text(shown(text))


def print_line(console: rich_console.Console, line: str, style: str | None = None) -> None:
    """One line, which the terminal may fold but we do not."""
    console.print(plain(line), style=style, soft_wrap=True)


def fits(lines: int) -> bool:
    """Whether so many lines have room on the screen, which they then take."""
    if manner.verbose:
        return True
    if lines > manner.room:
        return False
    manner.room -= lines
    return True


def print_fitting(console: rich_console.Console, line: str) -> None:
    """One line where there is room for it; else it is counted."""
    if fits(1):
        print_line(console, line)
    else:
        manner.hidden += 1
