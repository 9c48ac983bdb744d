"""Commands that measure what decoders do: each writes records, tables and figures, and compares several runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.app import app, runs_and_overrides

if TYPE_CHECKING:
    from analysis.records import Record
    from analysis.samples import Progress
    from whitebox.runs import Run

Dataset = Annotated[str | None, typer.Option(help="Default: the one the model was trained on.")]
Split = Annotated[str | None, typer.Option(help="Default: the validation split.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N images.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random, and of the bootstrap.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of records, tables, figures. Default: each run's folder.")
]


@app.command(name="render")
def render_command(
    records: Annotated[list[Path], typer.Argument(help="Record files, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of tables and figures.")] = Path("rendered"),
) -> None:
    """Draw tables and figures from records again; no model is needed. Records of one kind share a figure.

    \b
    whitebox render results/camvid/analysis/records -o paper/
    """
    from analysis.records import read_record, read_records
    from analysis.render import render

    found = [record for path in records for record in (read_records(path) if path.is_dir() else [read_record(path)])]
    render(found, output)


def measure_runs(
    what: str,
    runs: list[str] | None,
    measure: Callable[[Run, Progress], Record],
    *,
    dataset: str | None,
    data_root: Path | None,
    device: str | None,
    output: Path | None,
) -> None:
    """Measure one run after another, store each record as soon as it is there, and show them together at the end."""
    from analysis.records import write_record
    from analysis.render import render
    from whitebox.progress import image_progress
    from whitebox.runs import open_run

    paths, overrides = runs_and_overrides(runs)
    records, folders = [], []
    for path in paths:
        run = open_run(path, dataset, data_root, overrides, device)
        with image_progress(f"{what}: {run.name}", None) as advance:
            records.append(measure(run, advance))
        write_record(records[-1], (output or run.folder) / "records")
        folders.append(run.folder)
    render(records, output or Path(os.path.commonpath(folders)))
