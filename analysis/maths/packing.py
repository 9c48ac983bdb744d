"""Arrays as text, for records: numbers of a patch grid, and symmetric matrices that are to be looked at.

Shapes: h w patch grid, M side of a matrix.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

DIGITS = 5  # significant, of numbers per patch in a record
_LEVELS = 127  # of a packed matrix: steps from 0 to its largest entry


def pack(values_hw: ArrayLike) -> list[str]:
    """Numbers of a patch grid as text, one line a row, to `DIGITS` significant digits."""
    return [" ".join(f"{value:.{DIGITS}g}" for value in row) for row in np.asarray(values_hw).tolist()]


def unpack(lines: Sequence[str]) -> Array:
    """What `pack` has packed, (h, w) float64."""
    return np.array([[float(value) for value in line.split()] for line in lines], dtype=np.float64)


PICTURE = {"side", "peak", "values"}  # keys of what `packed` gives


def packed(symmetric_MM: Array) -> dict[str, Any]:
    """A symmetric matrix for a heat map: its upper triangle, row by row, as bytes in base64, in steps of peak / 127.

    Tables hold numbers of the full matrix; the packed one is for looking at.
    """
    peak = float(np.abs(symmetric_MM).max())
    triangle = symmetric_MM[np.triu_indices(len(symmetric_MM))]
    levels = np.rint(triangle / (peak or 1.0) * _LEVELS).astype(np.int8)
    return {"side": len(symmetric_MM), "peak": peak, "values": base64.b64encode(levels.tobytes()).decode("ascii")}


def unpacked(stored: Mapping[str, Any]) -> Array:
    """The matrix that `packed` was given, to a half step."""
    levels = np.frombuffer(base64.b64decode(stored["values"]), np.int8).astype(np.float64)
    matrix = np.zeros((stored["side"], stored["side"]))
    matrix[np.triu_indices(stored["side"])] = levels * (stored["peak"] / _LEVELS)
    return np.triu(matrix) + np.triu(matrix, 1).T
