"""Where tables are shown."""

from __future__ import annotations

import sys

from rich.console import Console


def table_console() -> Console:
    """As wide as the terminal; wide enough for any table where output goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 160)
