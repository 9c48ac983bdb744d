"""Commands on stored tokens: cache ls, cache rm."""

from __future__ import annotations

from typing import Annotated

import typer

from whitebox.cli.app import App, app, say

cache_app = App(help="List and delete stored tokens of frozen encoders.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


@cache_app.command(name="ls")
def list_command() -> None:
    """Show the stores: what they hold, how much of it is made, and their size.

    \b
    whitebox cache ls
    """
    from datetime import datetime

    from whitebox.engine.rows import stores, stores_folder
    from whitebox.terminal import show_rows

    found = stores()
    if not found:
        say(f"There are no stores in {stores_folder()}.")
        return
    table = []
    for stored in found:
        what = (str(stored.question.get(key, "?")) for key in ("what", "encoder"))
        changed = datetime.fromtimestamp(stored.used).strftime("%Y-%m-%d %H:%M")
        rows = str(stored.done) if stored.rows is None else f"{stored.done} of {stored.rows}"
        size = f"{stored.bytes / 2**30:.2f}"
        table.append((stored.key, *what, rows, size, changed))
    show_rows(("Store", "Holds", "Encoder", "Rows", "GiB", "Changed"), table)
    say(f"{sum(stored.bytes for stored in found) / 2**30:.2f} GiB in {stores_folder()}")


@cache_app.command(name="rm", tables=False)
def remove_command(
    keys: Annotated[list[str] | None, typer.Argument(metavar="[STORE]...", help="Names as `ls` shows them.")] = None,
    all_stores: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
) -> None:
    """Delete stores; what needs them makes them anew.

    \b
    whitebox cache rm 3f2a90c1d2b4e5f6
    whitebox cache rm --all
    """
    from whitebox.catalog import nearest
    from whitebox.engine.rows import remove, stores
    from whitebox.errors import ConfigError

    known = {stored.key: stored for stored in stores()}
    wanted = list(known) if all_stores else list(keys or ())
    if not wanted and not all_stores:
        raise ConfigError("Name the stores to delete, as `whitebox cache ls` shows them, or say --all.")
    for key in wanted:
        if key not in known:
            raise ConfigError(f"There is no store {key!r}{nearest(key, list(known))} `whitebox cache ls` lists them.")
    for key in wanted:
        remove(known[key])
        say(f"Deleted {key}: {known[key].bytes / 2**30:.2f} GiB.")
