"""Photos in records and figures: measured once, drawn again from the record and the photo's own file.

A record holds where a photo lies (relative to the working directory) and its sha256, never its pixels; numbers per
patch are stored as text, one line a row of the grid.

Shapes: H W pixels of the photo, h w patch grid, C colours or values, K classes.
"""

from __future__ import annotations

import hashlib
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from analysis.measures.images import Photo, to_photo
from analysis.record import Data, Record, RecordError, fingerprint
from whitebox.data.images import IGNORE, read_image, read_label
from whitebox.data.readers import READERS, Layout, label_table
from whitebox.engine.inference import evaluating
from whitebox.errors import DataError
from whitebox.models.decoders.base import class_scores
from whitebox.pictures import blend
from whitebox.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB

SHORTEST, LONGEST = 400, 900  # px, long side of a photo inside a figure
DIGITS = 5  # significant, of numbers per patch in a record


def describe_photo(photo: Photo, label: Path | None = None) -> dict[str, Any]:
    """What a record holds of a photo: file, sizes in px (``size`` its own, ``shown`` as the model sees it), grid."""
    return {
        **({} if label is None else {"label_sha256": _sha256(label)}),
        "path": Path(os.path.relpath(photo.path)).as_posix(),
        "sha256": _sha256(photo.path),
        "size": list(photo.image_HW3.shape[:2]),
        "shown": list(photo.pixels_13hw.shape[-2:]),
        "grid": list(photo.grid),
        "patch": photo.patch,
    }


def photo_data(photos: Sequence[Mapping[str, Any]]) -> Data:
    """For the record: the photos' names, and what they and their labels hold, from `describe_photo`."""
    names = [Path(photo["path"]).stem for photo in photos]
    held = [photo["sha256"] + photo.get("label_sha256", "") for photo in photos]
    entries = list(zip(names, held, strict=True))
    return Data("photos", names[0] if len(names) == 1 else f"{len(names)}_photos", len(names), fingerprint(entries))


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
    if _sha256(path) != stored["sha256"]:
        raise RecordError(f"The photo {path} has changed since it was measured: put the old one back or measure again.")
    return read_image(path)


def for_figure(image_HW3: Pixels) -> Pixels:
    """A large photo shrunk, a small one enlarged pixel by pixel, so that outlines of patches are sharp."""
    height, width = image_HW3.shape[:2]
    if max(height, width) < SHORTEST:
        factor = -(-SHORTEST // max(height, width))
        return image_HW3.repeat(factor, 0).repeat(factor, 1)
    scale = min(1.0, LONGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA), np.uint8)


def read_truth(path: Path, photo: Photo, run: Run) -> Pixels:
    """The ground truth of a photo as class indices at its own size, (H, W); 255: not labelled.

    Stored values mean what they mean in the dataset the run was trained on.

    Raises:
        DataError: it cannot be read, has another size than the photo, or holds a value without a class.
    """
    stored_HW = read_label(path)
    if stored_HW.shape != photo.image_HW3.shape[:2]:
        (height, width), (own_height, own_width) = stored_HW.shape, photo.image_HW3.shape[:2]
        raise DataError(
            f"Label {path} is {width} x {height} px but the photo {photo.path} is {own_width} x {own_height} px: "
            "give both the same size, and one --truth for each photo in their order."
        )
    data, reader = run.config.data, READERS[run.config.data.kind]
    ids, values = (reader.ids, reader.stored_values) if isinstance(reader, Layout) else ((), 0)
    classes = run.model.num_classes
    table_256 = label_table(classes, ids, values, data.reduce_zero_label)
    label_HW = np.asarray(cv2.LUT(stored_HW, table_256), np.uint8)
    if (unknown := (label_HW >= classes) & (label_HW != IGNORE)).any():
        raise DataError(
            f"Label {path} holds the value {int(stored_HW[unknown].max())}, which none of the {classes} classes of "
            f"{run.name} has: give a label of {data.name}."
        )
    return label_HW


@torch.inference_mode()
def predicted_patches(run: Run, photo: Photo) -> Tensor:
    """The most probable class of each patch, (h, w) int64 on the CPU, from one forward pass over the whole photo."""
    with evaluating(run.model):
        prediction = run.model.predict(photo.pixels_13hw)
    masks_hwK = prediction.masks_BKhw[0].permute(1, 2, 0).float()
    if prediction.shares_BKK is not None:
        masks_hwK = class_scores(masks_hwK, prediction.shares_BKK[0])
    return masks_hwK.argmax(2).cpu()


def pack(values_hw: ArrayLike) -> list[str]:
    """Numbers of a patch grid as text, one line a row, to `DIGITS` significant digits."""
    return [" ".join(f"{value:.{DIGITS}g}" for value in row) for row in np.asarray(values_hw).tolist()]


def unpack(lines: Sequence[str]) -> Tensor:
    """What `pack` has packed, (h, w) float64."""
    return torch.tensor([[float(value) for value in line.split()] for line in lines], dtype=torch.float64)


def at_pixels(values_Chw: Tensor, stored: Mapping[str, Any], size: tuple[int, ...], mode: str) -> NDArray[Any]:
    """Values of a recorded photo's patch grid at ``size`` = (H, W), (C, H, W)."""
    shown = (stored["shown"][0], stored["shown"][1])
    return to_photo(values_Chw, shown, (size[0], size[1]), stored["patch"], mode).numpy()


def classes_over(image_HW3: Pixels, labels_hw: Tensor, stored: Mapping[str, Any], record: Record) -> Pixels:
    """Classes of patches over the photo, in the palette of the record."""
    label_HW = at_pixels(labels_hw[None], stored, image_HW3.shape[:2], "nearest")[0].astype(np.int64)
    return blend(image_HW3, label_HW, record.measured["palette"], 0.6)


def photos_of(records: Sequence[Record]) -> list[list[tuple[Record, Mapping[str, Any]]]]:
    """What goes into one figure each: a photo, measured by one convention, with all records that hold it."""
    found: dict[tuple[str, ...], list[tuple[Record, Mapping[str, Any]]]] = {}
    for record in records:
        for stored in record.measured["photos"]:
            key = (photo_name(stored), stored["sha256"], record.settings.get("conventions", ""))
            found.setdefault(key, []).append((record, stored))
    return list(found.values())


def figure_path(stem: Path, photos: Sequence[Sequence[tuple[Record, Mapping[str, Any]]]], number: int) -> Path:
    """Where the figure of one photo goes: ``stem``, or ``stem-NUMBER-PHOTO`` where there are several."""
    if len(photos) == 1:
        return stem
    name = re.sub(r"[^\w.]+", "_", photo_name(photos[number][0][1]))
    return stem.with_name(f"{stem.name}-{number + 1}-{name}")


def photo_name(stored: Mapping[str, Any]) -> str:
    """Its file's name without suffix."""
    return Path(stored["path"]).stem


def show(axes: Axes, image_HW3: NDArray[Any], title: str = "", width: float = 1.4) -> None:
    """A picture in its own shape, without ticks, below a title that is wrapped to ``width`` inches."""
    axes.imshow(image_HW3)
    axes.set_axis_off()
    letters = max(12, int(width / 0.055))
    axes.set_title("\n".join(textwrap.fill(part, letters) for part in title.splitlines()), fontsize=6.5, pad=2)


def class_legend(figure: Figure, shown: Iterable[tuple[Record, Tensor]], columns: int = 6) -> None:
    """The classes that occur in pictures, largest first, above the figure; at most three rows of them."""
    from matplotlib.patches import Patch

    count: Counter[tuple[str, tuple[float, float, float]]] = Counter()
    for record, labels_hw in shown:
        for label in labels_hw.flatten().long().tolist():
            if label != IGNORE:
                red, green, blue = (part / 255 for part in record.measured["palette"][label])
                count[record.measured["classes"][label], (red, green, blue)] += 1
    largest = sorted(count, key=lambda key: (-count[key], key[0]))[: 3 * columns]
    figure.legend(
        handles=[Patch(facecolor=colour, edgecolor="0.4", linewidth=0.4, label=name) for name, colour in largest],
        loc="outside upper center",
        ncols=min(columns, max(1, len(largest))),
        fontsize=6.5,
        handlelength=1.2,
        columnspacing=1.2,
    )


def caption_below(figure: Figure, text: str) -> None:
    """Conventions in small type below all panels."""
    figure.supxlabel("\n".join(textwrap.wrap(text, 165)), fontsize=6, x=0.01, ha="left", color="0.25")


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"Image {path} cannot be opened ({error.strerror}): check path and permissions.") from None
