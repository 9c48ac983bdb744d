"""Where the user reads: tables, lines and bars. Text of others is shown as it is written, and does nothing."""

from __future__ import annotations

import sys
from typing import Any

from rich import console as rich_console
from rich.progress import Task, TextColumn
from rich.text import Text

from whitebox.text import shown


class Console(rich_console.Console):
    """A console that takes texts as they are written: no markup, no emoji codes, no colours of its own, no escapes."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

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


def plain(text: str) -> Text:
    """A cell or heading of a rich table, as it is written."""
    return Text(shown(text))


def print_line(console: rich_console.Console, line: str, style: str | None = None) -> None:
    """One line, which the terminal may fold but we do not."""
    console.print(plain(line), style=style, soft_wrap=True)
