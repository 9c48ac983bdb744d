"""Reading image and label files: every pixel right, or one line that names the file.

Images are decoded by OpenCV (as mmsegmentation does, so that pixels are equal), labels by Pillow (which keeps the
indices of palette PNGs). Shapes: H, W pixels.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from whitebox.errors import DataError

UInt8 = npt.NDArray[np.uint8]

IGNORE = 255  # label value of pixels that do not count
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

# Data loading is parallel over processes; OpenCV's own threads would compete with them, and can hang after a fork.
cv2.setNumThreads(0)

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
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


def _is_complete(content: bytes) -> bool:
    """Whether the file holds all it promises; OpenCV fills what is missing with grey and says nothing."""
    if content.startswith(_JPEG_START) and content.rstrip(b"\0").endswith(_JPEG_END):
        return True
    if content.startswith(_PNG_START) and content.endswith(_PNG_END):
        return True
    # Data may follow the end of an image (motion photos), and other formats have no end mark: decode to know.
    try:
        with silent_decoders(), Image.open(io.BytesIO(content)) as image:
            image.load()
    except UnidentifiedImageError:
        return True  # a format that only OpenCV knows, and OpenCV refuses what it cannot decode
    except _PILLOW_ERRORS:
        return False
    return True


def read_image(path: str | os.PathLike[str]) -> UInt8:
    """An image file as RGB, shape (H, W, 3), uint8.

    The EXIF orientation is applied; 16-bit images are scaled to 8 bits, grey ones get three equal channels, and
    transparency is dropped (the colours below it stay).

    Raises:
        DataError: the file is missing, empty, cut short, or not an image.
    """
    path = Path(path)
    content = _read_bytes(path, "Image")
    if not _is_complete(content):
        raise DataError(f"Image {path} is damaged or cut short: replace or remove it.")
    try:
        with silent_decoders():
            image_HW3 = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # more pixels than OpenCV allows
        image_HW3 = None
    if image_HW3 is None:
        raise DataError(f"Image {path} is damaged, no image, or of a kind that is not known: replace or remove it.")
    return cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def read_label(path: str | os.PathLike[str]) -> UInt8:
    """A label file as the class indices it stores, shape (H, W), uint8. Palette PNGs give their indices.

    Raises:
        DataError: the file is missing, empty, cut short, no image, in colour, or holds values above 255.
    """
    path = Path(path)
    content = _read_bytes(path, "Label")
    try:
        with silent_decoders(), Image.open(io.BytesIO(content)) as image:
            mode, label = image.mode, np.asarray(image)
    except _PILLOW_ERRORS:
        raise DataError(f"Label {path} is damaged, cut short, or no image: replace or remove it.") from None
    if label.ndim != 2 or label.dtype.kind == "f":
        raise DataError(f"Label {path} is a colour image (mode {mode}): labels hold one class index a pixel.")
    if label.size and (label.min() < 0 or label.max() > 255):
        value = int(label.max() if label.max() > 255 else label.min())
        raise DataError(f"Label {path} holds the value {value}: class indices lie in 0..253, and 255 is ignored.")
    return label.astype(np.uint8)
