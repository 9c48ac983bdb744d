"""Versions of the code and of what it stands on, for weight headers and records."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy")


@cache
def git_commit() -> str | None:
    """Commit of the checkout whitebox runs from, ``-dirty`` when tracked files differ; None outside a checkout."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):  # no git program, or no commit yet
        return None


def versions() -> dict[str, str | None]:
    """Versions by name: whitebox, its git commit, Python and the packages results depend on."""
    import cv2  # two distributions bring it, so it is asked itself

    own = {"git_commit": git_commit(), "python": platform.python_version(), "opencv": cv2.__version__}
    return {
        **own,
        **{name: _installed("whitebox-seg" if name == "whitebox" else name) for name in ("whitebox", *PACKAGES)},
    }


@cache
def _installed(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
