"""Packages that only some commands need: where one is missing, one line says so before any work."""

from __future__ import annotations

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
