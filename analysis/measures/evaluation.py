"""Accuracy of a run: mIoU and what belongs to it, with intervals over units, and the counts they come from.

The per-image counts lie beside the record (``NAME.npz``: ``names`` and ``units`` (N,), ``counts`` (N, 3, K),
``confusion`` (M, 4)), so that intervals, paired comparisons and confusion matrices need no rerun.

Several trainings of one configuration, a family, have one record more, in the folder above theirs: the mean of their
scores, with ``sd`` over them and ``seeds``, the score of each.

Layout of ``measured`` (fractions; low and high bound the 95 % interval over units, of a family over units and
trainings, see `analysis.maths.resampling`; null where a class does not occur, or there are too few units)::

    {"miou": {"value": 0.453, "low": 0.431, "high": 0.470}, "macc": {...}, "aacc": {...},
     "per_class": [{"name": "Sky", "iou": {...}, "acc": {...}, "label_share": 0.172}, ...]}
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.ask import by_main, keep, stored
from analysis.consumed import Chosen, EvaluatedImages
from analysis.maths.conventions import MEANS, RESAMPLES
from analysis.maths.resampling import Sampled, interval, sampled
from analysis.measurement import Progress
from analysis.measures.extras import (
    SEED,
    Extra,
    Stored,
    beside,
    found_extra,
    ranged_all,
    store_extra,
    with_counts,
    write_counts,
)
from analysis.record import Answer, Question, Record, RecordError, describe_weights, read_record

if TYPE_CHECKING:
    from whitebox.engine.evaluate import Evaluation
    from whitebox.runs import Run, SavedRun

KIND = "eval"

OnImage = Callable[..., object]  # index, labelled image, prediction


@dataclass(frozen=True)
class Evaluated:
    """A run's evaluation: its record, and the name it is shown under.

    Attributes:
        counts: the file of its per-image counts; of a family, that of its first training.
        also: what else was asked for, see `analysis.measures.extras`.
        members: the trainings of a family, by seed; none of a single one.
    """

    name: str
    record: Record
    counts: Path
    also: tuple[Stored, ...] = ()
    members: tuple[Evaluated, ...] = ()

    @property
    def extras(self) -> tuple[Record, ...]:
        """The records of what else was asked for."""
        return tuple(each.record for each in self.also)

    @cached_property
    def evaluation(self) -> Evaluation:
        """The per-image counts.

        Raises:
            RecordError: they cannot be read, or are not those of the record.
        """
        return read_counts(self.counts, (self.members or (self,))[0].record)

    @cached_property
    def unit_N(self) -> tuple[str, ...]:
        """The unit of each image; where none was kept, each image is one.

        Raises:
            RecordError: the counts cannot be read.
        """
        return read_units(self.counts) or self.evaluation.names

    @property
    def counts_SN3K(self) -> NDArray[np.int64]:
        """Those of all trainings.

        Raises:
            RecordError: they cannot be read, or are not those of their records.
        """
        return np.stack([each.evaluation.counts_N3K for each in self.members or (self,)])

    def kept(self, extra: Extra, index: int) -> list[Evaluation]:
        """The evaluation of each training, with what it has kept for an extra, the ``index``-th that was asked for.

        Raises:
            RecordError: the counts cannot be read.
        """
        return [with_counts(extra, each.evaluation, each.also[index]) for each in self.members or (self,)]

    def sampled(self, extra: Extra, index: int, unit_N: Sequence[object], seed: int) -> Sampled:
        """Resampled scores of an extra, see ``kept`` and ``Extra.sampled``: once, as a reference is compared often.

        Raises:
            RecordError: the counts cannot be read.
        """
        asked = (index, tuple(unit_N), seed)
        if asked not in self._sampled:
            self._sampled[asked] = extra.sampled(self.kept(extra, index), unit_N, seed)
        return self._sampled[asked]

    @cached_property
    def _sampled(self) -> dict[tuple[int, tuple[object, ...], int], Sampled]:
        return {}

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.record.seeds.get("training", 0)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all trainings."""
        return tuple(each.seed for each in self.members or (self,))


def evaluation_question(run: SavedRun | Run, images: EvaluatedImages) -> Question:
    """How accurate a run is on some images."""
    multiscale = images.settings["scales"] != [1.0] or images.settings["flip"]
    return Question(
        kind=KIND,
        model=run.name,
        data=images.data,
        weights=describe_weights(run.weights),
        variant="-".join(word for word in ("multiscale" if multiscale else "", images.word) if word),
        seeds={"bootstrap": SEED, "training": run.seed},
        settings={**images.settings, "resamples": RESAMPLES},
    )


def evaluated(
    run: SavedRun | Run,
    name: str,
    chosen: Chosen | None = None,
    output: Path | None = None,
    advance: Progress | None = None,
    *,
    again: bool = False,
    on_image: OnImage | None = None,
    extras: Sequence[Extra] = (),
) -> Evaluated:
    """The evaluation of a run: the stored one of these images and settings, else a new one, which is then stored.

    Stored ones are looked for among the records of ``output`` and of the run's folder.

    Args:
        output: where a new one is stored; None: the run's folder.
        advance: called after each image that has to be predicted.
        again: predict anew, whatever is stored.
        on_image: called with index, labelled image and prediction.
        extras: what else is wanted; what stored counts do not hold of it is predicted anew, in the same pass.

    Raises:
        WhiteboxError: the images or stored counts cannot be read, or do not fit the model.
    """
    images = EvaluatedImages(run, chosen or Chosen())
    question = evaluation_question(run, images)
    folder = output or run.folder
    folders = [] if again else list(dict.fromkeys((folder, run.folder)))
    found = _found(question, name, folders) or _renewed(question, images, name, folders)
    units = images.units
    there = [found_extra(extra, question, units, folders) for extra in extras]

    def add(evaluation: Evaluation) -> None:
        for index, extra in enumerate(extras):
            if there[index] is None:
                there[index] = store_extra(extra, question, evaluation, images.classes, units, folder)

    if found is not None and None in there:
        add(found.evaluation)
    if found is not None and None not in there:
        return replace(found, also=tuple(each for each in there if each is not None))
    from whitebox.engine.distributed import evaluate_together
    from whitebox.engine.evaluate import Kept
    from whitebox.engine.kept import tokens_kept

    opened = run.open()

    def seen(index: int, *image: object) -> None:
        if on_image is not None:
            on_image(index, *image)
        if advance is not None:
            advance(index + 1, len(images))

    with tokens_kept(opened.model, opened.config.store):
        evaluation = evaluate_together(
            opened.model,
            images.dataset,
            opened.inference,
            opened.data,
            limit=images.limit,
            on_image=seen,
            kept=reduce(lambda kept, extra: extra.wanted(kept), extras, Kept()),
        )
    found = store_evaluation(question, evaluation, images.classes, units.of_N, folder, name) if found is None else found
    add(evaluation)
    return replace(found, also=tuple(each for each in there if each is not None))


def _found(question: Question, name: str, folders: Sequence[Path]) -> Evaluated | None:
    """The stored evaluation, with its counts."""
    for folder in folders:
        counts, found = beside(folder, question), stored(question, folder / "records")
        if found is not None and counts.is_file():
            return Evaluated(name, found, counts)
    return None


def _renewed(question: Question, images: EvaluatedImages, name: str, folders: Sequence[Path]) -> Evaluated | None:
    """An evaluation with other intervals, made of counts that were stored with another unit; None: there are none.

    One of before units were known is replaced.
    """
    for path in (found for folder in folders for found in sorted((folder / "records").glob(f"{KIND}-*.json"))):
        if not path.with_suffix(".npz").is_file():
            continue
        try:
            record = read_record(path)
        except RecordError:  # of another question
            continue
        if _counted(record) == _counted(question):
            evaluation = read_counts(path.with_suffix(".npz"), record)
            renewed = store_evaluation(
                question, evaluation, images.classes, images.units.of_N, path.parent.parent, name
            )
            if "unit" not in record.settings and path.name != question.file_name:
                by_main(partial(_removed, path, path.with_suffix(".npz")))
            return renewed
    return None


def _counted(question: Question) -> tuple[object, ...]:
    """What the counts of an evaluation depend on."""
    settings = {key: value for key, value in question.settings.items() if key not in ("resamples", "unit")}
    return question.weights and question.weights.sha256, question.data, settings


def _removed(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def store_evaluation(
    question: Question,
    evaluation: Evaluation,
    classes: Sequence[str],
    unit_N: Sequence[str],
    folder: Path,
    name: str,
) -> Evaluated:
    """The record of an evaluation, written by the main process below ``folder`` with its counts beside it."""
    scores = measured_scores(evaluation.counts_N3K, classes, unit_N, mean_over=evaluation.mean_over)
    counts = beside(folder, question)
    arrays = {"units": np.array(unit_N), "counts": evaluation.counts_N3K}
    if evaluation.confusion_M4 is not None:
        arrays["confusion"] = evaluation.confusion_M4.astype(np.int32)
    write_counts(counts, evaluation.names, arrays)  # before the record, which promises them
    record = keep(question, Answer(measured=scores, n=len(evaluation.names)), folder / "records")
    return Evaluated(name, record, counts)


def read_counts(path: Path, record: Record) -> Evaluation:
    """The per-image counts stored beside an evaluation's record.

    Raises:
        RecordError: they cannot be read, or are not those of ``record``.
    """
    from whitebox.engine.evaluate import Evaluation

    try:
        with np.load(path) as arrays:
            names, counts_N3K = tuple(arrays["names"].tolist()), arrays["counts"]
            confusion_M4 = arrays["confusion"].astype(np.int64) if "confusion" in arrays else None
        found = Evaluation(names, counts_N3K, record.settings.get("mean_over", "occurring"), confusion_M4)
        miou = found.scores.miou
    except (OSError, EOFError, ValueError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise RecordError(f"The counts {path} cannot be read; delete them and their record, and repeat.") from error
    value = record.measured["miou"]["value"]
    if len(names) != record.n or not np.isclose(miou, np.nan if value is None else value, 1e-9, 1e-12, equal_nan=True):
        raise RecordError(f"The counts {path} are not those of their record; delete both, and repeat.")
    return found


def read_units(path: Path) -> tuple[str, ...]:
    """The units of images stored beside their counts; none where the counts are of before they were kept.

    Raises:
        RecordError: they cannot be read.
    """
    try:
        with np.load(path) as arrays:
            return tuple(arrays["units"].tolist()) if "units" in arrays else ()
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RecordError(f"The counts {path} cannot be read; delete them and their record, and repeat.") from error


def measured_scores(
    counts: NDArray[np.int64],
    classes: Sequence[str],
    unit_N: Sequence[object] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    mean_over: str = "occurring",
) -> dict[str, Any]:
    """``measured`` of an evaluation, from the per-image counts of N images and K classes.

    Args:
        counts: (N, 3, K), intersection, prediction and label, as `whitebox.engine.evaluate` keeps them; or those of
            several trainings, (S, N, 3, K).
        classes: the K names.
        unit_N: equal for images that belong together; None: each image is a unit.
        resamples: bootstrap draws of the 95 % intervals; note it as ``settings["resamples"]``.
        seed: of the draws; note it as ``seeds["bootstrap"]``.
        mean_over: see `whitebox.engine.metrics.scores`; note it in ``settings`` where it is not ``occurring``.

    Raises:
        DataError: there are no images, or not one unit for each.
        ConfigError: ``resamples`` below 1.
    """
    found = interval(sampled_scores(counts, unit_N, resamples, seed, mean_over), within=(0.0, 1.0))
    labels_K = np.asarray(counts)[..., 2, :].reshape(-1, len(classes)).sum(0)
    share_K = labels_K / max(1, int(labels_K.sum()))
    return laid_out_scores(
        ranged_all(found),
        classes,
        [{"label_share": float(share)} for share in share_K],
    )


def sampled_scores(
    counts: NDArray[np.int64], unit_N: Sequence[object] | None, resamples: int, seed: int, mean_over: str
) -> Sampled:
    """Resampled miou, macc, aacc, then iou and acc of each class, see `measured_scores`."""
    from whitebox.engine.metrics import score_vectors

    flat = np.asarray(counts).reshape(*counts.shape[:-2], 3 * counts.shape[-1])
    return sampled(flat, lambda sums: score_vectors(sums, mean_over), unit_N, resamples=resamples, seed=seed)


def laid_out_scores(
    scores: Sequence[Mapping[str, Any]], classes: Sequence[str], of_class: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Scores in the order of `sampled_scores`, by their names; ``of_class`` is what else is known of each class."""
    names = len(classes)
    ious, accs = scores[3 : 3 + names], scores[3 + names :]
    return {
        **dict(zip(MEANS, scores, strict=False)),
        "per_class": [
            {"name": name, "iou": iou, "acc": acc, **more}
            for name, iou, acc, more in zip(classes, ious, accs, of_class, strict=True)
        ],
    }
