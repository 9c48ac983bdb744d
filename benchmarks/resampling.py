"""How long intervals over trainings and units take: ``OMP_NUM_THREADS=1 python benchmarks/resampling.py``.

mIoU, mAcc, aAcc, and IoU and accuracy of each class, with intervals of 10,000 resamples: of all models alone, and of
the differences of all to the first. *Study* is 9 models of 5 trainings on 101 images of 11 classes, each image a unit;
*large* is one training on 2,000 images of 150 classes. Counts are random: time does not depend on them.

Writes CSV, Markdown and LaTeX, hardware and versions in their names. The number of threads is that of the environment.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from turns import spread

from analysis.maths.conventions import RESAMPLES
from analysis.maths.resampling import interval
from analysis.measures.evaluation import sampled_scores
from analysis.record import hardware
from analysis.show.tables import Cell, Column, Table
from whitebox.terminal import table_console

SETTINGS = {"study": (9, 5, 101, 11), "large": (1, 1, 2000, 150)}  # models, trainings, images, classes


def random_counts(models: int, seeds: int, images: int, classes: int) -> NDArray[np.int64]:
    """Intersection, prediction and label of each image and class, (models, S, N, 3, K)."""
    random = np.random.default_rng(0)
    label = np.broadcast_to(random.integers(1, 1000, (images, classes)), (models, seeds, images, classes))
    right = (label * random.uniform(0.3, 0.9, label.shape)).astype(np.int64)
    return np.stack([right, right + random.integers(0, 300, right.shape), label], axis=-2)


def timed(models: int, seeds: int, images: int, classes: int, resamples: int) -> tuple[float, float]:
    """Seconds for the intervals of all models, and for those of the differences to the first."""
    counts = random_counts(models, seeds, images, classes)
    start = time.perf_counter()
    found = [sampled_scores(each, None, resamples, 0, "occurring") for each in counts]
    for each in found:
        interval(each, within=(0.0, 1.0))
    alone = time.perf_counter()
    for each in found[1:]:
        interval(each.minus(found[0], matched=True), within=(-1.0, 1.0))
    return alone - start, time.perf_counter() - alone


def main(
    resamples: Annotated[int, typer.Option(min=1)] = RESAMPLES,
    turns: Annotated[int, typer.Option(min=1)] = 5,
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("results/benchmarks"),
) -> None:
    """Seconds of both settings."""
    timed(1, 1, 3, 2, 10)  # what is imported late
    rows: list[tuple[Cell, ...]] = []
    for name, setting in SETTINGS.items():
        passed = [timed(*setting, resamples) for _ in range(turns)]
        models, seeds, images, classes = setting
        sums = [*zip(*passed, strict=True), [sum(each) for each in passed]]
        rows.append((name, models, seeds, images, classes, *map(spread, sums)))
    counts = (Column(each, 0) for each in ("Models", "Trainings", "Images", "Classes"))
    seconds = (Column(each, 2) for each in ("Alone (s)", "Differences (s)", "Together (s)"))
    cpu, threads = hardware()["cpu"], os.environ.get("OMP_NUM_THREADS", "all")
    table = Table(
        (Column("Setting"), *counts, *seconds),
        tuple(rows),
        f"{cpu}, {threads} threads, numpy {np.__version__}; {resamples} resamples of images; median and range over "
        f"{turns} turns.",
    )
    table_console().print(table.to_rich())
    name = f"resampling-{cpu}-{threads}-threads-numpy-{np.__version__}".lower().replace(" ", "-")
    table.write(output / name)


if __name__ == "__main__":
    typer.run(main)
