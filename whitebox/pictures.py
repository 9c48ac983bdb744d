"""Pictures of label maps: in the colours of their classes, over a photo, beside the truth, with a legend.

Shapes: K classes, H W pixels.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from whitebox.text import drawn, font

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB

Palette = Sequence[Sequence[int]]  # K RGB triples

_SMALLEST = 320  # px: smaller photos are shown enlarged, so that their legend is readable

_LARGEST_JPEG = 65500  # px, a side
_ROWS = 256  # blended at once: floating point takes many times the memory of a photo

_IGNORED = (0, 0, 0)
_PALETTE = 256  # colours that a PNG can name


def save_label(
    label_HW: NDArray[np.integer], palette: Palette, path: str | os.PathLike[str], kind: str | None = None
) -> None:
    """Write class indices as a palette PNG: viewers show colours, programs read the indices back.

    ``kind``: of the file; None: what its name says.

    Of more than 256 classes it is a grey PNG of 16 bits: a palette has no more colours.
    """
    if len(palette) > _PALETTE:
        Image.fromarray(label_HW.astype(np.uint16)).save(path, kind)
        return
    picture = Image.fromarray(label_HW.astype(np.uint8))
    picture.putpalette(_colours(palette).reshape(-1).tolist())  # turns mode L into P and keeps the indices
    picture.save(path, kind, optimize=True)


def save_picture(picture: Pixels, path: Path) -> None:
    """Write a JPEG; what is larger than one can be is made smaller."""
    image = Image.fromarray(picture)
    if max(image.size) > _LARGEST_JPEG:
        image.thumbnail((_LARGEST_JPEG, _LARGEST_JPEG))
    image.save(path, quality=92, subsampling=0)  # full colour resolution: borders stay sharp


def colourise(label_HW: NDArray[np.integer], palette: Palette) -> Pixels:
    """Class indices -> RGB (H, W, 3) uint8. Values without a colour, as 255 for ignored, are black."""
    return _colours(palette)[label_HW]


def as_labels(index_HW: NDArray[np.integer], classes: Sequence[object]) -> NDArray[np.integer]:
    """Class indices in the smallest type for so many classes."""
    return index_HW.astype(label_type(classes))


def label_type(classes: Sequence[object]) -> type[np.uint8] | type[np.uint16]:
    """What labels of these classes are kept in."""
    return np.uint8 if len(classes) <= _PALETTE else np.uint16


def _colours(palette: Palette) -> Pixels:
    """A colour for each label, uint8, filled up with that of ignored pixels."""
    table = np.full((np.iinfo(label_type(palette)).max + 1, 3), _IGNORED, dtype=np.uint8)
    table[: len(palette)] = np.asarray(palette, dtype=np.uint8)
    return table


def overlay(
    image_HW3: Pixels, label_HW: NDArray[np.integer], palette: Palette, classes: Sequence[str], alpha: float = 0.5
) -> Pixels:
    """Classes blended over a photo, borders drawn solid, and below it a legend of those that occur, largest first.

    Pixels without a class, as 255 for ignored, show the photo. Small photos are enlarged.

    Returns:
        RGB uint8, a little higher than the photo.
    """
    return with_legend([blend(image_HW3, label_HW, palette, alpha)], [label_HW], palette, classes)


def side_by_side(
    image_HW3: Pixels,
    truth_HW: NDArray[np.integer],
    prediction_HW: NDArray[np.integer],
    palette: Palette,
    classes: Sequence[str],
) -> Pixels:
    """Photo, ground truth and prediction in a row, with a legend of the classes that occur in either.

    Ignored pixels of the ground truth are black.

    Returns:
        RGB uint8.
    """
    panels = [image_HW3, colourise(truth_HW, palette), colourise(prediction_HW, palette)]
    return with_legend(panels, [truth_HW, prediction_HW], palette, classes)


def blend(image_HW3: Pixels, label_HW: NDArray[np.integer], palette: Palette, alpha: float) -> Pixels:
    """Classes over a photo at opacity ``alpha``, their borders solid; RGB uint8 of the photo's size."""
    border = np.zeros(label_HW.shape, dtype=bool)
    border[:, 1:] |= label_HW[:, 1:] != label_HW[:, :-1]
    border[1:] |= label_HW[1:] != label_HW[:-1]
    blended = np.empty_like(image_HW3)
    for top in range(0, len(image_HW3), _ROWS):
        rows = slice(top, top + _ROWS)
        image, label = image_HW3[rows], label_HW[rows]
        known = label < len(palette)
        opacity = np.where(known, alpha, 0.0).astype(np.float32)
        opacity[border[rows] & known] = 1.0 if alpha > 0 else 0.0
        mixed = image + opacity[..., None] * (colourise(label, palette).astype(np.float32) - image)
        blended[rows] = np.rint(mixed)
    return blended


def with_legend(
    panels: list[Pixels], labels: list[NDArray[np.integer]], palette: Palette, classes: Sequence[str]
) -> Pixels:
    """Pictures of one size in a row, and below them the classes that occur in ``labels``, largest first; RGB uint8."""
    factor = max(1, -(-_SMALLEST // max(panels[0].shape[:2])))
    panels = [panel.repeat(factor, axis=0).repeat(factor, axis=1) for panel in panels]
    height, width = panels[0].shape[:2]
    gap = max(4, width // 100) if len(panels) > 1 else 0
    total = len(panels) * (width + gap) - gap

    pixels = np.bincount(np.concatenate([label.ravel() for label in labels]), minlength=len(classes))[: len(classes)]
    present = [int(index) for index in np.argsort(-pixels, kind="stable") if pixels[index] > 0]
    size = int(np.clip(max(width / 50, total / 90), 12, 64))  # px, of the text
    letters, names = font(size), {index: drawn(classes[index], 200) for index in present}
    pad = size // 2
    widths = [size + 3 * pad + int(letters.getlength(names[index])) for index in present]
    total = max([total, _SMALLEST] + [pad + needed for needed in widths])
    places: list[tuple[int, int, int]] = []  # x, y, class
    x, y = pad, height + pad
    for index, needed in zip(present, widths, strict=True):
        if x > pad and x + needed > total:
            x, y = pad, y + size + pad
        places.append((x, y, index))
        x += needed

    canvas = Image.new("RGB", (total, y + size + pad if places else height), "white")
    for number, panel in enumerate(panels):
        canvas.paste(Image.fromarray(panel), (number * (width + gap), 0))
    draw = ImageDraw.Draw(canvas)
    for x, y, index in places:
        draw.rectangle((x, y, x + size - 1, y + size - 1), fill=tuple(palette[index]), outline="#404040")
        draw.text((x + size + pad, y + size / 2), names[index], fill="#202020", font=letters, anchor="lm")
    return np.asarray(canvas)
