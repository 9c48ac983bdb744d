"""``shapes``: a generated dataset that needs no download and is learnt in minutes on a CPU.

Large overlapping shapes lie on a dim, textured ground. Every class has an outline, a hue and a texture of its own, each
with jitter: where a shape is half covered, its colour and texture still tell the class. An image is a pure function of
(seed, split, index, size), drawn with NumPy alone.

Shapes: H, W pixels.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from whitebox.data.images import UInt8

Array = npt.NDArray[np.float32]

CLASSES = ("background", "disc", "square", "triangle", "star", "cross", "egg")
PALETTE = (
    (64, 68, 76),
    (226, 60, 52),
    (240, 196, 40),
    (64, 176, 76),
    (44, 190, 208),
    (60, 88, 220),
    (196, 72, 206),
)
SPLITS = {"train": 0, "val": 1, "test": 2}

_HUES = (0.01, 0.13, 0.34, 0.51, 0.63, 0.84)  # of the classes after background, in turns
_HUE_JITTER = 0.08
_SHAPES_PER_IMAGE = (3, 7)  # low, high (exclusive)
_RADIUS = (0.24, 0.38)  # of the image's side


def _disc(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 1


def _square(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.85)


def _triangle(x: Array, y: Array) -> Array:
    return np.maximum(y, np.abs(x) * np.float32(0.866) - y * np.float32(0.5)) - np.float32(0.68)


def _star(x: Array, y: Array) -> Array:
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    return radius - np.float32(0.95) - np.float32(0.2) * np.cos(5 * angle)


def _cross(x: Array, y: Array) -> Array:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 1, short - np.float32(0.48))


def _egg(x: Array, y: Array) -> Array:
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    front: Array = np.maximum(np.cos(angle), np.float32(0))
    return radius - np.float32(0.82) - np.float32(0.32) * front * front * front * front


_OUTLINES: tuple[Callable[[Array, Array], Array], ...] = (_disc, _square, _triangle, _star, _cross, _egg)


def _texture(kind: int, x: Array, y: Array) -> Array:
    """Brightness pattern in [-1, 1] of class ``kind`` + 1; x and y count periods."""
    turn = np.float32(2 * np.pi)
    if kind == 0:  # dots
        return np.where(np.cos(turn * x) + np.cos(turn * y) > 0.7, np.float32(1), np.float32(-0.4))
    if kind == 1:  # stripes
        return np.sign(np.cos(turn * x))
    if kind == 2:  # checks
        return np.sign(np.cos(turn * 0.6 * x) * np.cos(turn * 0.6 * y))
    if kind == 3:  # rings
        return np.cos(turn * np.hypot(x, y))
    if kind == 4:  # grid
        lines = np.maximum(np.cos(turn * 0.7 * x), np.cos(turn * 0.7 * y))
        return np.where(lines > 0.8, np.float32(1), np.float32(-0.3))
    return np.cos(turn * (x + 0.4 * np.cos(turn * 0.5 * y)))  # waves


def _ground(rng: np.random.Generator, size: int) -> Array:
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


def draw(seed: int, split: str, index: int, size: int) -> tuple[UInt8, UInt8]:
    """One image and its label.

    Args:
        seed: of the whole dataset.
        split: ``train``, ``val`` or ``test``; each is another stream of images.
        index: of the image in its split, 0 or more.
        size: side, px.

    Returns:
        RGB image (H, W, 3) and label (H, W), uint8, H = W = ``size``; labels index ``CLASSES``.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(SPLITS[split], index)))
    image = _ground(rng, size)
    label = np.zeros((size, size), np.uint8)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) + np.float32(0.5)
    for kind in rng.permutation(len(_OUTLINES))[: rng.integers(*_SHAPES_PER_IMAGE)]:
        radius = np.float32(rng.uniform(*_RADIUS) * size)
        centre_x, centre_y = rng.uniform(0.08, 0.92, 2) * size
        turn = rng.uniform(0, 2 * np.pi)
        cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        dx, dy = columns - np.float32(centre_x), rows - np.float32(centre_y)
        x, y = cos * dx + sin * dy, cos * dy - sin * dx
        stretch = np.float32(rng.uniform(0.85, 1.15))
        inside_px = -radius * _OUTLINES[kind](x * stretch / radius, y / stretch / radius)

        period = size * rng.uniform(0.055, 0.085)
        hue = (_HUES[kind] + rng.uniform(-_HUE_JITTER, _HUE_JITTER)) % 1
        saturation, value = rng.uniform(0.35, 0.9), rng.uniform(0.55, 0.95)
        colour = np.asarray(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)
        pattern = _texture(int(kind), x / np.float32(period), y / np.float32(period))
        depth = np.float32(rng.uniform(0.14, 0.26))
        paint = colour * (1 + depth * pattern)[..., None]

        cover = np.clip(inside_px + 0.5, 0, 1)[..., None]  # soft edge of one pixel
        image = image * (1 - cover) + paint * cover
        label[inside_px >= 0] = kind + 1
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(0.05)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8), label
