"""Why a model could learn nothing, or nothing right, from the labels of a split: the words of training and of check."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from whitebox.data.images import IGNORE, Label, read_label
from whitebox.data.readers import FileSource, Source
from whitebox.errors import DataError

MOST_LABELS = 200  # read of a split, spread over it
SECONDS = 0.8  # for the labels of a split; what is not read by then is not
_THREADS = 8
ONE_CLASS = "there is one class, so every pixel is right from the first step: add a class for all the rest (background)"


def hopeless(split: str, classes: Sequence[str], table_V: Label, pixels_V: npt.NDArray[np.int64]) -> str | None:
    """The one line about labels that can teach nothing; None where they can.

    Args:
        split: its name.
        classes: K names.
        table_V: class index of each stored value, see ``whitebox.data.readers.label_table``.
        pixels_V: how often each stored value occurs.
    """
    pixels_K = np.bincount(table_V, weights=pixels_V, minlength=len(classes))[: len(classes)]
    present = np.flatnonzero(pixels_K)
    if not pixels_V.sum() or len(classes) == 1 or len(present) > 1:
        return None
    stored = np.flatnonzero(pixels_V).tolist()
    if stored == [0, IGNORE] and table_V[IGNORE] == IGNORE:
        counts = f"only {classes[present[0]]!r} counts" if len(present) else "nothing counts"
        return (
            f"{split}: labels hold 0 and 255 alone, and 255 is ignored, so {counts}: where 255 means {classes[1]!r}, "
            "say so with data.label_map={0:0,255:1}."
        )
    if not len(present):
        return f"{split}: no label has a pixel of any class."
    return f"{split}: no label has a pixel of any class but {classes[present[0]]!r}: there is nothing to tell apart."


def look_at_labels(source: Source, split: str, *, learned: bool = False, limit: int | None = None) -> list[str]:
    """Read up to ``MOST_LABELS`` labels, spread over a split, for at most ``SECONDS``.

    Args:
        source: the split's images; what is drawn is not looked at.
        split: its name.
        learned: whether a model is to learn from them, and so needs two classes.
        limit: only the first labels are used.

    Returns:
        What may be wrong, where not all labels were read or one class may be right; a line, or nothing.

    Raises:
        DataError: a label cannot be read, holds a value without a class, or all of them can teach nothing.
    """
    if not isinstance(source, FileSource):
        return []
    count = min(limit or len(source.pairs), len(source.pairs))
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_LABELS)).astype(int))

    def counted(index: int) -> npt.NDArray[np.int64]:
        stored = read_label(source.pairs[index].label, len(source.table_V))
        source.classes_of(index, stored)
        return np.bincount(stored.ravel(), minlength=len(source.table_V))

    pixels_V, done, until = np.zeros(len(source.table_V), np.int64), 0, time.monotonic() + SECONDS
    order = np.random.default_rng(0).permutation(chosen).tolist()  # a part of them is spread over the split too
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(order), _THREADS):
            if time.monotonic() > until:
                break
            for counts_V in pool.map(counted, order[start : start + _THREADS]):
                pixels_V += counts_V
                done += 1
    problem = hopeless(split, source.classes, source.table_V, pixels_V)
    if problem is None:
        return []
    nothing = not (source.table_V[pixels_V > 0] < len(source.classes)).any()
    if (learned or nothing) and (done == count or "0 and 255" in problem):
        raise DataError(problem)
    return [problem if done == count else f"{problem} Seen in {done} labels of {count}."]
