"""Measurements asked without a command, and without a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from analysis.consumed import Chosen, Images
from analysis.measurement import KINDS, Measurement, Progress
from analysis.measures.samples import Sample
from analysis.record import Answer, Question, Record, new_record
from analysis.show.tables import Table
from whitebox.runs import Run, SavedRun


def nothing(done: int, of: int) -> None:
    """Progress that nobody watches."""


@contextmanager
def no_bar(title: str) -> Iterator[Progress]:
    """A bar that nobody watches."""
    yield nothing


def asked(
    measurement: Measurement,
    run: Run | SavedRun,
    split: str | None = None,
    limit: int | None = None,
    photos: Sequence[Path] = (),
    advance: Progress = nothing,
) -> Record:
    """The record of a measurement that is made now, and stored nowhere."""
    consumed = measurement.consumes(run, Chosen(split, limit, tuple(photos)))
    question = measurement.question(run, consumed)
    return new_record(question, measurement.measure(run.open(), consumed, advance))


def shown(records: Sequence[Record], stem: Path) -> dict[str, Table]:
    """Draws records of one kind at ``stem``, and gives their tables."""
    module = import_module(KINDS[records[0].kind].shown)
    module.figures(records, stem)
    tables: dict[str, Table] = module.tables(records)
    return tables


def samples_of(run: Run, limit: int) -> list[Sample]:
    """The first images as measurements see them."""
    return list(Images(run, Chosen(limit=limit)).each(run))


def made_up(kind: str, command: Sequence[str] | None = None, **values: Any) -> Record:
    """A record of what nobody has measured."""
    answer = Answer(**{key: values.pop(key) for key in ("measured", "n", "reported") if key in values})
    return new_record(Question(kind=kind, **values), answer, command)
