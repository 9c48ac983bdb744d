"""Photos in records and figures: measured once, drawn again from the record and the photo's own file.

A record holds where a photo lies (relative to the working directory) and its sha256, never its pixels; numbers per
patch are stored as text, one line a row of the grid.

Shapes: H W pixels of the photo, h w patch grid, C colours or values, K classes.
"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from analysis.record import Record, RecordError
from analysis.show.figures import DPI
from whitebox.data.fingerprint import checksums
from whitebox.errors import DataError
from whitebox.pictures import blend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB

IGNORE = 255  # label value of patches that do not count
SHORTEST, LONGEST = 400, 900  # px, long side of a photo inside a figure


def recorded_photo(stored: Mapping[str, Any]) -> Pixels:
    """The photo of a record, RGB.

    Raises:
        RecordError: it is not there, or is not the one that was measured.
        DataError: it cannot be read.
    """
    path = Path(stored["path"])
    if not path.is_file():
        raise RecordError(
            f"The photo {path} of a record is not there: paths count from the folder the command was run in, "
            "so render there, or put the photo back."
        )
    if checksums([path])[0] != stored["sha256"]:
        raise RecordError(f"The photo {path} has changed since it was measured: put the old one back or measure again.")
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits
                image = Image.fromarray((np.asarray(image, np.float64) / 257).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"The photo {path} cannot be read: {str(error).splitlines()[0]}.") from error


def for_figure(image_HW3: Pixels) -> Pixels:
    """A large photo shrunk, a small one enlarged pixel by pixel, so that outlines of patches are sharp."""
    height, width = image_HW3.shape[:2]
    if max(height, width) < SHORTEST:
        factor = -(-SHORTEST // max(height, width))
        return image_HW3.repeat(factor, 0).repeat(factor, 1)
    scale = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image_HW3).resize(size, Image.Resampling.BOX))


def at_pixels(values_Chw: ArrayLike, stored: Mapping[str, Any], size: tuple[int, ...], mode: str) -> NDArray[Any]:
    """Values of a recorded photo's patch grid at ``size`` = (H, W), (C, H, W).

    Patches are enlarged to the pixels of the photo as the model saw it, the padding is cut off, the rest is resized.

    Args:
        mode: ``nearest`` or ``bilinear``, for both steps.
    """
    values = np.asarray(values_Chw)
    patch, shown = stored["patch"], stored["shown"]
    for axis in (1, 2):
        whole = values.shape[axis] * patch
        values = _enlarged(values, axis, whole, mode)
        values = np.take(values, range(min(whole, shown[axis - 1])), axis)
        values = _enlarged(values, axis, size[axis - 1], mode)
    return values


def _enlarged(values: NDArray[Any], axis: int, size: int, mode: str) -> NDArray[Any]:
    """One axis at another size: nearest as OpenCV and PyTorch have it, linear between the centres of pixels."""
    old = values.shape[axis]
    if mode == "nearest":
        return np.take(values, np.arange(size) * old // size, axis)
    place = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    below = np.floor(place).astype(np.int64)
    share = (place - below).reshape([-1 if each == axis else 1 for each in range(values.ndim)])
    low, high = (np.take(values, each, axis) for each in (below, np.minimum(below + 1, old - 1)))
    return np.asarray(low * (1 - share) + high * share)


def classes_over(image_HW3: Pixels, labels_hw: NDArray[Any], stored: Mapping[str, Any], record: Record) -> Pixels:
    """Classes of patches over the photo, in the palette of the record."""
    label_HW = at_pixels(labels_hw[None], stored, image_HW3.shape[:2], "nearest")[0].astype(np.int64)
    return blend(image_HW3, label_HW, record.measured["palette"], 0.6)


def photos_of(records: Sequence[Record]) -> list[list[tuple[Record, Mapping[str, Any]]]]:
    """What goes into one figure each: a photo, measured by one convention, with all records that hold it."""
    found: dict[tuple[str, ...], list[tuple[Record, Mapping[str, Any]]]] = {}
    for record in records:
        for stored in record.measured["photos"]:
            key = (photo_name(stored), stored["sha256"], conventions(record))
            found.setdefault(key, []).append((record, stored))
    return list(found.values())


def conventions(record: Record) -> str:
    """What its maps are, in words; early records have them among their settings."""
    return str(record.measured.get("conventions", record.settings.get("conventions", "")))


def figure_path(stem: Path, photos: Sequence[Sequence[tuple[Record, Mapping[str, Any]]]], number: int) -> Path:
    """Where the figure of one photo goes: ``stem``, or ``stem-NUMBER-PHOTO`` where there are several."""
    if len(photos) == 1:
        return stem
    name = re.sub(r"[^\w.]+", "_", photo_name(photos[number][0][1]))
    return stem.with_name(f"{stem.name}-{number + 1}-{name}")


def photo_name(stored: Mapping[str, Any]) -> str:
    """Its file's name without suffix."""
    return Path(stored["path"]).stem


def of_picture(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of what a picture shows: where they are those of several trainings, the first one's."""
    return {
        key: each["seeds"][0] if isinstance(each, Mapping) and "seeds" in each else each
        for key, each in numbers.items()
    }


def photo_dpi(lines: int) -> int:
    """Of a figure with so many lines of photos, so that it does not grow beyond what a page takes."""
    return DPI if lines <= 4 else 150


def show(axes: Axes, image_HW3: NDArray[Any], title: str = "", width: float = 1.4) -> None:
    """A picture in its own shape, without ticks, below a title that is wrapped to ``width`` inches."""
    axes.imshow(image_HW3)
    axes.set_axis_off()
    letters = max(12, int(width / 0.055))
    axes.set_title("\n".join(textwrap.fill(part, letters) for part in title.splitlines()), fontsize=6.5, pad=2)


def class_legend(
    figure: Figure, shown: Iterable[tuple[Record, NDArray[Any]]], columns: int = 6, beside: Axes | None = None
) -> None:
    """The classes that occur in pictures, largest first; at most 18.

    Args:
        beside: an empty panel in whose middle they stand, over its empty neighbours; None: above the figure.
    """
    from matplotlib.patches import Patch

    count: Counter[tuple[str, tuple[float, float, float]]] = Counter()
    for record, labels_hw in shown:
        for label in labels_hw.astype(np.int64).ravel().tolist():
            if label != IGNORE:
                red, green, blue = (part / 255 for part in record.measured["palette"][label])
                count[record.measured["classes"][label], (red, green, blue)] += 1
    largest = sorted(count, key=lambda key: (-count[key], key[0]))[:18]
    above: dict[str, Any] = {"loc": "outside upper center"}
    here: dict[str, Any] = {"loc": "center", "title": "classes, largest first", "title_fontsize": 6.5}
    legend = (figure if beside is None else beside).legend(
        handles=[Patch(facecolor=colour, edgecolor="0.4", linewidth=0.4, label=name) for name, colour in largest],
        **(above if beside is None else here),
        ncols=min(columns, max(1, len(largest))),
        fontsize=6.5,
        handlelength=1.2,
        columnspacing=1.2,
    )
    legend.set_in_layout(beside is None)  # or its panel would grow


def caption_below(figure: Figure, text: str) -> None:
    """Conventions in small type below all panels."""
    figure.supxlabel("\n".join(textwrap.wrap(text, 150)), fontsize=6, x=0.01, ha="left", color="0.25")
