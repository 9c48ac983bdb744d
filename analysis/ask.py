"""A question and its answer, read where it has been asked before, else measured and stored; and the loop over runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.consumed import Chosen, Photos
from analysis.measurement import Measurement, Progress
from analysis.record import Answer, Question, Record, RecordError, new_record, read_record, write_record

if TYPE_CHECKING:
    from whitebox.runs import Run, SavedRun

log = logging.getLogger("whitebox")
Bar = Callable[[str], AbstractContextManager[Progress]]


def measure_runs(
    measurement: Measurement,
    runs: Iterable[SavedRun | Run],
    chosen: Chosen,
    bar: Bar,
    *,
    folder: Path | None = None,
    again: bool = False,
) -> list[Record]:
    """Ask one run after another; each record is stored as soon as it is there.

    Args:
        runs: models are loaded only where something has to be measured, and let go.
        bar: a progress bar with a title.
        folder: that of the records is below it; None: below each run's own.
        again: measure anew what has been measured.

    Raises:
        WhiteboxError: of the measurement, or what is stored cannot be read.
    """
    return [_measured(measurement, run, chosen, bar, folder or run.folder, again) for run in runs]


def _measured(
    measurement: Measurement, run: SavedRun | Run, chosen: Chosen, bar: Bar, folder: Path, again: bool
) -> Record:
    consumed = measurement.consumes(run, chosen)

    def answer() -> Answer:
        with bar(f"{measurement.kind}: {run.name}") as advance:
            return measurement.measure(run.open(), consumed, advance)

    record = ask(measurement.question(run, consumed), answer, folder / "records", again=again)
    return consumed.found_again(record) if isinstance(consumed, Photos) else record


def ask(question: Question, answer: Callable[[], Answer], folder: Path, *, again: bool = False) -> Record:
    """The record of a question.

    Of several processes all measure where there is something to measure; the main one decides that, and stores.

    Args:
        answer: measures.
        folder: of records; its file of this name is read.
        again: measure anew, whatever is there.

    Raises:
        RecordError: what is stored cannot be read.
        OutputError: the folder cannot be written.
        WhiteboxError: of the measurement.
    """
    found = None if again else _agreed(lambda: stored(question, folder))
    return keep(question, answer(), folder) if found is None else found


def stored(question: Question, folder: Path) -> Record | None:
    """The record of a question that was asked before; None: it was not.

    Raises:
        RecordError: what is stored cannot be read.
    """
    path = folder / question.file_name
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except RecordError as error:
        raise RecordError(f"{str(error).removesuffix('Measure again.')}With --again it is measured anew.") from error
    if record.identity != question.identity:
        raise RecordError(f"{path} does not hold what its name says. With --again it is measured anew.")
    log.info("Measured before: %s", path)
    return record


def keep(question: Question, answer: Answer, folder: Path) -> Record:
    """The record of an answer, written to ``folder`` by the main process.

    Raises:
        OutputError: the folder cannot be written.
    """
    record = new_record(question, answer)
    by_main(lambda: _written(record, folder))
    return record


def by_main(action: Callable[[], None]) -> None:
    """Do it on the main process; where several still work together, the others wait, and fail as it does."""
    if not _several():
        action()
        return
    from torch import distributed

    from whitebox.engine.distributed import on_main

    if distributed.is_initialized():
        on_main(action)
    elif os.environ.get("RANK", "0") == "0":  # a training has parted from the others
        action()


def _written(record: Record, folder: Path) -> None:
    write_record(record, folder)


def _agreed(look: Callable[[], Record | None]) -> Record | None:
    """What the main process sees, for all: while one looks, another may have measured already."""
    if not _several():
        return look()
    from whitebox.engine.distributed import gathered, on_main

    found: list[Record | None] = [None]
    on_main(lambda: found.__setitem__(0, look()))
    return gathered(found[0])[0]


def _several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1
