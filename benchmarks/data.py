"""How long reading and augmenting takes, beside which a training step or an evaluated image must be fast.

``python benchmarks/data.py`` times single samples in one process and one thread: ``shapes`` as it is drawn, and
photo-like JPEGs of 683 x 512 px with PNG labels through the recipe of ADE20K. ``train.workers`` processes share this
work while the model computes. Writes CSV, Markdown and LaTeX, hardware and versions in their names.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import cv2
import numpy as np
import torch
import typer

from analysis.record import hardware
from analysis.show.tables import Column, Estimate, Table
from whitebox.config import DataConfig, resolve
from whitebox.data import build_dataset
from whitebox.terminal import table_console

IMAGES, CLASSES, SIZE = 8, 150, (512, 683)


def write_photos(folder: Path) -> None:
    """Smooth noise compresses like a photo; labels are large regions."""
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for index in range(IMAGES):
        coarse = random.integers(0, 256, (64, 85, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / f"{index}.jpg"), cv2.resize(coarse, SIZE[::-1]))
        regions = random.integers(0, CLASSES, (6, 8), dtype=np.uint8)
        label = cv2.resize(regions, SIZE[::-1], interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / "masks" / f"{index}.png"), label)


def milliseconds(config: DataConfig, split: str, augment: bool, turns: int) -> Estimate:
    """A sample, median and range over turns of ``IMAGES`` samples; the first turn is not counted."""
    mean = (127.5, 127.5, 127.5) if augment else None
    dataset, passed = build_dataset(config, split, augment=augment, mean_255=mean), []
    for turn in range(turns + 1):
        start = time.perf_counter()
        for index in range(IMAGES):
            dataset[turn, index]
        passed.append(1000 * (time.perf_counter() - start) / IMAGES)
    return Estimate(statistics.median(passed[1:]), min(passed[1:]), max(passed[1:]))


def main(turns: Annotated[int, typer.Option(min=1)] = 15, output: Path = Path("results/benchmarks")) -> None:
    """Measure, print and write the table."""
    torch.set_num_threads(1)
    shapes = resolve("segmenter-linear-tiny", "shapes").data
    with TemporaryDirectory() as folder:
        write_photos(Path(folder))
        names = [f"class {index}" for index in range(CLASSES)]
        photos = DataConfig(name="photos", kind="folder", path=folder, classes=names)
        rows = [
            (title, milliseconds(config, split, augment, turns))
            for title, config, split, augment in (
                ("shapes, 128 px, drawn and augmented", shapes, "train", True),
                ("photo, 683 x 512 px, read and augmented to a 512 px crop", photos, ".", True),
                ("photo, 683 x 512 px, read for evaluation", photos, ".", False),
            )
        ]
    cpu, version = hardware()["cpu"], torch.__version__.split("+")[0]
    table = Table(
        columns=(Column("Sample"), Column("ms", 2)),
        rows=tuple(rows),
        caption=f"{cpu}, one thread, torch {version}, OpenCV {cv2.__version__}; median and range over {turns} turns of "
        f"{IMAGES} samples.",
    )
    table_console().print(table.to_rich())
    table.write(output / f"data-{cpu}-torch-{version}".lower().replace(" ", "-"))


if __name__ == "__main__":
    typer.run(main)
