"""``open-shapes``: a generated dataset with an open vocabulary, whose class names are made of words.

A class is a colour, a texture and a form: "red striped star". Training sees some of the compositions; others are held
out, so that what a model knows of them it must have put together from their words. Two kinds are held out:

- ``held-out``: the composition is new, but each pair of its words (colour and texture, colour and form, texture and
  form) is in some seen class;
- ``pairs``: a pair of its words is in no seen class either, which is harder.

An image is a pure function of (seed, split, index, size), drawn with NumPy alone, as in ``whitebox.data.shapes``.

Shapes: H, W pixels.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from whitebox.data.drawing import OUTLINES, TEXTURES, Array, Canvas
from whitebox.data.images import UInt8

GROUND = "ground"
COLOURS = {"red": 0.0, "yellow": 0.15, "green": 0.35, "cyan": 0.5, "blue": 0.63, "pink": 0.86}  # name: hue
PATTERNS = {"plain": "", "striped": "stripes", "dotted": "dots", "checked": "checks"}  # name: of drawing.TEXTURES
FORMS = {"circle": "disc", "square": "square", "triangle": "triangle", "star": "star", "cross": "cross"}
WORDS = (GROUND, *COLOURS, *PATTERNS, *FORMS)
UNSEEN_PAIRS = (
    ("red", "striped"),
    ("blue", "dotted"),
    ("green", "star"),
    ("yellow", "square"),
    ("checked", "triangle"),
    ("dotted", "cross"),
)
_PORTRAITS = 4  # the stream of images that show one shape; those of scenes lie below

_HUE_JITTER = 0.02  # small, so that names stay true
_SHAPES_PER_IMAGE = (2, 4)  # low, high (exclusive)
_RADIUS = (0.22, 0.34)  # of a scene's side
_PORTRAIT = 1.5  # a portrait is a part of a scene of so many times its side
_APART = 0.8  # of the sum of two radii: shapes cover each other a little
_PERIOD = (0.11, 0.145)  # of a scene's side: finer textures are not learnt in minutes at 96 px


@dataclass(frozen=True)
class Split:
    """A stream of images, and the group of classes that they show."""

    stream: int
    group: str


SPLITS = {
    "train": Split(0, "seen"),
    "val": Split(1, "seen"),
    "held-out": Split(2, "held-out"),
    "pairs": Split(3, "pairs"),
}


@dataclass(frozen=True)
class Kind:
    """What a class looks like, in words.

    Attributes:
        group: ``seen``, ``held-out`` or ``pairs``.
    """

    colour: str
    pattern: str
    form: str
    group: str

    @property
    def name(self) -> str:
        """The class name."""
        return f"{self.colour} {self.pattern} {self.form}"

    @property
    def words(self) -> tuple[str, str, str]:
        """Colour, pattern and form."""
        return self.colour, self.pattern, self.form


def _group(c: int, t: int, f: int, words: tuple[str, str, str]) -> str:
    if any(first in words and second in words for first, second in UNSEEN_PAIRS):
        return "pairs"
    return "held-out" if (c + t + f) % 4 == 0 else "seen"  # of each pair about a quarter


KINDS = tuple(
    Kind(colour, pattern, form, _group(c, t, f, (colour, pattern, form)))
    for c, colour in enumerate(COLOURS)
    for t, pattern in enumerate(PATTERNS)
    for f, form in enumerate(FORMS)
)
CLASSES = (GROUND, *(kind.name for kind in KINDS))


def names(group: str) -> tuple[str, ...]:
    """Ground and the names of a group (``seen``, ``held-out``, ``pairs``), or of ``all``."""
    return (GROUND, *(kind.name for kind in KINDS if group in (kind.group, "all")))


def palette(classes: tuple[str, ...]) -> tuple[tuple[int, int, int], ...]:
    """RGB colours of classes: the hue is that of the name, the shade tells patterns and forms apart."""
    colours = {GROUND: (64, 68, 76)}
    for kind in KINDS:
        pattern, form = list(PATTERNS).index(kind.pattern), list(FORMS).index(kind.form)
        saturation = 1 - 0.7 * form / len(FORMS)
        value = 1 - 0.6 * pattern / len(PATTERNS)
        red, green, blue = colorsys.hsv_to_rgb(COLOURS[kind.colour], saturation, value)
        colours[kind.name] = (round(255 * red), round(255 * green), round(255 * blue))
    return tuple(colours[name] for name in classes)


def draw(seed: int, split: str, index: int, size: int) -> tuple[UInt8, UInt8]:
    """One scene and its label: two or three shapes of the split's classes on a dim ground.

    Args:
        seed: of the whole dataset.
        split: a key of ``SPLITS``; each is another stream of images.
        index: of the image in its split, 0 or more.
        size: side, px.

    Returns:
        RGB image (H, W, 3) and label (H, W), uint8, H = W = ``size``; labels index ``CLASSES``.
    """
    drawn = SPLITS[split]
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(drawn.stream, index)))
    canvas = Canvas(rng, size)
    candidates = [value for value, kind in enumerate(KINDS, start=1) if kind.group == drawn.group]
    placed: list[tuple[float, float, float]] = []
    for value in rng.choice(candidates, rng.integers(*_SHAPES_PER_IMAGE), replace=False):
        radius, centre_x, centre_y = _place(rng, placed)
        placed.append((radius, centre_x, centre_y))
        _paint(canvas, int(value), size, radius, centre_x * size, centre_y * size)
    return canvas.finish()


def portrait(seed: int, index: int, size: int, group: str = "seen") -> tuple[UInt8, int]:
    """One shape that fills the image, or now and then bare ground: what a caption describes.

    Shapes are as large, in pixels, as in scenes of one and a half times the side.

    Returns:
        RGB image (H, W, 3), uint8, H = W = ``size`` px, and its class, an index of ``CLASSES``.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_PORTRAITS, index)))
    canvas = Canvas(rng, size)
    candidates = [value for value, kind in enumerate(KINDS, start=1) if group in (kind.group, "all")]
    value = 0 if rng.uniform() < 0.05 else int(rng.choice(candidates))
    if value:
        centre_x, centre_y = (0.5 + rng.uniform(-0.06, 0.06, 2)) * size
        _paint(canvas, value, _PORTRAIT * size, rng.uniform(*_RADIUS), centre_x, centre_y)
    return canvas.finish()[0], value


def _place(rng: np.random.Generator, placed: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Radius and centre of one more shape, shares of the side; far enough from the others where a try finds room."""
    radius = float(rng.uniform(*_RADIUS))
    tries = rng.uniform(0.15, 0.85, (12, 2))
    for x, y in tries:
        if all(np.hypot(x - left, y - top) >= _APART * (radius + other) for other, left, top in placed):
            break
    return radius, float(x), float(y)


def _paint(canvas: Canvas, value: int, side: float, share: float, centre_x: float, centre_y: float) -> None:
    """One shape, whose radius is a share of a scene's side (px)."""
    kind, rng, radius = KINDS[value - 1], canvas.rng, share * side
    x, y = canvas.axes(centre_x, centre_y, rng.uniform(0, 2 * np.pi))
    stretch = np.float32(rng.uniform(0.9, 1.1))
    inside_px = -np.float32(radius) * OUTLINES[FORMS[kind.form]](
        x * stretch / np.float32(radius), y / stretch / np.float32(radius)
    )
    hue = (COLOURS[kind.colour] + rng.uniform(-_HUE_JITTER, _HUE_JITTER)) % 1
    colour = np.asarray(colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.95), rng.uniform(0.6, 0.9)), np.float32)
    period, depth = np.float32(side * rng.uniform(*_PERIOD)), np.float32(rng.uniform(0.3, 0.45))
    canvas.paint(inside_px, colour * (1 + depth * _pattern(kind.pattern, x / period, y / period))[..., None], value)


def _pattern(name: str, x: Array, y: Array) -> Array:
    texture = PATTERNS[name]
    return TEXTURES[texture](x, y) if texture else np.zeros_like(x)
