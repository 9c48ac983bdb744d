"""Records -> tables and figures: what every measurement command shows at its end, and `whitebox render` later.

A kind of record is shown by a module (`analysis.measurement.KINDS`) with two functions: ``tables(records)`` gives its
tables by file name suffix, to be shown in this order, none where the records hold nothing to show; ``figures(records,
stem)`` draws its figures at ``stem``, plus a suffix where there are several. Nothing in it needs a model or torch.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from glob import escape
from importlib import import_module
from pathlib import Path

from analysis.measurement import KINDS
from analysis.record import Record, RecordError, in_a_name, notes, plain_record, read_record, read_records
from whitebox import terminal
from whitebox.catalog import nearest
from whitebox.terminal import print_fitting, show_record, table_console


def render(
    records: Sequence[Record], folder: Path, name: str | None = None, *, figures: bool = True, show: bool = True
) -> None:
    """Write tables (CSV, Markdown, LaTeX) and figures (PNG, PDF) of ``records`` below ``folder``; show the tables.

    Records that belong together are shown together, in the order given (see `groups`). Figures that were drawn of these
    very records are left as they are.

    Args:
        name: of the files; None: what is shown, and a hash of which records it is made of.
        figures: False: tables alone.
        show: False: only write.

    Raises:
        RecordError: no records, a kind that has no renderer, or records that do not fit together.
        OutputError: the folder cannot be written.
    """
    together = groups(records)
    for group in together:
        own = f"{plain_name(group)}-{_together(group)}"
        stem = own if name is None else name if len(together) == 1 else f"{name}-{own}"
        anew = figures and not _drawn(group, folder / "figures", stem)
        _render_group(group, folder, stem, figures=anew, show=show)


def render_folders(paths: Sequence[Path], output: Path, *, figures: bool = True) -> None:
    """Render record files, and all records below folders: what lies in ``X/records`` goes to ``OUTPUT/X``.

    Files are named by what they show; a hash is added only where two would have the same name.

    Raises:
        RecordError: see `render`; or a path that is not there.
        OutputError: the folder cannot be written.
    """
    found: dict[Path, list[Record]] = {}
    for path in paths:
        for place, records in _below(path).items():
            found.setdefault(output / place, []).extend(records)
    if not any(found.values()):
        raise RecordError(f"There are no records in {', '.join(map(str, paths))}.")
    for folder, records in found.items():
        together = groups(records)
        names = Counter(map(plain_name, together))
        for group in together:
            plain = plain_name(group)
            name = plain if names[plain] == 1 else f"{plain}-{_together(group)}"
            _render_group(group, folder, name, figures)


def _below(path: Path) -> dict[Path, list[Record]]:
    """The records at a path, by where they lie below it."""
    if not path.is_dir():
        return {Path(): [read_record(path)]}
    own = read_records(path) if path.name == "records" or any(path.glob("*.json")) else []
    inside = {place.parent.relative_to(path): read_records(place) for place in sorted(path.glob("**/records"))}
    return {**({Path(): own} if own else {}), **inside}


def groups(records: Sequence[Record]) -> list[list[Record]]:
    """Records that one figure can show: of one kind and variant, and of the same data.

    Kinds come in the order of `analysis.measurement.KINDS`.

    Raises:
        RecordError: no records, or a kind that has no renderer.
    """
    if not records:
        raise RecordError("There are no records to render.")
    found: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        if record.kind not in KINDS:
            raise RecordError(
                f"{record.file_name} holds {record.kind!r}{nearest(record.kind, list(KINDS))} What can be rendered: "
                f"{', '.join(sorted(KINDS))}."
            )
        found.setdefault((record.kind, record.variant, _word(record), _data(record)), []).append(record)
    order = list(KINDS)
    return sorted(found.values(), key=lambda group: order.index(group[0].kind))


def _word(record: Record) -> str:
    """What else tells figures of a kind apart: its module may have a function ``word``."""
    word: Callable[[Record], str] = getattr(import_module(KINDS[record.kind].shown), "word", lambda record: "")
    return word(record)


def _data(record: Record) -> object:
    """What must be the same in one figure."""
    return None if record.kind == "profile" else record.data  # costs against size have several sizes


def _drawn(group: Sequence[Record], folder: Path, stem: str) -> bool:
    """Whether the figures of these very records are there, drawn after the last of them was measured."""
    figures = [path.stat().st_mtime for path in folder.glob(f"{escape(stem)}*.png")]
    own = stem.endswith(_together(group))  # else other records may have figures of that name
    try:
        return own and min(figures, default=0) > max(datetime.fromisoformat(each.created).timestamp() for each in group)
    except ValueError:  # a record without a date
        return False


def _render_group(group: Sequence[Record], folder: Path, stem: str, figures: bool, show: bool = True) -> None:
    shown = import_module(KINDS[group[0].kind].shown)
    tables = shown.tables(group)
    if figures:
        shown.figures(group, folder / "figures" / stem)
    for suffix, table in tables.items():
        table.write(folder / "tables" / f"{stem}{suffix}")
    if not show:
        return
    if terminal.manner.json:
        for record in group:
            show_record(plain_record(record))
        return
    console = table_console()
    for table in tables.values():
        table.print(console)
    for note in notes(group):
        if not any(note in table.caption for table in tables.values()):
            print_fitting(console, note)
    if tables:
        print_fitting(console, f"Figures and tables: {folder}/*/{stem}*")


def plain_name(group: Sequence[Record]) -> str:
    """What records show, for file names: ``rank-analysis-camvid-val``."""
    data = {(each.data.name, each.data.split) for each in group}
    parts = (group[0].kind, *(data.pop() if len(data) == 1 else ()), group[0].variant, _word(group[0]))
    return "-".join(in_a_name(part) for part in parts if part)


def _together(group: Sequence[Record]) -> str:
    """Which records: the identity of one, else how many, and a hash of all."""
    if len(group) == 1:
        return group[0].identity
    text = "".join(sorted(record.identity for record in group))
    return f"{len(group)}_models-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
