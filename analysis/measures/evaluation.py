"""What a command leaves behind: records, tables and figures in the run's folder, and a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.record import Data, Record, describe_weights, fingerprint, measured_scores, new_record, write_record
from analysis.show.figures import per_class_bars, training_curves
from analysis.show.tables import Cell, Column, Table, per_class_table, percent
from whitebox.config import RunConfig
from whitebox.engine.evaluate import Evaluation
from whitebox.files import write_atomically
from whitebox.terminal import print_line, table_console

RESAMPLES = 1000
SEED = 0


def report_training(folder: Path) -> None:
    """Draw the curves of ``folder/metrics.jsonl`` beside it, PNG and PDF."""
    training_curves(folder / "metrics.jsonl", folder / "curves.png")


def evaluation_record(
    evaluation: Evaluation, config: RunConfig, *, run: str, weights: Path, classes: Sequence[str], split: str
) -> Record:
    """The record of an evaluation: scores with bootstrap intervals over images, and the settings they were made with.

    The data's fingerprint covers the images' names and how many pixels of each class their labels hold.
    """
    settings = evaluation_settings(config)
    multiscale = settings["scales"] != [1.0] or settings["flip"]
    labels_NK = evaluation.counts_N3K[:, 2].tolist()
    return new_record(
        "eval",
        model=run,
        data=Data(
            name=config.data.name,
            split=split,
            images=len(evaluation.names),
            fingerprint=fingerprint(zip(evaluation.names, map(str, labels_NK), strict=True)),
        ),
        measured=measured_scores(
            evaluation.counts_N3K, classes, resamples=RESAMPLES, seed=SEED, mean_over=evaluation.mean_over
        ),
        n=len(evaluation.names),
        weights=describe_weights(weights),
        variant="multiscale" if multiscale else "",
        seeds={"bootstrap": SEED, "training": config.train.seed},
        settings=settings,
    )


def evaluation_settings(config: RunConfig) -> dict[str, Any]:
    """All that changes the numbers of an evaluation, as its record keeps it."""
    inference = config.inference
    return {
        "resamples": RESAMPLES,
        "resize": config.data.resize,
        "max_ratio": config.data.max_ratio,
        "window": inference.window,
        "stride": inference.stride,
        "scales": list(inference.scales),
        "flip": inference.flip,
        **({} if inference.scores == "shares" else {"scores": inference.scores}),  # records before it have no such key
        **({} if config.data.mean_over == "occurring" else {"mean_over": config.data.mean_over}),
    }


def report_evaluation(record: Record, evaluation: Evaluation, folder: Path) -> None:
    """Store an evaluation, write its table (CSV, Markdown, LaTeX) and bars, and show the table."""
    path = store_evaluation(record, evaluation, folder)
    table = per_class_table(record)
    table.write(folder / "tables" / path.stem)
    per_class_bars([record], folder / "figures" / f"{path.stem}.png")
    console = table_console()
    console.print(table.to_rich())
    print_line(console, f"Record: {path}")


def store_evaluation(record: Record, evaluation: Evaluation, folder: Path) -> Path:
    """Write an evaluation's record and, beside it, its per-image counts; returns the record's path.

    With the counts (``names`` (N,), ``counts`` (N, 3, K)) intervals and paired comparisons need no rerun.
    """
    path = write_record(record, folder / "records")
    write_atomically(path.with_suffix(".npz"), lambda target: _write_counts(target, evaluation))
    return path


def report_comparison(records: Sequence[Record], folder: Path) -> None:
    """Show several evaluations side by side; write the table, and bars where all have the same data."""
    first = records[0]
    name = "-".join(part for part in ("comparison", first.data.name, first.data.split, first.variant) if part)
    (table,) = render_evaluations(records, folder / "figures" / name).values()
    table.write(folder / "tables" / name)
    table_console().print(table.to_rich())


def render_evaluations(records: Sequence[Record], stem: Path) -> dict[str, Table]:
    """Classes of one evaluation, or several side by side; bars where all have the same data."""
    same = all(record.data == records[0].data for record in records)
    if same:
        per_class_bars(records, stem)
    return {"": _side_by_side(records, same) if len(records) > 1 else per_class_table(records[0])}


def _side_by_side(records: Sequence[Record], same: bool) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (record.model, *(percent(record.measured[name]) for name in ("miou", "macc", "aacc"))) for record in records
    ]
    first = records[0]
    what = f"{first.data.name} {first.data.split}, n = {first.n} images" if same else "different data"
    return Table(
        columns=(Column("Model"), Column("mIoU (%)"), Column("mAcc (%)"), Column("aAcc (%)")),
        rows=tuple(rows),
        caption=f"{what}. Brackets: 95 % interval over images, {RESAMPLES} bootstrap resamples, seed {SEED}; "
        "one training each, whose own spread they do not hold.",
    )


def _write_counts(path: Path, evaluation: Evaluation) -> None:
    with path.open("wb") as opened:
        np.savez_compressed(opened, names=np.array(evaluation.names), counts=evaluation.counts_N3K)
