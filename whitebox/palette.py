"""Colours for classes that came without."""

from __future__ import annotations

import colorsys


def distinct_palette(num_classes: int) -> tuple[tuple[int, int, int], ...]:
    """RGB colours, 0..255: hues a golden angle apart, in three tones."""
    tones = ((0.75, 0.9), (0.55, 0.65), (0.9, 0.5))
    palette = []
    for index in range(num_classes):
        red, green, blue = colorsys.hsv_to_rgb((0.02 + 0.618034 * index) % 1, *tones[index % 3])
        palette.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(palette)
