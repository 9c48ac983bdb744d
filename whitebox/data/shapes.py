"""``shapes``: a generated dataset that needs no download and is learnt in minutes on a CPU.

Large overlapping shapes lie on a dim, textured ground. Every class has an outline, a hue and a texture of its own, each
with jitter: where a shape is half covered, its colour and texture still tell the class. An image is a pure function of
(seed, split, index, size), drawn with NumPy alone.

Shapes: H, W pixels.
"""

from __future__ import annotations

import colorsys

import numpy as np

from whitebox.data.drawing import OUTLINES, TEXTURES, Canvas
from whitebox.data.images import UInt8

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

_OUTLINES, _TEXTURES = tuple(OUTLINES.values()), tuple(TEXTURES.values())  # of the classes after background
_HUES = (0.01, 0.13, 0.34, 0.51, 0.63, 0.84)  # in turns
_HUE_JITTER = 0.08
_SHAPES_PER_IMAGE = (3, 7)  # low, high (exclusive)
_RADIUS = (0.24, 0.38)  # of the image's side


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
    canvas = Canvas(rng, size)
    for kind in rng.permutation(len(_OUTLINES))[: rng.integers(*_SHAPES_PER_IMAGE)]:
        radius = np.float32(rng.uniform(*_RADIUS) * size)
        centre_x, centre_y = rng.uniform(0.08, 0.92, 2) * size
        x, y = canvas.axes(centre_x, centre_y, rng.uniform(0, 2 * np.pi))
        stretch = np.float32(rng.uniform(0.85, 1.15))
        inside_px = -radius * _OUTLINES[kind](x * stretch / radius, y / stretch / radius)

        period = np.float32(size * rng.uniform(0.055, 0.085))
        hue = (_HUES[kind] + rng.uniform(-_HUE_JITTER, _HUE_JITTER)) % 1
        saturation, value = rng.uniform(0.35, 0.9), rng.uniform(0.55, 0.95)
        colour = np.asarray(colorsys.hsv_to_rgb(hue, saturation, value), np.float32)
        depth = np.float32(rng.uniform(0.14, 0.26))
        canvas.paint(inside_px, colour * (1 + depth * _TEXTURES[kind](x / period, y / period))[..., None], kind + 1)
    return canvas.finish()
