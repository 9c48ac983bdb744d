"""Packages that only some commands need, and OpenCV: where one is missing or broken, one line says so and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from whitebox.errors import ConfigError

# `import cv2` of OpenCV's wheel with windows needs X libraries; the extras named here bring that wheel over ours.
HEADLESS = "pip install --force-reinstall --no-deps opencv-python-headless"
EXTRAS = {  # name in pyproject.toml: a module it brings, and what the package is called
    "corruptions": ("imagecorruptions", "imagecorruptions-imaug"),
    "mmseg": ("mmseg", "mmsegmentation"),
}


def require_extra(extra: str, user: str) -> None:
    """Raise a ``ConfigError`` with the line that installs an extra, unless it is there; ``user`` is what needs it."""
    module, package = EXTRAS[extra]
    if find_spec(module) is None:
        raise ConfigError(f"{user} needs {package}: pip install 'whitebox-seg[{extra}]' && {HEADLESS}")


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
