"""Packages that only some commands need, and OpenCV: where one is missing or broken, one line says so and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NamedTuple

from whitebox.errors import ConfigError

# OpenCV's wheel with windows needs X libraries to be imported; the one without writes the same folder.
HEADLESS = "pip install --force-reinstall --no-deps opencv-python-headless"


class Extra(NamedTuple):
    """What an extra of pyproject.toml brings."""

    module: str
    package: str
    opencv: bool = False  # whether it also brings the OpenCV with windows, over ours


EXTRAS = {
    "cluster": Extra("submitit", "submitit"),
    "export": Extra("onnxruntime", "onnx, onnxruntime and onnxscript"),
    "corruptions": Extra("imagecorruptions", "imagecorruptions-imaug", opencv=True),
    "mmseg": Extra("mmseg", "mmsegmentation", opencv=True),
    "video": Extra("av", "PyAV"),
    "sed": Extra("open_clip", "open_clip"),
}


def require_extra(name: str, user: str) -> None:
    """Raise a ``ConfigError`` with the line that installs an extra, unless it is there; ``user`` is what needs it."""
    extra = EXTRAS[name]
    if find_spec(extra.module) is None:
        then = f" && {HEADLESS}" if extra.opencv else ""
        raise ConfigError(f"{user} needs {extra.package}: pip install 'whitebox-seg[{name}]'{then}")


@contextmanager
def opencv_explained() -> Iterator[None]:
    """Turn the error of an OpenCV that cannot be imported into a ``ConfigError``; other errors get through."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        if isinstance(error, ImportError):
            about_cv2 = error.name == "cv2"
        else:  # what is left of the folder that two wheels share once one of them is uninstalled
            about_cv2 = getattr(error.obj, "__name__", "") == "cv2" and not hasattr(error.obj, "__version__")
        if not about_cv2:
            raise
        raise ConfigError(
            f"OpenCV cannot be imported ({error}): `{HEADLESS}` brings the one that needs no X libraries; or give "
            "yours what it lacks (on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0)."
        ) from error
