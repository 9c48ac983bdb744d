"""The largest class of each pixel of logits that are bilinear between knots, from a few of the pixels.

Along a side of a photo, upsampled logits are lines between knots. Of two lines, one that lies above the other at both
ends lies above it between them; so a class that is the largest at both ends is the largest at each pixel between.
Where the ends differ, logits are computed at the two pixels beside the crossing of their two lines, and the part on
either side is treated alike, until its ends agree. Rows between knots are found first, at the knots of the columns
alone; then, in each row, the pixels between these.

The labels are those of logits of all pixels, but where two classes are equal to rounding.

Shapes: H W pixels, K classes, J knots of rows, k of columns, P pixels and n logits along a side, L lines, S searched
pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

_BEND = 1e-5  # two steps that differ by less are the same: shares are at most 1, and in float32
_AT_ONCE = 2**18  # logits that are compared in one go: they and what they are made of stay in a processor's cache
_FEW_PIXELS = 32  # to a knot: with fewer, all pixels are computed as fast
_MOST = 2**26  # logits at knots, which are held at once: a quarter of a GB
_MANY_PIECES = 0.5  # of all are to be searched: then, too


class Knots:
    """The pieces along a side of a photo on which logits are lines, and the knots at their ends.

    A piece ends half a pixel beyond its first and last pixels. Neighbours share a knot, but where logits jump.

    Args:
        matrix_Pn: the share that each pixel has in each of the logits along this side.

    Attributes:
        matrix_kn: the share that each knot has in them.
        piece_P: the piece that a pixel belongs to.
        place_P: where in its piece it is, from 0 at the left knot to 1 at the right one.
        left, right: the knots of each piece.
        first, length: its first pixel, and how many it has.
    """

    def __init__(self, matrix_Pn: Tensor) -> None:
        rows_Pn = matrix_Pn.numpy()
        starts = list(_starts(rows_Pn))
        self.first: Ints = np.array(starts)
        self.length: Ints = np.diff([*starts, len(rows_Pn)])
        ends: list[Floats] = []
        left: list[int] = []
        right: list[int] = []
        for first, length in zip(starts, self.length.tolist(), strict=True):
            start, last = rows_Pn[first], rows_Pn[first + length - 1]
            half = (last - start) / (2 * max(length - 1, 1))
            for end, numbers in ((start - half, left), (last + half, right)):
                if not ends or np.abs(ends[-1] - end).max() > _BEND:
                    ends.append(end)
                numbers.append(len(ends) - 1)
        self.matrix_kn = torch.from_numpy(np.stack(ends))
        self.left, self.right = np.array(left), np.array(right)
        self.piece_P = np.repeat(np.arange(len(starts)), self.length)
        self.place_P = ((np.arange(len(rows_Pn)) - self.first[self.piece_P] + 0.5) / self.length[self.piece_P]).astype(
            np.float32
        )


def _starts(rows_Pn: Floats) -> Iterator[int]:
    """First pixels of the longest pieces along which rows change by equal steps."""
    steps = np.diff(rows_Pn, axis=0)
    bends = np.flatnonzero(np.abs(np.diff(steps, axis=0)).max(1) > _BEND) + 2  # pixels that go on another way
    start = 0
    yield start
    for pixel in bends.tolist():
        if pixel > start + 1:  # two pixels are always on a line
            start = pixel
            yield start


class _Mixed(NamedTuple):
    """Logits as weighted sums of c rows of a table."""

    rows_Sc: Ints
    weights_Sc: Floats


Mixed = Callable[[Ints, Ints], _Mixed]  # of lines and knots: the logits there


def worthwhile(pixels: int, knots: float, classes: int) -> bool:
    """Whether there are few knots to the pixels, and their logits fit into little memory."""
    return pixels >= _FEW_PIXELS * knots and knots * classes <= _MOST


def labels_between(knots_JkK: Tensor, rows: Knots, columns: Knots, dtype: torch.dtype) -> Tensor | None:
    """The class of the largest logit of each pixel, the first of equals.

    Args:
        knots_JkK: logits at the knots, float32 on a processor.
        dtype: of the labels.

    Returns:
        (H, W); None where so many pieces would be searched that computing all pixels takes no longer.
    """
    J, k, K = knots_JkK.shape
    table = knots_JkK.reshape(J * k, K)
    ends_H2 = np.stack((rows.left, rows.right), axis=1)[rows.piece_P] * k
    weights_H2 = np.stack((1 - rows.place_P, rows.place_P), axis=1)

    def at_knots(line: Ints, knot: Ints) -> _Mixed:
        return _Mixed((knot * k + line)[:, None], np.ones((len(line), 1), np.float32))

    def between(line: Ints, knot: Ints) -> _Mixed:
        return _Mixed(ends_H2[line] + knot[:, None], weights_H2[line])

    largest_kJ = table.numpy().argmax(1).reshape(J, k).T
    if (searched := _searched(largest_kJ, rows)) is None:
        return None
    label_HW = torch.empty(len(rows.piece_P), len(columns.piece_P), dtype=dtype)
    edge_kH = np.empty((k, len(rows.piece_P)), label_HW.numpy().dtype)
    _fill(edge_kH, largest_kJ, searched, rows, table, at_knots)
    if (searched := _searched(edge_kH.T, columns)) is None:
        return None
    _fill(label_HW.numpy(), edge_kH.T, searched, columns, table, between)
    return label_HW


def _searched(largest_Lk: NDArray[np.integer], knots: Knots) -> tuple[Ints, Ints] | None:
    """Lines and pieces whose ends differ in their largest class; None where these are too many."""
    differ_Lq = largest_Lk[:, knots.left] != largest_Lk[:, knots.right]
    if np.count_nonzero(differ_Lq) > _MANY_PIECES * differ_Lq.size:
        return None
    line, piece = np.nonzero(differ_Lq)
    return line, piece


def _fill(
    label_LP: NDArray[np.integer],
    largest_Lk: NDArray[np.integer],
    searched: tuple[Ints, Ints],
    knots: Knots,
    table: Tensor,
    mixed: Mixed,
) -> None:
    """Write the largest class of each pixel of some lines, of which it is known at the knots."""
    pixels = label_LP.reshape(-1)  # a view: what is written here is written there
    np.take(largest_Lk, knots.left[knots.piece_P], axis=1, out=label_LP)
    line, piece = searched
    start, length = line * label_LP.shape[1] + knots.first[piece], knots.length[piece]
    left, right = knots.left[piece], knots.right[piece]
    class_a, class_b = (largest_Lk[line, knot].astype(np.int64) for knot in (left, right))
    ends = _Ends(mixed(line, left), mixed(line, right))
    # Between pixels low and high lies what is not known yet; class_a and class_b are the largest at these two.
    parts = np.stack((start - 1, start + length, class_a, class_b, class_a, np.arange(len(line)), start, length))
    while parts.shape[1]:
        low, high, class_a, class_b, _, number, start, length = parts
        behind = np.ceil(ends.crossing(table, number, class_a, class_b) * length - 0.5).astype(np.int64) + start
        behind = behind.clip(low + 1, high - 1)
        pixel_2S = np.stack((np.maximum(behind - 1, low + 1), behind))
        found_2S = ends.largest(table, np.tile(number, 2), ((pixel_2S - start + 0.5) / length).ravel()).reshape(2, -1)
        pixels[pixel_2S] = found_2S
        first, second = parts, parts.copy()
        (first[1], second[0]), (first[3], second[2]) = pixel_2S, found_2S
        parts = np.concatenate((first, second), axis=1)
        low, high, class_a, class_b, written = parts[:5]
        agree, unknown = class_a == class_b, high - low > 1
        _fill_ranges(pixels, *parts[:3, unknown & agree & (class_a != written)])
        parts = parts[:, unknown & ~agree]


class _Ends:
    """Logits at both ends of pieces."""

    def __init__(self, left: _Mixed, right: _Mixed) -> None:
        self.rows_Sc = np.concatenate((left.rows_Sc, right.rows_Sc), axis=1)
        self.weights_Sc = np.concatenate((left.weights_Sc, right.weights_Sc), axis=1)
        self.half = left.rows_Sc.shape[1]  # columns that belong to the left ends

    def crossing(self, table: Tensor, number: Ints, class_a: Ints, class_b: Ints) -> Floats:
        """Where, from 0 at the left to 1 at the right, class_b's logit begins to be the larger one."""
        places_Sc = self.rows_Sc.take(number, axis=0) * table.shape[1]
        logits = table.numpy().reshape(-1)
        above_Sc = logits.take(places_Sc + class_a[:, None]) - logits.take(places_Sc + class_b[:, None])
        above_Sc *= self.weights_Sc.take(number, axis=0)
        left, right = above_Sc[:, : self.half].sum(1), above_Sc[:, self.half :].sum(1)
        with np.errstate(all="ignore"):  # logits that are not finite cross nowhere
            return np.nan_to_num(left / (left - right)).clip(0, 1)

    def largest(self, table: Tensor, number: Ints, place: Floats) -> Ints:
        """The largest class at a place of each."""
        found = np.empty(len(number), np.int64)
        step = max(1, _AT_ONCE // table.shape[1])
        for few in (slice(first, first + step) for first in range(0, len(number), step)):
            rows_Sc, weights_Sc = (each.take(number[few], axis=0) for each in (self.rows_Sc, self.weights_Sc))
            weights_Sc[:, : self.half] *= 1 - place[few, None]
            weights_Sc[:, self.half :] *= place[few, None]
            logits_SK = F.embedding_bag(  # gathers and adds in one go
                torch.from_numpy(rows_Sc), table, per_sample_weights=torch.from_numpy(weights_Sc), mode="sum"
            )
            found[few] = logits_SK.numpy().argmax(1)
        return found


def _fill_ranges(pixels: NDArray[np.integer], low: Ints, high: Ints, of: Ints) -> None:
    """Write a class between each two pixels."""
    inside = high - low - 1
    offset = np.arange(inside.sum()) - np.repeat(np.cumsum(inside) - inside, inside)
    pixels[np.repeat(low + 1, inside) + offset] = np.repeat(of, inside)
