"""Predict photos: which files, and what is written for each.

Shapes: K classes, H W pixels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from whitebox.config import DataConfig, InferenceConfig
from whitebox.data.images import IMAGE_SUFFIXES, OTHER_IMAGES, read_image
from whitebox.engine.evaluate import LabelledImage
from whitebox.engine.inference import evaluating, predict_labels, segment
from whitebox.errors import ConfigError, DataError
from whitebox.files import make_folder, unwritable
from whitebox.memory import is_lack_of_memory
from whitebox.pictures import as_labels, overlay, save_label, save_picture, side_by_side
from whitebox.text import file_name

_ROOM = 24  # bytes of memory for each pixel of a photo: itself, its classes as int64, the overlay, the picture


@dataclass
class PredictedFiles:
    """What :func:`predict_files` did: images found, files written, and the images it could not read with the reason."""

    images: int = 0
    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def predict_files(
    model: nn.Module,
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    inference: InferenceConfig,
    data: DataConfig | None = None,
    *,
    probabilities: bool = False,
    alpha: float = 0.5,
    on_file: Callable[[int, int, Path], None] | None = None,
) -> PredictedFiles:
    """Segment image files and folders of them.

    For each image: ``NAME_labels.png`` (palette PNG of class indices), ``NAME_overlay.jpg`` (classes over the photo,
    with a legend), and with ``probabilities`` also ``NAME_probabilities.npz`` (``probabilities`` (K, H, W) float16
    and ``classes``). NAME is the image's path below the folder it was found in, without suffix; where two images would
    get the same, it keeps what tells them apart. Images that cannot be read are reported, the others still processed.

    Args:
        model: has ``classes`` and ``palette``.
        inputs: files, and folders searched recursively for jpg, jpeg, png, bmp, tif, tiff and webp. Hidden files and
            files below ``output`` are left out.
        output: folder, made where missing.
        data: how images are resized before inference; None: not at all.
        alpha: opacity of the classes in the overlay, 0 to 1.
        on_file: called after each image with the number done, the number of all, and its path.

    Raises:
        DataError: an input is missing, a folder holds no image, or the output cannot be written or would replace an
            input.
        ConfigError: ``alpha`` outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha={alpha} is impossible: an opacity lies in [0, 1].")
    classes, palette = tuple(model.classes), tuple(model.palette)  # type: ignore[arg-type]
    folder = Path(output)
    jobs = named_jobs([Path(path) for path in inputs], folder)
    endings = ["_labels.png", "_overlay.jpg"] + ["_probabilities.npz"] * probabilities
    result = PredictedFiles()
    for path in left_out([Path(path) for path in inputs], folder):
        kind = path.suffix[1:].upper()
        result.failed.append((path, f"Image {path} is left out: {kind} is not read, save it as PNG or JPEG."))
    longest = os.pathconf("/", "PC_NAME_MAX") - max(map(len, endings))
    for path, name in list(jobs):
        if len(os.fsencode(os.path.basename(name))) > longest:
            result.failed.append((path, f"Image {path} has a name too long for {endings[0]} behind it: shorten it."))
            jobs.remove((path, name))
    result.images = len(jobs) + len(result.failed)
    sources = {os.path.realpath(path) for path, _ in jobs}
    for _, name in jobs:
        for ending in endings:
            if os.path.realpath(folder / (name + ending)) in sources:
                raise DataError(f"{folder / (name + ending)} is an input and would be replaced: choose another folder.")
    make_folder(folder)

    room = _ROOM + 6 * len(classes) * probabilities
    with evaluating(model):
        for done, (path, name) in enumerate(jobs, start=1):
            try:
                image_HW3 = read_image(path, room)
                if probabilities:
                    probabilities_KHW = segment(model, image_HW3, inference, data)
                    index_HW = probabilities_KHW.argmax(0)
                else:
                    index_HW = predict_labels(model, image_HW3, inference, data)
                label_HW = as_labels(index_HW.cpu().numpy(), classes)
            except DataError as error:
                result.failed.append((path, str(error)))
            except (MemoryError, RuntimeError) as error:
                if not is_lack_of_memory(error):
                    raise
                result.failed.append((path, f"Image {path} does not fit into the memory: make it smaller, or cut it."))
            else:
                files = [folder / (name + ending) for ending in endings]
                try:
                    files[0].parent.mkdir(parents=True, exist_ok=True)
                    save_label(label_HW, palette, files[0])
                    save_picture(overlay(image_HW3, label_HW, palette, classes, alpha), files[1])
                    if probabilities:
                        half_KHW = probabilities_KHW.half().cpu().numpy()
                        np.savez_compressed(files[2], probabilities=half_KHW, classes=np.array(classes))
                except OSError as error:
                    raise unwritable(folder, error) from error
                result.written += files
            if on_file is not None:
                on_file(done, len(jobs), path)
    return result


class ComparisonSaver:
    """An ``on_image`` for :func:`whitebox.engine.evaluate.evaluate`: saves photo, ground truth and prediction in a row.

    Attributes:
        folder: where the pictures go, as ``INDEX-NAME.jpg``.
        written: files saved so far.
    """

    def __init__(self, model: Any, folder: str | os.PathLike[str], count: int, total: int) -> None:
        """``count`` images, spread evenly over the ``total``; ``model`` (or dataset) has ``classes`` and ``palette``.

        Raises:
            DataError: the folder cannot be written.
        """
        self.classes, self.palette = tuple(model.classes), tuple(model.palette)
        self.folder, self.written = Path(folder), list[Path]()
        count = min(count, total)
        self._chosen = {number * total // count for number in range(count)}
        if count:
            make_folder(self.folder)

    def __call__(self, index: int, sample: LabelledImage, prediction_HW: Tensor) -> None:
        """Save the sample if it is one of the chosen."""
        if index not in self._chosen:
            return
        image_HW3, truth_HW = sample.image.permute(1, 2, 0).numpy(), sample.label.numpy()
        path = self.folder / f"{index:04d}-{file_name(sample.name)}.jpg"
        picture = side_by_side(image_HW3, truth_HW, prediction_HW.cpu().numpy(), self.palette, self.classes)
        try:
            save_picture(picture, path)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self.written.append(path)


def left_out(inputs: Iterable[Path], output: Path) -> list[Path]:
    """Images in folders among ``inputs`` that are of a kind that is not read."""
    folders = [given for given in inputs if os.path.isdir(given)]
    found = (path for given in folders for path in given.rglob("*") if _is_below(path, given, output, OTHER_IMAGES))
    return sorted(found)


def named_jobs(inputs: Iterable[Path], output: Path) -> list[tuple[Path, str]]:
    """Image files and, for each, the name that what is written for it begins with; no two are the same."""
    found: dict[str, tuple[Path, list[str]]] = {}
    for given in inputs:
        if os.path.isdir(given):
            files, base = (
                sorted(path for path in given.rglob("*") if _is_below(path, given, output, IMAGE_SUFFIXES)),
                given,
            )
            if not files:
                raise DataError(f"Folder {given} holds no image ({', '.join(s[1:] for s in IMAGE_SUFFIXES)}).")
        elif os.path.exists(given):
            files, base = [given], given.parent
        else:
            raise DataError(f"{given} does not exist or may not be read: give image files or folders.")
        for path in files:
            below, above = path.relative_to(base), base.resolve().name or "input"
            stem, full = below.with_suffix("").as_posix(), below.as_posix()
            found.setdefault(os.path.abspath(path), (path, [stem, full, f"{above}/{stem}", f"{above}/{full}"]))

    # Some disks do not tell upper from lower case.
    uses = [
        Counter(name.casefold() for name in level)
        for level in zip(*(names for _, names in found.values()), strict=True)
    ]
    jobs, taken = [], set()
    for path, names in found.values():
        choices = [name for name, used in zip(names, uses, strict=True) if used[name.casefold()] == 1]
        choices += [f"{names[-1]}-{number}" for number in range(1, len(found) + 1)]
        name = next(choice for choice in choices if choice.casefold() not in taken)
        taken.add(name.casefold())
        jobs.append((path, name))
    return jobs


def _is_below(path: Path, folder: Path, output: Path, suffixes: Sequence[str]) -> bool:
    if path.suffix.lower() not in suffixes or not path.is_file():
        return False
    if any(part.startswith(".") for part in path.relative_to(folder).parts):
        return False
    own_results = output.resolve() != folder.resolve() and path.resolve().is_relative_to(output.resolve())
    return not own_results
