"""Why a model could learn nothing, or nothing right, from the labels of a split: the words of training and of check."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from whitebox.data.images import IGNORE, Label

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
