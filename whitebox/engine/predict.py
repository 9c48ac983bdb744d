"""Predict photos: palette label PNGs, overlays with a legend, probabilities.

Shapes: K classes, H W pixels.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from whitebox.config import DataConfig, InferenceConfig
from whitebox.data.images import IMAGE_SUFFIXES, read_image
from whitebox.engine.evaluate import LabelledImage
from whitebox.engine.inference import evaluating, predict_labels, segment
from whitebox.errors import ConfigError, DataError

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB
Palette = Sequence[Sequence[int]]  # K RGB triples

_SMALLEST = 320  # px: smaller photos are shown enlarged, so that their legend is readable
_IGNORED = (0, 0, 0)


@dataclass
class Prediction:
    """What :func:`predict_files` did: files it wrote, and the images it could not read with the reason."""

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
) -> Prediction:
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
    sources = {os.path.realpath(path) for path, _ in jobs}
    for _, name in jobs:
        for ending in endings:
            if os.path.realpath(folder / (name + ending)) in sources:
                raise DataError(f"{folder / (name + ending)} is an input and would be replaced: choose another folder.")
    make_folder(folder)

    result = Prediction()
    with evaluating(model):
        for done, (path, name) in enumerate(jobs, start=1):
            try:
                image_HW3 = read_image(path)
            except DataError as error:
                result.failed.append((path, str(error)))
            else:
                if probabilities:
                    probabilities_KHW = segment(model, image_HW3, inference, data)
                    label_HW = probabilities_KHW.argmax(0).cpu().numpy().astype(np.uint8)
                else:
                    label_HW = predict_labels(model, image_HW3, inference, data).cpu().numpy().astype(np.uint8)
                files = [folder / (name + ending) for ending in endings]
                try:
                    files[0].parent.mkdir(parents=True, exist_ok=True)
                    save_label(label_HW, palette, files[0])
                    _save_picture(overlay(image_HW3, label_HW, palette, classes, alpha), files[1])
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

    def __init__(self, model: nn.Module, folder: str | os.PathLike[str], count: int, total: int) -> None:
        """``count`` images, spread evenly over the ``total``.

        Raises:
            DataError: the folder cannot be written.
        """
        self.classes, self.palette = tuple(model.classes), tuple(model.palette)  # type: ignore[arg-type]
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
        path = self.folder / f"{index:04d}-{sample.name.replace('/', '_')}.jpg"
        picture = side_by_side(image_HW3, truth_HW, prediction_HW.cpu().numpy(), self.palette, self.classes)
        try:
            _save_picture(picture, path)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self.written.append(path)


def save_label(label_HW: NDArray[np.integer], palette: Palette, path: str | os.PathLike[str]) -> None:
    """Write class indices as a palette PNG: viewers show colours, programs read the indices back."""
    picture = Image.fromarray(label_HW.astype(np.uint8))
    picture.putpalette(_colours(palette).reshape(-1).tolist())  # turns mode L into P and keeps the indices
    picture.save(path, optimize=True)


def colourise(label_HW: NDArray[np.integer], palette: Palette) -> Pixels:
    """Class indices -> RGB (H, W, 3) uint8. Values without a colour, as 255 for ignored, are black."""
    return _colours(palette)[label_HW]


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


def named_jobs(inputs: Iterable[Path], output: Path) -> list[tuple[Path, str]]:
    """Image files and, for each, the name that what is written for it begins with; no two are the same."""
    found: dict[str, tuple[Path, list[str]]] = {}
    for given in inputs:
        if os.path.isdir(given):
            files, base = sorted(path for path in given.rglob("*") if _is_image_below(path, given, output)), given
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


def _is_image_below(path: Path, folder: Path, output: Path) -> bool:
    if path.suffix.lower() not in IMAGE_SUFFIXES or not path.is_file():
        return False
    if any(part.startswith(".") for part in path.relative_to(folder).parts):
        return False
    own_results = output.resolve() != folder.resolve() and path.resolve().is_relative_to(output.resolve())
    return not own_results


def make_folder(folder: Path) -> None:
    """Make an output folder where missing, and see that it can be written.

    Raises:
        DataError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".whitebox-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unwritable(folder, error) from error


def _save_picture(picture: Pixels, path: Path) -> None:
    Image.fromarray(picture).save(path, quality=92, subsampling=0)  # full colour resolution: borders stay sharp


def unwritable(folder: Path, error: OSError) -> DataError:
    """The one line for an output folder that cannot be written."""
    return DataError(f"Folder {folder} cannot be written ({error.strerror or error}): choose another with -o.")


def _colours(palette: Palette) -> Pixels:
    """(256, 3) uint8, filled up with the colour of ignored pixels."""
    table = np.full((256, 3), _IGNORED, dtype=np.uint8)
    table[: len(palette)] = np.asarray(palette, dtype=np.uint8)
    return table


def blend(image_HW3: Pixels, label_HW: NDArray[np.integer], palette: Palette, alpha: float) -> Pixels:
    """Classes over a photo at opacity ``alpha``, their borders solid; RGB uint8 of the photo's size."""
    known = label_HW < len(palette)
    opacity = np.where(known, alpha, 0.0).astype(np.float32)
    border = np.zeros(label_HW.shape, dtype=bool)
    border[:, 1:] |= label_HW[:, 1:] != label_HW[:, :-1]
    border[1:] |= label_HW[1:] != label_HW[:-1]
    opacity[border & known] = 1.0 if alpha > 0 else 0.0
    blended = image_HW3 + opacity[..., None] * (colourise(label_HW, palette).astype(np.float32) - image_HW3)
    return np.rint(blended).astype(np.uint8)


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
    font = ImageFont.load_default(size)
    pad = size // 2
    widths = [size + 3 * pad + int(font.getlength(classes[index])) for index in present]
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
        draw.text((x + size + pad, y + size / 2), classes[index], fill="#202020", font=font, anchor="lm")
    return np.asarray(canvas)
