"""Labels and photos as their owners publish them -> as the readers want them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image

from whitebox.data.download import disk_error
from whitebox.data.images import IGNORE, UInt8, read_image, read_label
from whitebox.data.readers import class_list
from whitebox.errors import DataError

try:
    import fcntl
except ImportError:  # not on Windows; there nobody shares a cluster's data folder
    fcntl = None  # type: ignore[assignment]

RAW = "raw"  # files that only the conversion needs; removed in the end

OnFile = Callable[[int, int], None]  # files done, files in all


def convert_pascal_context(folder: Path, on_file: OnFile) -> None:
    """``trainval/*.mat`` (459 ids) -> ``SegmentationClassContext/*.png`` (0 background, 1..59), and the lists."""
    voc = folder / "VOCdevkit" / "VOC2010"
    table = np.zeros(460, np.uint8)
    table[list(_PASCAL_CONTEXT_IDS)] = np.arange(60, dtype=np.uint8)

    def convert(source: Path, target: Path) -> None:
        _save_label(table[_read_mat(source, "LabelMap", 459)], target)

    labels = voc / "SegmentationClassContext"
    _convert_each([(mat, labels / f"{mat.stem}.png") for mat in sorted(voc.glob("trainval/*.mat"))], convert, on_file)
    for split in ("train", "val"):  # VOC 2010's own lists hold 4998 and 5105 names, all labelled
        main = voc / "ImageSets" / "Main" / f"{split}.txt"
        if main.is_file():
            names = [line.split()[0] for line in main.read_text("utf-8").splitlines() if line.strip()]
            there = [
                name
                for name in names
                if (voc / "JPEGImages" / f"{name}.jpg").is_file() and (labels / f"{name}.png").is_file()
            ]
            replace_text(voc / "ImageSets" / "SegmentationContext" / main.name, "".join(f"{name}\n" for name in there))


# The 459-class ids of background and of the 59 classes in the order of their names (mmsegmentation's
# tools/dataset_converters/pascal_context.py, PyTorch-Encoding's pcontext.py); other ids are background.
_PASCAL_CONTEXT_IDS = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip


def convert_coco_stuff10k(folder: Path, on_file: OnFile) -> None:
    """``annotations/*.mat`` (0 unlabelled, ids 1..182) -> PNG as in the 164k pixel maps (id - 1, 255 unlabelled)."""

    def convert(source: Path, target: Path) -> None:
        stored = _read_mat(source, "S", 182)
        _save_label(np.where(stored == 0, IGNORE, stored - 1).astype(np.uint8), target)

    jobs = [(mat, mat.with_suffix(".png")) for mat in sorted(folder.glob("annotations/*.mat"))]
    _convert_each(jobs, convert, on_file)


def convert_camvid(folder: Path, on_file: OnFile) -> None:
    """SegNet's PNGs -> photos as JPEG (quality 92, full colour resolution), labels with void 255 instead of 11."""
    _, palette = class_list("camvid")

    def convert(source: Path, target: Path) -> None:
        if target.suffix == ".jpg":
            picture = Image.fromarray(read_image(source))
            replace_file(target, partial(picture.save, format="JPEG", quality=92, subsampling=0))
        else:
            stored = read_label(source)
            _save_label(np.where(stored == 11, np.uint8(IGNORE), stored), target, palette)

    jobs = []
    for part, suffix in (("images", ".jpg"), ("annotations", ".png")):
        raw = folder / RAW / part
        jobs += [
            (path, (folder / part / path.relative_to(raw)).with_suffix(suffix)) for path in sorted(raw.glob("*/*.png"))
        ]
    _convert_each(jobs, convert, on_file)


def _convert_each(jobs: Sequence[tuple[Path, Path]], convert: Callable[[Path, Path], None], on_file: OnFile) -> None:
    for done, (source, target) in enumerate(jobs, start=1):
        if not target.exists():
            convert(source, target)
        on_file(done, len(jobs))


def _save_label(label_HW: UInt8, target: Path, palette: Sequence[Sequence[int]] = ()) -> None:
    picture = Image.fromarray(label_HW)
    if palette:
        colours = np.zeros((256, 3), np.uint8)
        colours[: len(palette)] = palette
        picture.putpalette(colours.reshape(-1).tolist())  # mode L becomes P, the indices stay
    replace_file(target, partial(picture.save, format="PNG", optimize=True))


def _read_mat(path: Path, key: str, highest: int) -> npt.NDArray[np.int64]:
    """One label map (H, W) of a MATLAB file."""
    import scipy.io
    from scipy.io.matlab import MatReadError

    damaged = (MatReadError, OSError, ValueError, TypeError, KeyError, IndexError, EOFError, zlib.error)
    try:
        stored = np.asarray(scipy.io.loadmat(path, variable_names=[key])[key])
    except (*damaged, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"Label {path} is damaged or holds no {key!r} ({reason}): get it again.") from None
    numbers = stored.ndim == 2 and stored.dtype.kind in "uif"
    if not numbers or stored.min(initial=0) < 0 or stored.max(initial=0) > highest:
        raise DataError(f"Label {path} is no map of values 0..{highest} in {key!r}: get it again.")
    return stored.astype(np.int64)


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file so that it is complete or not there."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            write(file)
        os.replace(unfinished, path)
    except OSError as error:
        raise disk_error(path, error) from error


def replace_text(path: Path, text: str) -> None:
    """Write a text so that it is complete or not there."""
    replace_file(path, lambda file: file.write(text.encode()))
