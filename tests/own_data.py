"""A small data set as a user lays it out, to be spoilt in one way or another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SMALL = [
    "data.crop=32",
    "data.resize=32",
    "encoder.depth=1",
    "encoder.width=24",
    "encoder.heads=2",
    "train.epochs=1",
    "train.batch_size=2",
    "train.workers=0",
]


def make_folder(root: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """3 classes, 2 images of 64 x 48 px a split: images/, masks/ and classes.txt."""
    for split in splits:
        for number in range(2):
            label = np.zeros((48, 64), np.uint8)
            label[8 + number : 30, 10:40] = 1
            label[20:, 30 + number :] = 2
            noise = np.random.default_rng(number).integers(0, 60, (48, 64, 3), dtype=np.uint8)
            for kind, array in (("images", np.repeat(60 * label[..., None], 3, 2) + noise), ("masks", label)):
                path = root / kind / split / f"im{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    (root / "classes.txt").write_text("road\ncar\nsky\n")
    return root


def change_masks(root: Path, change: Callable[[np.ndarray], np.ndarray], split: str = "*") -> None:  # type: ignore[type-arg]
    """Replace each label of a split by what ``change`` makes of it."""
    for path in sorted(root.glob(f"masks/{split}/*.png")):
        Image.fromarray(change(np.array(Image.open(path))).astype(np.uint8)).save(path)
