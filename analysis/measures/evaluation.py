"""Accuracy of a run: mIoU and what belongs to it, with intervals over images, and the counts they come from.

The per-image counts lie beside the record (``NAME.npz``: ``names`` (N,), ``counts`` (N, 3, K), ``confusion`` (M, 4)),
so that intervals, paired comparisons and confusion matrices need no rerun.

Layout of ``measured`` (fractions; low and high bound the 95 % interval over images; null where a class does not
occur)::

    {"miou": {"value": 0.453, "low": 0.431, "high": 0.470}, "macc": {...}, "aacc": {...},
     "per_class": [{"name": "Sky", "iou": {...}, "acc": {"value": 0.912}, "label_share": 0.172}, ...]}
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.ask import keep, stored
from analysis.consumed import Chosen, EvaluatedImages
from analysis.maths.conventions import RESAMPLES
from analysis.maths.intervals import ranged
from analysis.measurement import Progress
from analysis.measures.extras import Extra, beside, found_extra, store_extra, write_counts
from analysis.record import Answer, Question, Record, RecordError, describe_weights
from whitebox.data.units import units_of

if TYPE_CHECKING:
    from whitebox.engine.evaluate import Evaluation
    from whitebox.runs import Run, SavedRun

KIND = "eval"
SEED = 0  # of the bootstrap

OnImage = Callable[..., object]  # index, labelled image, prediction


@dataclass(frozen=True)
class Evaluated:
    """A run's evaluation: its record, and the name it is shown under.

    Attributes:
        counts: the file of its per-image counts.
        extras: records of what else was asked for, see `analysis.measures.extras`.
    """

    name: str
    record: Record
    counts: Path
    extras: tuple[Record, ...] = ()

    @cached_property
    def evaluation(self) -> Evaluation:
        """The per-image counts.

        Raises:
            RecordError: they cannot be read, or are not those of the record.
        """
        return read_counts(self.counts, self.record)


def evaluation_question(run: SavedRun | Run, images: EvaluatedImages) -> Question:
    """How accurate a run is on some images."""
    multiscale = images.settings["scales"] != [1.0] or images.settings["flip"]
    return Question(
        kind=KIND,
        model=run.name,
        data=images.data,
        weights=describe_weights(run.weights),
        variant="multiscale" if multiscale else "",
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
    found = _found(question, name, folders)
    units = units_of(images.config, images.names)
    there = [found_extra(extra, question, units, folders) for extra in extras]

    def add(evaluation: Evaluation) -> None:
        for index, extra in enumerate(extras):
            if there[index] is None:
                there[index] = store_extra(extra, question, evaluation, images.classes, units, folder)

    if found is not None and None in there:
        add(found.evaluation)
    if found is not None and None not in there:
        return replace(found, extras=tuple(record for record in there if record is not None))
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
    found = store_evaluation(question, evaluation, images.classes, folder, name) if found is None else found
    add(evaluation)
    return replace(found, extras=tuple(record for record in there if record is not None))


def _found(question: Question, name: str, folders: Sequence[Path]) -> Evaluated | None:
    """The stored evaluation, with its counts."""
    for folder in folders:
        counts, found = beside(folder, question), stored(question, folder / "records")
        if found is not None and counts.is_file():
            return Evaluated(name, found, counts)
    return None


def store_evaluation(
    question: Question, evaluation: Evaluation, classes: Sequence[str], folder: Path, name: str
) -> Evaluated:
    """The record of an evaluation, written by the main process below ``folder`` with its counts beside it."""
    scores = measured_scores(
        evaluation.counts_N3K, classes, resamples=RESAMPLES, seed=SEED, mean_over=evaluation.mean_over
    )
    counts = beside(folder, question)
    arrays = {"counts": evaluation.counts_N3K}
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


def measured_scores(
    counts_N3K: NDArray[np.int64],
    classes: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
    mean_over: str = "occurring",
) -> dict[str, Any]:
    """``measured`` of an evaluation, from the per-image counts of N images and K classes.

    Args:
        counts_N3K: intersection, prediction and label, as `whitebox.engine.evaluate` keeps them.
        classes: the K names.
        resamples: bootstrap draws of the 95 % intervals; note it as ``settings["resamples"]``.
        seed: of the draws; note it as ``seeds["bootstrap"]``.
        mean_over: see `whitebox.engine.metrics.scores`; note it in ``settings`` where it is not ``occurring``.

    Raises:
        DataError: there are no images.
        ConfigError: ``resamples`` below 1.
    """
    from whitebox.engine.metrics import bootstrap, scores

    found = scores(counts_N3K, mean_over)
    interval = bootstrap(counts_N3K, resamples, seed, mean_over=mean_over)
    labels_K = counts_N3K[:, 2].sum(0)
    share_K = labels_K / max(1, int(labels_K.sum()))

    return {
        "miou": ranged(found.miou, interval.miou),
        "macc": ranged(found.macc, interval.macc),
        "aacc": ranged(found.aacc, interval.aacc),
        "per_class": [
            {
                "name": name,
                "iou": ranged(found.iou_K[index], interval.iou_K2[index].tolist()),
                "acc": {"value": float(found.acc_K[index])},
                "label_share": float(share_K[index]),
            }
            for index, name in enumerate(classes)
        ],
    }
