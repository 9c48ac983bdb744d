"""Labels and photos as their owners publish them -> as the readers want them."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from whitebox.data.download import disk_error
from whitebox.data.images import IGNORE, WIDE, UInt8, read_image, read_label, read_mat
from whitebox.data.readers import class_list, id_list
from whitebox.errors import DataError

try:
    import fcntl
except ImportError:  # not on Windows; there nobody shares a cluster's data folder
    fcntl = None  # type: ignore[assignment]

MERGED = "trainval_merged.json"
RAW = "raw"  # files that only the conversion needs; removed in the end

OnFile = Callable[[int, int], None]  # files done, files in all


def convert_pascal_context(folder: Path, on_file: OnFile) -> None:
    """``trainval/*.mat`` (459 ids) -> ``SegmentationClassContext/*.png`` (0 background, 1..59), and the lists.

    Without ``.mat`` files, the masks of ``trainval_merged.json`` (PASCAL in Detail, which SED's PC-59 is made of).
    """
    voc = folder / "VOCdevkit" / "VOC2010"
    labels, mats, merged = voc / "SegmentationClassContext", sorted(voc.glob("trainval/*.mat")), voc / MERGED

    def convert(source: Path, target: Path) -> None:
        _save_label(pascal_context_label(read_mat(source, "LabelMap", 459)), target)

    if mats or not merged.is_file():
        _convert_each([(mat, labels / f"{mat.stem}.png") for mat in mats], convert, on_file)
    else:
        _convert_merged(merged, labels, on_file)
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


def pascal_context_label(ids_HW: npt.NDArray[np.int64]) -> UInt8:
    """0 for background, 1..59 for the frequent classes, of the 459 ids (0: none)."""
    table = np.zeros(460, np.uint8)
    table[list(_PASCAL_CONTEXT_IDS)] = np.arange(60, dtype=np.uint8)
    return table[ids_HW]


def _convert_merged(merged: Path, labels: Path, on_file: OnFile) -> None:
    """Masks painted in the order of the file, later ones over earlier ones."""
    try:
        content = json.loads(merged.read_text("utf-8"))
        masks: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        for mask in content["annos_segmentation"]:
            masks[mask["image_id"]].append(mask)
        for done, image in enumerate(content["images"], start=1):
            target = labels / f"{Path(image['file_name']).stem}.png"
            if not target.exists():
                ids_HW = np.zeros((image["height"], image["width"]), np.int64)
                for mask in masks[image["image_id"]]:
                    ids_HW[decoded_mask(mask["segmentation"])] = mask["category_id"]
                _save_label(pascal_context_label(ids_HW), target)
            on_file(done, len(content["images"]))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{merged} holds no masks as PASCAL in Detail has them ({reason}): get it again.") from None


def decoded_mask(rle: dict[str, Any]) -> npt.NDArray[np.bool_]:
    """A mask (H, W) from COCO's run lengths: columns first, runs of 0 and 1 in turn; plain, or as their text.

    Raises:
        ValueError: the runs do not fill the mask.
    """
    height, width = (int(side) for side in rle["size"])
    counts = rle["counts"]
    runs = _spelled_runs(counts) if isinstance(counts, str) else [int(run) for run in counts]
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"runs of {sum(runs)} px for {height} x {width} px")
    ones = np.arange(len(runs)) % 2 == 1
    return np.repeat(ones, runs).reshape(width, height).T


def _spelled_runs(text: str) -> list[int]:
    """Run lengths from COCO's text.

    A character holds five bits of a number, and one that says whether it goes on; from the fourth number on it is the
    difference to the run before last.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        bits = ord(character) - 48
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        runs.append(number + runs[-2] if len(runs) > 2 else number)
        number = shift = 0
    return runs


# The 459-class ids of background and of the 59 classes in the order of their names (mmsegmentation's
# tools/dataset_converters/pascal_context.py, PyTorch-Encoding's pcontext.py); other ids are background.
_PASCAL_CONTEXT_IDS = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368, 397,
    415, 416, 420, 424, 427, 440, 445, 454, 458,
)  # fmt: skip


def ade847_label(objects_HW3: UInt8) -> npt.NDArray[np.uint16]:
    """Classes (H, W) of an ``X_seg.png`` (RGB) of release 2021_17_01; objects of no class are ignored (65535)."""
    table = np.full(26 * 256, WIDE - 1, np.uint16)  # red is at most 255, so ids are below 26 * 256
    table[[int(number) for number in id_list("ade847")]] = np.arange(len(id_list("ade847")), dtype=np.uint16)
    return table[objects_HW3[..., 0] // 10 * np.uint16(256) + objects_HW3[..., 1]]


def shrunk_size(height: int, width: int, short_side: int = 512) -> tuple[int, int]:
    """Height and width with the short side at most so long; the other is rounded (halves to even)."""
    if min(height, width) <= short_side:
        return height, width
    if height <= width:
        return short_side, round(width * short_side / height)
    return round(height * short_side / width), short_side


def convert_ade20k_full(folder: Path, on_file: OnFile) -> None:
    """``ADE_val_*.jpg`` and ``*_seg.png`` -> smaller photos, and 16-bit labels of 847 classes.

    Both are resized without antialiasing, and every photo is saved again as JPEG of quality 75, as SED's
    ``prepare_ade20k_full.py`` does: on the owners' own photos numbers are not those that papers publish. The split is
    told by folders and names; ``index_ade20k.pkl`` is not opened.

    Raises:
        DataError: a photo lacks its objects or the reverse, they differ in size, or no pixel of all has a class: then
            the numbers are those of another release.
    """
    raw, made = folder / RAW, folder / "ADE20K_2021_17_01"
    photos = {path.stem: path for path in sorted(raw.glob("*.jpg"))}
    objects = {path.stem.removesuffix("_seg"): path for path in sorted(raw.glob("*_seg.png"))}
    for name in sorted(photos.keys() ^ objects.keys()):
        there, lack = (f"{name}.jpg", f"{name}_seg.png") if name in photos else (f"{name}_seg.png", f"{name}.jpg")
        raise DataError(f"The full ADE20K has {there} but not {lack}: give both with --from.")
    labels, smaller = (made / f"{part}_detectron2" / "validation" for part in ("annotations", "images"))

    def convert(source: Path, target: Path) -> None:
        image, seg = read_image(photos[target.stem]), read_image(source)
        if image.shape != seg.shape:
            raise DataError(
                f"{source.name} is {seg.shape[1]} x {seg.shape[0]} px but its photo {image.shape[1]} x "
                f"{image.shape[0]} px: get both again."
            )
        label, (height, width) = ade847_label(seg), shrunk_size(*image.shape[:2])
        if (height, width) != label.shape:
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
            label = np.asarray(cv2.resize(label, (width, height), interpolation=cv2.INTER_NEAREST), np.uint16)
        replace_file(smaller / f"{target.stem}.jpg", partial(Image.fromarray(image).save, format="JPEG", quality=75))
        replace_file(target, partial(Image.fromarray(label).save, format="TIFF", compression="tiff_deflate"))

    jobs = [(path, labels / f"{name}.tif") for name, path in objects.items()]
    _convert_each(jobs, convert, on_file)
    if jobs and not any((np.asarray(Image.open(path)) != WIDE - 1).any() for _, path in jobs):
        raise DataError(
            "No pixel of these labels has one of the 847 classes: they are of another release than ADE20K_2021_17_01."
        )


def convert_coco_stuff10k(folder: Path, on_file: OnFile) -> None:
    """``annotations/*.mat`` (0 unlabelled, ids 1..182) -> PNG as in the 164k pixel maps (id - 1, 255 unlabelled)."""

    def convert(source: Path, target: Path) -> None:
        stored = read_mat(source, "S", 182)
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
