"""Figures that are laid out and not drawn: drawing takes most of the time of what tests measure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE = 10_000  # bytes; a full disk has no room for it


def save_blank(_: Figure, target: Path, **options: Any) -> None:
    """In place of ``Figure.savefig``: a file of the size of a picture."""
    target.write_bytes(bytes(SIZE))
