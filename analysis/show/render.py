"""Records -> tables and figures: what every measurement command shows at its end, and `whitebox render` later.

A measurement is a module with ``render(records, stem)``: it writes its figures at ``stem`` (plus a suffix where there
are several) and returns its tables by file name suffix, to be shown in this order; none, and no figure, where the
records hold nothing to show. Nothing in it needs a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from analysis.record import Record, RecordError
from analysis.show.tables import Table
from whitebox.terminal import print_line, table_console

Renderer = Callable[[Sequence[Record], Path], Mapping[str, Table]]


def renderers() -> dict[str, Renderer]:
    """The renderer of each kind of record."""
    from analysis.measures import alignment, orthogonality, pca, tradeoff
    from analysis.measures import compare as comparison
    from analysis.measures import evaluation as report
    from analysis.measures import profile as costs
    from analysis.show import attention as attention_figures
    from analysis.show import rank_analysis as rank_figures
    from analysis.show import robustness as robustness_figures

    return {
        "alignment": alignment.render,
        "attention": attention_figures.render,
        "compare": comparison.render,
        "eval": report.render_evaluations,
        "pca": pca.render,
        "orthogonality": orthogonality.render,
        "profile": costs.render,
        "rank-analysis": rank_figures.render,
        "parameter-noise": robustness_figures.render_noise,
        "input-noise": robustness_figures.render_noise,
        "corruptions": robustness_figures.render_corruptions,
        "tradeoff": tradeoff.render,
    }


def render(records: Sequence[Record], folder: Path, name: str | None = None) -> None:
    """Write tables (CSV, Markdown, LaTeX) and figures (PNG, PDF) of ``records`` below ``folder``; show the tables.

    Records of one kind are shown together; ``name`` is that of their files, None: see `joint_name`.

    Raises:
        RecordError: no records, a kind that has no renderer, or records that do not fit together.
        OutputError: the folder cannot be written.
    """
    if not records:
        raise RecordError("There are no records to render.")
    known = renderers()
    console = table_console()
    for kind, same in groupby(sorted(records, key=lambda record: record.kind), key=lambda record: record.kind):
        group = list(same)
        if kind not in known:
            raise RecordError(f"{group[0].file_name} holds {kind!r}; what can be rendered: {', '.join(sorted(known))}.")
        stem = name or joint_name(group)
        tables = known[kind](group, folder / "figures" / stem)
        for suffix, table in tables.items():
            table.write(folder / "tables" / f"{stem}{suffix}")
            console.print(table.to_rich())
        for note in notes(group):
            print_line(console, note)
        if tables:
            print_line(console, f"Figures and tables: {folder}/*/{stem}*")


def joint_name(records: Sequence[Record]) -> str:
    """File name of what is drawn from ``records``: that of a single record, else one that names all in its hash."""
    first = records[0]
    if len(records) == 1:
        return first.file_name.removesuffix(".json")
    together = hashlib.sha256("".join(sorted(record.identity for record in records)).encode()).hexdigest()[:8]
    parts = (first.kind, first.data.name, first.data.split, first.variant, f"{len(records)}_models", together)
    return "-".join(part for part in parts if part)


def notes(records: Sequence[Record]) -> list[str]:
    """What the measurements have to say beside their numbers, ``measured["notes"]``: what does not apply to a model."""
    return [f"{record.model}: {note}" for record in records for note in record.measured.get("notes", ())]
