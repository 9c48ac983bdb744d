"""How fast labels of many classes are found from a few pixels: ``python benchmarks/labels.py``.

A photo of 4 : 3 that two overlapping windows have seen; its masks are made, so that predictions have regions of one
class, six along a window's side, or are another class in nearly each patch. *All pixels*: logits of each pixel, tile by
tile, and the largest of them. *Ours*: what ``whitebox.engine.knots`` makes of the same masks, or all pixels where it
sees that little is to be gained. Both take turns; the ratio is the median of those of turns. *Searched*: pieces between
patches whose ends differ.

Writes CSV, Markdown and LaTeX, hardware and versions in their names.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated
from unittest import mock

import numpy as np
import torch
import typer
from torch import Tensor
from torch.nn import functional as F
from turns import ratio, seconds, spread

from analysis.record import hardware
from analysis.show.tables import Cell, Column, Table
from whitebox.engine.assembly import View, WindowedPhoto
from whitebox.memory import keep_freed
from whitebox.terminal import table_console

PATCH = 16  # px
PREDICTIONS = {"regions": 6, "another class in each patch": None}  # kind: cells along a window's side


def masks_of(classes: int, places: int, cells: int | None, seed: int) -> Tensor:
    """Mask logits of a window, (K, places, places)."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(classes, places, places, generator=random)
    if cells is None:
        return noise
    regions = F.one_hot(torch.randint(0, classes, (cells, cells), generator=random), classes).permute(2, 0, 1)
    return 0.3 * noise + 8 * F.interpolate(regions[None].float(), places, mode="bilinear")[0]


def seen(classes: int, size: int, cells: int | None) -> WindowedPhoto:
    """A photo of ``size`` px whose windows a model has seen."""
    shape = (size, size * 4 // 3)
    view = View(shape, False, size, size)
    for number in range(len(view.lefts)):
        view.receive(number, masks_of(classes, size // PATCH, cells, number), None, PATCH, shape)
    photo = WindowedPhoto(iter(()), shape)
    photo.views = [view]
    return photo


def from_all_pixels(photo: WindowedPhoto) -> Tensor:
    """Labels as they are found where nothing is to be gained."""
    with mock.patch.object(View, "labels", return_value=None):
        return photo.labels()


def searched(photo: WindowedPhoto) -> float:
    """Share of the pieces along rows, between patches, whose ends differ in their class."""
    label, knots = from_all_pixels(photo).numpy(), photo.views[0].columns.knots
    return float(np.mean(label[:, knots.first] != label[:, knots.first + knots.length - 1]))


@torch.inference_mode()
def main(
    size: Annotated[int, typer.Option(min=64, help="px")] = 512,
    classes: Annotated[list[int] | None, typer.Option(min=2, help="Default: 32, 150 and 847.")] = None,
    turns: Annotated[int, typer.Option(min=1)] = 15,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    output: Path = Path("results/benchmarks"),
) -> None:
    """Measure, print and write the table."""
    torch.set_num_threads(threads)
    keep_freed()  # as commands do
    rows: list[tuple[Cell, ...]] = []
    for K in classes or (32, 150, 847):
        for kind, cells in PREDICTIONS.items():
            photo = seen(K, size, cells)
            differing = int((from_all_pixels(photo) != photo.labels()).sum())
            passed = seconds({"all pixels": partial(from_all_pixels, photo), "ours": photo.labels}, turns)
            milliseconds = (spread([1000 * each for each in found]) for found in passed.values())
            compared = ratio(passed["ours"], passed["all pixels"])
            rows.append((K, kind, 100 * searched(photo), *milliseconds, compared, differing))
    cpu, version = hardware()["cpu"], torch.__version__.split("+")[0]
    table = Table(
        columns=(
            Column("Classes"),
            Column("Predictions"),
            Column("Searched (%)", 0),
            Column("All pixels (ms)", 1),
            Column("Ours (ms)", 1),
            Column("Ratio", 2),
            Column("Labels that differ"),
        ),
        rows=tuple(rows),
        caption=f"{cpu}, {threads} threads, fp32, torch {version}; a photo of {size * 4 // 3} x {size} px, patches of "
        f"{PATCH} px; median [range] of {turns} turns.",
    )
    table_console().print(table.to_rich())
    table.write(output / re.sub(r"[^\w.]+", "-", f"labels-{cpu}-{threads}-threads-torch-{version}").lower())


if __name__ == "__main__":
    typer.run(main)
