"""One picture of a dataset: what is stored, and what training sees of it.

Each sample is a row of four: the photo, its label, an augmented view, and the view's label; of two where the dataset is
for evaluation only. Shapes: H, W pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from whitebox.config import DataConfig
from whitebox.data import build_dataset
from whitebox.data.readers import Palette
from whitebox.errors import ConfigError, DataError
from whitebox.text import drawn, drawn_lines, font

_HEIGHT = 200  # px of each panel
_GAP = 6
_TEXT = 14  # px
_INK, _PAPER, _IGNORED = "#202020", "#ffffff", (0, 0, 0)
_HEADS = ("photo", "label", "training view", "its label")


def show_dataset(
    config: DataConfig,
    split: str,
    count: int,
    output: str | os.PathLike[str],
    mean_255: tuple[float, float, float],
    seed: int = 0,
    on_image: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Write a picture of ``count`` samples drawn at random.

    Args:
        config: which dataset, and how it is augmented.
        split: of the dataset.
        count: samples; all where there are fewer.
        output: a .png or .jpg file; its folder is made where missing.
        mean_255: the model's mean pixel, RGB, 0..255; it pads views.
        seed: of the choice and of the augmentation.
        on_image: called after each sample with the number done and of all.

    Returns:
        The names of the samples.

    Raises:
        ConfigError: another kind of picture file, or unknown split.
        DataError: files of the dataset are missing or damaged, or the picture cannot be written.
    """
    path = Path(output)
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise ConfigError(f"{path} is no picture file: give a name ending in .png or .jpg.")
    plain = build_dataset(config, split, augment=False)
    views = build_dataset(config, split, augment=True, seed=seed, mean_255=mean_255) if config.train_split else None
    chosen = sorted(np.random.default_rng(seed).choice(len(plain), size=min(count, len(plain)), replace=False).tolist())
    palette = plain.palette
    rows, names, pixels_V = [], [], np.zeros(plain.ignore_index + 1, np.int64)
    for done, index in enumerate(chosen, start=1):
        sample = plain[index]
        shown = [(sample.image.numpy().transpose(1, 2, 0), sample.label.numpy())]
        if views is not None:
            view = views[index]
            view_HW3 = np.rint(255 * view.image.numpy().transpose(1, 2, 0)).clip(0, 255).astype(np.uint8)
            shown.append((view_HW3, view.label.numpy()))
        row = []
        for image_HW3, label_HW in shown:
            row += [_panel(image_HW3), _label_panel(label_HW, plain.classes, palette)]
            pixels_V += np.bincount(label_HW.ravel(), minlength=len(pixels_V))
        rows.append(row)
        names.append(sample.name)
        if on_image is not None:
            on_image(done, len(chosen))
    title = f"{config.name}, {split}: {len(chosen)} of {len(plain)} images"
    if views is not None:
        title += f"; views of {config.crop} x {config.crop} px"
    picture = _compose(title, rows, names, _legend(pixels_V, plain.classes, palette))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    except OSError as error:
        raise DataError(
            f"Picture {path} cannot be written ({error.strerror or error}): choose another with -o."
        ) from error
    return names


def _panel(pixels: npt.NDArray[Any], how: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    height, width = pixels.shape[:2]
    size = (max(1, min(round(width * _HEIGHT / height), 2 * _HEIGHT)), _HEIGHT)
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, how)


def _label_panel(label_HW: npt.NDArray[Any], classes: Sequence[str], palette: Palette) -> Image.Image:
    """Colours, and in the larger regions the class's name: palettes of many classes repeat themselves."""
    colours = np.array([*palette, _IGNORED], np.uint8)
    known_HW = np.minimum(label_HW, len(classes)).astype(np.int32)  # what is no class is the last colour
    small_HW = np.asarray(_panel(known_HW, Image.Resampling.NEAREST))
    panel = Image.fromarray(colours[small_HW])
    draw, letters = ImageDraw.Draw(panel), font(_TEXT - 3)
    for k in np.unique(small_HW[small_HW < len(classes)]).tolist():
        inside = np.pad((small_HW == k).astype(np.uint8), 1)  # the border is an edge too
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        name = drawn(classes[k])
        half = letters.getlength(name) / 2 + 1
        if depth[y, x] >= _TEXT and half < panel.width / 2:
            middle = min(max(float(x), half), panel.width - half)
            place = (middle, int(y))
            draw.text(place, name, fill="white", font=letters, anchor="mm", stroke_width=1, stroke_fill=_INK)
    return panel


Entry = tuple[str, tuple[int, ...]]  # text, colour


def _legend(pixels_V: npt.NDArray[np.int64], classes: Sequence[str], palette: Palette) -> list[Entry]:
    """Classes that occur, largest share first, and what is ignored."""
    order = np.argsort(-pixels_V[: len(classes)], kind="stable")
    entries: list[Entry] = [(drawn(classes[k]), tuple(palette[k])) for k in order if pixels_V[k]]
    return [*entries, ("ignored", _IGNORED)] if pixels_V[-1] else entries


def _compose(title: str, rows: list[list[Image.Image]], names: list[str], legend: list[Entry]) -> Image.Image:
    letters, small = font(_TEXT), font(_TEXT - 2)
    widths = [max(row[column].width for row in rows) for column in range(len(rows[0]))]
    block, columns = sum(widths) + _GAP * len(widths), 2 if len(rows) > 2 else 1
    per_column = math.ceil(len(rows) / columns)
    line, cell = _TEXT + _GAP, _HEIGHT + _TEXT + 2 * _GAP
    total = columns * block + (columns - 1) * 3 * _GAP + _GAP

    places: list[tuple[int, int, Entry]] = []
    x, y = _GAP, 2 * line + per_column * cell + _GAP
    for entry in legend:
        needed = _TEXT + 3 * _GAP + int(letters.getlength(entry[0]))
        if x > _GAP and x + needed > total:
            x, y = _GAP, y + line
        places.append((x, y, entry))
        x += needed
    total = max([total, *(_TEXT + 3 * _GAP + int(letters.getlength(text)) for text, _ in legend)])
    canvas = Image.new("RGB", (total, y + line + _GAP), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((_GAP, line / 2 + 2), drawn_lines(title), fill=_INK, font=letters, anchor="lm")
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        left = _GAP + (number // per_column) * (block + 3 * _GAP)
        top = 2 * line + (number % per_column) * cell
        draw.text((left, top + _HEIGHT + _GAP + _TEXT / 2), drawn(name), fill=_INK, font=small, anchor="lm")
        for panel, width, head in zip(row, widths, _HEADS, strict=False):
            if number % per_column == 0:
                draw.text((left, line * 1.5 + 2), head, fill=_INK, font=small, anchor="lm")
            canvas.paste(panel, (left, top))
            left += width + _GAP
    for x, y, (text, colour) in places:
        draw.rectangle((x, y, x + _TEXT - 1, y + _TEXT - 1), fill=tuple(colour), outline="#404040")
        draw.text((x + _TEXT + _GAP, y + _TEXT / 2), text, fill=_INK, font=letters, anchor="lm")
    return canvas
