"""Reading image and label files: every pixel right, or one line that names the file.

Images are decoded by OpenCV (as mmsegmentation does, so that pixels are equal), labels by Pillow (which keeps the
indices of palette PNGs). Shapes: H, W pixels.
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from whitebox.errors import DataError
from whitebox.memory import free_bytes, readable

UInt8 = npt.NDArray[np.uint8]
Label = npt.NDArray[np.unsignedinteger[Any]]  # uint8 or uint16

IGNORE = 255  # label value of pixels that do not count
NARROW, WIDE = 2**8, 2**16  # values that labels of 8 and of 16 bits store; the last one of them is ignored
OTHER_IMAGES = (".avif", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".svg")  # suffixes of what is not read
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

# Data loading is parallel over processes; OpenCV's own threads would compete with them, and can hang after a fork.
cv2.setNumThreads(0)

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_MOST_PIXELS = 2**30  # OpenCV's own limit
_ORIENTATION = 0x0112  # the tag of EXIF
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


@contextmanager
def silent_decoders() -> Iterator[None]:
    """Keep what OpenCV and Pillow have to say about a broken file off the terminal: our one line says it."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def _read_bytes(path: Path, what: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{what} {path} cannot be opened ({error.strerror}): check path and permissions.") from None
    if not content:
        raise DataError(f"{what} {path} is empty (0 bytes): replace or remove it.")
    return content


_pillow = threading.Lock()


def _opened(content: bytes) -> Image.Image:
    """A file opened by Pillow and not decoded yet, without Pillow's limit: we have our own."""
    with _pillow:  # the limit is global
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(content))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _require_room(path: Path, what: str, content: bytes, bytes_a_pixel: int) -> None:
    """Refuse a file by the size it says, before it is decoded."""
    try:
        with silent_decoders(), _opened(content) as image:
            width, height = image.size
    except _PILLOW_ERRORS:
        return  # a format that only OpenCV knows, or no image, which is said later
    if width * height > _MOST_PIXELS:
        raise DataError(f"{what} {path} has {width} x {height} px, more than 2^30 in all: make it smaller, or cut it.")
    needed = width * height * bytes_a_pixel
    if needed > (free := free_bytes(needed)):
        raise DataError(
            f"{what} {path} has {width} x {height} px, which need {readable(needed)} of memory, and {readable(free)} "
            "are free: make it smaller, or cut it."
        )


def _is_complete(content: bytes) -> bool:
    """Whether the file holds all it promises; OpenCV fills what is missing with grey and says nothing."""
    if content.startswith(_JPEG_START) and content.rstrip(b"\0").endswith(_JPEG_END):
        return True
    if content.startswith(_PNG_START) and content.endswith(_PNG_END):
        return True
    # Data may follow the end of an image (motion photos), and other formats have no end mark: decode to know.
    try:
        with silent_decoders(), _opened(content) as image:
            image.load()
    except UnidentifiedImageError:
        return True  # a format that only OpenCV knows, and OpenCV refuses what it cannot decode
    except _PILLOW_ERRORS:
        return False
    return True


def read_image(path: str | os.PathLike[str], room: int = 6) -> UInt8:
    """An image file as RGB, shape (H, W, 3), uint8.

    The EXIF orientation is applied; 16-bit images are scaled to 8 bits, grey ones get three equal channels, and
    transparency is dropped (the colours below it stay).

    Args:
        path: the file.
        room: bytes of free memory that it needs for each pixel, by what its header says; at least 6, for itself as it
            is decoded and as RGB, more where something is made of it.

    Raises:
        DataError: the file is missing, empty, cut short, not an image, of floating point, or too large for the memory.
    """
    path = Path(path)
    content = _read_bytes(path, "Image")
    _require_room(path, "Image", content, room)
    if not _is_complete(content):
        raise DataError(f"Image {path} is damaged or cut short: replace or remove it.")
    image_HW3 = _decoded(content, cv2.IMREAD_COLOR)
    if image_HW3 is None:
        raise DataError(f"Image {path} {_why_not_read(content)}")
    return cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def _decoded(content: bytes, how: int) -> npt.NDArray[Any] | None:
    try:
        with silent_decoders():
            return cv2.imdecode(np.frombuffer(content, np.uint8), how)
    except cv2.error:  # more pixels, or more channels, than OpenCV allows
        return None


def _why_not_read(content: bytes) -> str:
    """The end of the line about a file that cannot become 8-bit RGB."""
    stored = _decoded(content, cv2.IMREAD_UNCHANGED)
    if stored is None:
        return "is damaged, no image, or of a kind that is not known: replace or remove it."
    if stored.dtype.kind == "f":
        return f"holds floating point numbers ({stored.dtype}): save it with integers of 8 or 16 bits."
    channels = 1 if stored.ndim == 2 else stored.shape[2]
    return f"holds {channels} channels of {stored.dtype}: save it with 3 channels (or 1) of 8 or 16 bits."


def read_label(path: str | os.PathLike[str], values: int = NARROW) -> Label:
    """A label file as the class indices it stores, shape (H, W), uint8, or uint16 where ``values`` is ``WIDE``.

    Palette images give their indices. A GIF has no other way to be grey: there a grey palette gives its grey values.
    Floating point is read where all numbers are whole. An EXIF orientation is not applied. A MATLAB file gives its
    ``LabelMap`` (Pascal Context).

    Raises:
        DataError: the file is missing, empty, cut short, no image, in colour, too large for the memory, or holds values
            from ``values`` on, or fractions.
    """
    path = Path(path)
    if path.suffix == ".mat":
        return read_mat(path, "LabelMap", values - 2).astype(np.uint8 if values == NARROW else np.uint16)
    content = _read_bytes(path, "Label")
    _require_room(path, "Label", content, 2)
    try:
        with silent_decoders(), _opened(content) as image:
            mode, label = image.mode, np.asarray(image)
            if image.format == "GIF" and mode == "P":
                label = _grey_values(image, label)
            frames = getattr(image, "n_frames", 1) if image.format == "GIF" else 1
    except UnidentifiedImageError:
        stored = _decoded(content, cv2.IMREAD_UNCHANGED)  # TIFF of 64-bit numbers, for one
        if stored is None:
            raise DataError(f"Label {path} is damaged, cut short, or no image: replace or remove it.") from None
        mode, label, frames = f"{stored.dtype}", stored, 1
    except _PILLOW_ERRORS:
        raise DataError(f"Label {path} is damaged, cut short, or no image: replace or remove it.") from None
    if frames > 1:
        raise DataError(f"Label {path} is an animation of {frames} frames: labels are one image.")
    if label.ndim != 2:
        raise DataError(f"Label {path} {_why_no_label(mode, label)}")
    if label.dtype.kind == "f" and not (np.isfinite(label).all() and (label == np.rint(label)).all()):
        raise DataError(
            f"Label {path} holds floating point numbers with fractions (mode {mode}): labels hold one class index a "
            "pixel, as integers of 8 or 16 bits."
        )
    highest = values - 1
    if label.size and (label.min() < 0 or label.max() > highest):
        value = int(label.max() if label.max() > highest else label.min())
        raise DataError(
            f"Label {path} holds the value {value}: class indices lie in 0..{highest - 2}, and {highest} is ignored."
        )
    return label.astype(np.uint8 if values == NARROW else np.uint16)


def read_mat(path: Path, key: str, highest: int) -> npt.NDArray[np.int64]:
    """The label map ``key`` of a MATLAB file, whole numbers from 0 to ``highest``, shape (H, W).

    Raises:
        DataError: it is no such file, or holds no such map.
    """
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


def _grey_values(image: Image.Image, label: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The grey values behind the indices of a palette, where all that are used are grey; else the indices."""
    palette = np.zeros((256, 3), np.uint8)
    stored = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
    palette[: len(stored)] = stored
    used = palette[np.unique(label)]
    return palette[label, 0] if (used == used[:, :1]).all() else label


def _why_no_label(mode: str, label: npt.NDArray[Any]) -> str:
    """The end of the line about a label of several channels."""
    needed = "labels hold one class index a pixel"
    if mode in ("LA", "La", "PA"):
        return f"has transparency (mode {mode}): {needed}, so save it without."
    if label.shape[2] >= 3 and (label[..., :3] == label[..., :1]).all():
        return f"is a colour image (mode {mode}) of equal channels: {needed}, so save one channel of it."
    return f"is a colour image (mode {mode}): {needed}."


def orientation(path: str | os.PathLike[str]) -> int:
    """The EXIF orientation of an image file, 1 (upright) to 8; 1 where it has none, or cannot be opened."""
    try:
        content = Path(path).read_bytes()
        if content.startswith(_PNG_START) and b"eXIf" not in content:
            return 1  # Pillow would decode all of it to look behind the pixels
        with silent_decoders(), _opened(content) as image:
            found = image.getexif().get(_ORIENTATION, 1)
    except _PILLOW_ERRORS:
        return 1
    return found if found in range(1, 9) else 1
