"""What an evaluation can count beyond accuracies: each is a kind of record of its own, of the same pass.

An extra says what the engine is to keep of each image (`Kept`), which arrays of it lie beside the record (``NAME.npz``,
with the images' ``names``), so that intervals over units and trainings need no rerun, and what the record says.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.ask import by_main, keep, stored
from analysis.maths.intervals import ranged
from analysis.record import Answer, Question, Record, RecordError
from whitebox.data.units import Units
from whitebox.files import write_atomically

if TYPE_CHECKING:
    from analysis.maths.resampling import Interval, Sampled
    from whitebox.engine.evaluate import Evaluation, Kept

SEED = 0  # of the bootstrap


class Compared(NamedTuple):
    """A score: where it is among the sampled ones, and the most that two models can differ in it."""

    place: int
    most: float = 1.0


@dataclass(frozen=True)
class Extra:
    """A kind of record that an evaluation leaves when asked to."""

    kind: ClassVar[str]
    counted: ClassVar[bool] = True  # it has counts of its own, beside its record
    compared: ClassVar[Mapping[str, Compared]] = {}  # what two models are compared by, by name

    @property
    def settings(self) -> Mapping[str, Any]:
        """What of it changes the numbers."""
        return {}

    def wanted(self, kept: Kept) -> Kept:
        """``kept``, and what this needs beyond what every evaluation keeps."""
        return kept

    def arrays(self, evaluation: Evaluation) -> dict[str, NDArray[Any]] | None:
        """What lies beside the record, if anything does; None: the evaluation has not kept what this needs."""
        return {}

    def restored(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Fields of an `Evaluation` from what lies beside the record: the way back from `arrays`."""
        return {}

    def sampled(self, evaluations: Sequence[Evaluation], unit_N: Sequence[object] | None, seed: int = SEED) -> Sampled:
        """Resampled scores, among them those that are ``compared``.

        Args:
            evaluations, unit_N: see `measured`.
            seed: of the draws.
        """
        raise NotImplementedError

    def measured(
        self, evaluations: Sequence[Evaluation], classes: Sequence[str], unit_N: Sequence[object] | None
    ) -> dict[str, Any]:
        """What the record says.

        Args:
            evaluations: that have kept it: one, or those of several trainings on the same images.
            unit_N: equal for images that belong together; None: all are independent.
        """
        raise NotImplementedError


def ranged_all(found: Interval, least: ArrayLike = 0.0, most: ArrayLike = 1.0) -> list[dict[str, Any]]:
    """Estimates as records store them; intervals end where no value can be, ``least`` and ``most``.

    Of several trainings with ``sd`` over them, and ``seeds``, the value of each.
    """
    cut = replace(found, low_M=np.maximum(found.low_M, least), high_M=np.minimum(found.high_M, most))
    return [stored_interval(cut, index) for index in range(len(cut.value_M))]


def stored_interval(found: Interval, index: int) -> dict[str, Any]:
    """One score as records store it; of several trainings with their spread, and the score of each."""
    stored: dict[str, Any] = ranged(found.value_M[index], (found.low_M[index], found.high_M[index]))
    if len(found.values_SM) > 1:
        stored |= {"sd": float(found.sd_M[index]), "seeds": found.values_SM[:, index].tolist()}
    return stored


def extra_question(extra: Extra, accuracy: Question, units: Units) -> Question:
    """The question of an extra, of the evaluation that ``accuracy`` asks for."""
    return Question(
        kind=extra.kind,
        model=accuracy.model,
        data=accuracy.data,
        weights=accuracy.weights,
        variant=accuracy.variant,
        seeds=accuracy.seeds,
        settings={**accuracy.settings, "unit": units.described, **extra.settings},
    )


class Stored(NamedTuple):
    """The record of an extra, and the file of its counts, where it has its own."""

    record: Record
    counts: Path


def found_extra(extra: Extra, accuracy: Question, units: Units, folders: Sequence[Path]) -> Stored | None:
    """What is stored of an extra, with its counts beside it; None: there is none.

    Raises:
        RecordError: what is stored cannot be read.
    """
    question = extra_question(extra, accuracy, units)
    for folder in folders:
        found = stored(question, folder / "records")
        if found is not None and (not extra.counted or beside(folder, question).is_file()):
            return Stored(found, beside(folder, question))
    return None


def store_extra(
    extra: Extra,
    accuracy: Question,
    evaluation: Evaluation,
    classes: Sequence[str],
    units: Units,
    folder: Path,
) -> Stored | None:
    """Store an extra with its counts; None: the evaluation has not kept what it needs.

    Raises:
        OutputError: the folder cannot be written.
    """
    arrays = extra.arrays(evaluation)
    if arrays is None:
        return None
    question = extra_question(extra, accuracy, units)
    if arrays:  # before the record, which promises them
        write_counts(beside(folder, question), evaluation.names, arrays)
    answer = Answer(measured=extra.measured([evaluation], classes, units.of_N), n=len(evaluation.names))
    return Stored(keep(question, answer, folder / "records"), beside(folder, question))


def with_counts(extra: Extra, evaluation: Evaluation, own: Stored) -> Evaluation:
    """An evaluation with what it has kept for an extra.

    Raises:
        RecordError: the counts of the extra cannot be read, or are of other images.
    """
    if not extra.counted:
        return evaluation
    try:
        with np.load(own.counts) as arrays:
            names, kept = tuple(arrays["names"].tolist()), extra.restored(arrays)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RecordError(f"The counts {own.counts} cannot be read; delete them, and repeat.") from error
    if names != evaluation.names or any(len(each) != len(names) for each in kept.values()):
        raise RecordError(f"The counts {own.counts} are of other images; delete them, and repeat.")
    return replace(evaluation, **kept)


def beside(folder: Path, question: Question) -> Path:
    """The file of the counts beside a record below ``folder``."""
    return (folder / "records" / question.file_name).with_suffix(".npz")


def write_counts(path: Path, names: Sequence[str], arrays: Mapping[str, Any]) -> None:
    """Counts of images beside a record; written by the main process."""

    def write(file: Path) -> None:
        with file.open("wb") as opened:
            np.savez_compressed(opened, names=np.array(names), **arrays)

    by_main(lambda: write_atomically(path, write))
