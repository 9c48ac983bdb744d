"""What generated datasets are drawn with: outlines, textures, a dim ground, and paint with a soft edge.

NumPy alone; every number comes from the generator that is given. Shapes: H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from whitebox.data.images import UInt8

Array = npt.NDArray[np.float32]


def _disc(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.85)


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(y, np.abs(x) * np.float32(0.866) - y * np.float32(0.5)) - np.float32(0.68)


def _star(x: Array, y: Array) -> Array:
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    return np.subtract(radius - np.float32(0.95), np.float32(0.2) * np.cos(5 * angle))


def _cross(x: Array, y: Array) -> Array:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 1, short - np.float32(0.48))


def _egg(x: Array, y: Array) -> Array:
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    front: Array = np.maximum(np.cos(angle), np.float32(0))
    return radius - np.float32(0.82) - np.float32(0.32) * front * front * front * front


# Below 0 inside, about 1 a radius outwards; x and y count radii.
OUTLINES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": _disc,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "egg": _egg,
}


_TURN = np.float32(2 * np.pi)


def _dots(x: Array, y: Array) -> Array:
    return np.where(np.cos(_TURN * x) + np.cos(_TURN * y) > 0.7, np.float32(1), np.float32(-0.4))


def _stripes(x: Array, y: Array) -> Array:
    return np.sign(np.cos(_TURN * x))


def _checks(x: Array, y: Array) -> Array:
    return np.sign(np.cos(_TURN * 0.6 * x) * np.cos(_TURN * 0.6 * y))


def _rings(x: Array, y: Array) -> Array:
    return np.cos(_TURN * np.hypot(x, y))


def _grid(x: Array, y: Array) -> Array:
    lines = np.maximum(np.cos(_TURN * 0.7 * x), np.cos(_TURN * 0.7 * y))
    return np.where(lines > 0.8, np.float32(1), np.float32(-0.3))


def _waves(x: Array, y: Array) -> Array:
    return np.cos(_TURN * (x + 0.4 * np.cos(_TURN * 0.5 * y)))


# Brightness in [-1, 1]; x and y count periods.
TEXTURES: dict[str, Callable[[Array, Array], Array]] = {
    "dots": _dots,
    "stripes": _stripes,
    "checks": _checks,
    "rings": _rings,
    "grid": _grid,
    "waves": _waves,
}


def ground(rng: np.random.Generator, size: int) -> Array:
    """Dim background (H, W, 3) in [0, 1]: soft clouds between two greyish colours, with grain."""
    clouds = np.zeros((size, size), np.float32)
    grid = np.linspace(0, 1, size, dtype=np.float32)
    for waves in (3, 6, 12):  # sums of a few random cosines look like clouds and cost little
        for _ in range(3):
            kx, ky, phase = rng.uniform(-waves, waves), rng.uniform(-waves, waves), rng.uniform(0, 2 * np.pi)
            column = np.exp(2j * np.pi * ky * grid + 1j * phase)
            row = np.exp(2j * np.pi * kx * grid)
            clouds += np.float32(0.5 / waves) * np.real(column[:, None] * row[None, :]).astype(np.float32)
    grain = rng.standard_normal((size, size), dtype=np.float32) * np.float32(0.22)
    mix = np.clip(0.5 + clouds + grain, 0, 1)[..., None]
    level, tints = rng.uniform(0.2, 0.45), rng.uniform(-0.035, 0.035, (2, 3))
    dark, light = (level - 0.14 + tints[0]).astype(np.float32), (level + 0.14 + tints[1]).astype(np.float32)
    return np.asarray(dark * (1 - mix) + light * mix, np.float32)


class Canvas:
    """An image (H, W, 3), float32 in about [0, 1], and its label (H, W), uint8, 0 everywhere: H = W = ``size`` px."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.image = ground(rng, size)
        self.label = np.zeros((size, size), np.uint8)
        self._rows, self._columns = np.mgrid[0:size, 0:size].astype(np.float32) + np.float32(0.5)

    def axes(self, centre_x: float, centre_y: float, turn: float) -> tuple[Array, Array]:
        """Distances from a centre along axes that are turned by an angle, each (H, W), px."""
        cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        dx, dy = self._columns - np.float32(centre_x), self._rows - np.float32(centre_y)
        return cos * dx + sin * dy, cos * dy - sin * dx

    def paint(self, inside_px: Array, colour_HW3: Array, value: int) -> None:
        """Cover what lies inside (px from the edge, (H, W)), with a soft edge of one pixel."""
        cover = np.clip(inside_px + 0.5, 0, 1)[..., None]
        self.image = self.image * (1 - cover) + colour_HW3 * cover
        self.label[inside_px >= 0] = value

    def finish(self) -> tuple[UInt8, UInt8]:
        """RGB image, with the grain of a camera, and label, uint8."""
        image = self.image + self.rng.standard_normal(self.image.shape, dtype=np.float32) * np.float32(0.05)
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), self.label
