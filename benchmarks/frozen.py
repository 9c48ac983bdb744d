"""What a frozen encoder and a store of its tokens save: ``python benchmarks/frozen.py run``.

One update of a model, batch in memory, as ``whitebox train`` makes it, in three ways that take turns:

    whole    encoder and decoder are trained
    frozen   the encoder only encodes
    stored   its tokens come from a store (fp16), reading and unpacking included

Four parts, each a table (CSV, Markdown, LaTeX), hardware and versions in their names:

    steps     an update by crop, in the three ways; also a figure
    epochs    an epoch of every decoder on stored tokens, and what of an update is reading
    store     building it against plain forward passes of the same images
    memory    by how much a fresh process grows in one update beyond what it held with all libraries imported

The encoder is a ViT-S/14 (dinov2-small) with random weights, and images are the built-in shapes: time depends on
neither.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from unittest import mock

import torch
import typer
from turns import ratio, seconds, spread

from analysis.record import hardware
from analysis.show.figures import PAGE, figure_style, new_figure, save_figure
from analysis.show.tables import Cell, Column, Estimate, Table
from whitebox.config import RunConfig, resolve
from whitebox.data import build_dataset, dataset_info
from whitebox.engine.batches import Batch, collate
from whitebox.engine.distributed import StopSignals, accelerator_for
from whitebox.engine.update import Learner
from whitebox.engine.views import PRECISIONS, EncodedViews, Views, encoded_views
from whitebox.memory import held_gb, peak_gb
from whitebox.models import build
from whitebox.terminal import table_console

ENCODER = "dinov2-small"
WAYS = ("whole", "frozen", "stored")
DECODERS = {
    "DEPICT-SA": ("depict-sa-small", ()),
    "DEPICT-CA": ("depict-ca-small", ()),
    "CBSA": ("cbsa-small", ()),
    "ToST": ("tost-small", ()),
    "CRATE": ("crate-small", ()),
    "SegViT": ("segvit-small", ()),
    "Segmenter, mask": ("segmenter-mask-small", ()),
    "Segmenter, linear": ("segmenter-linear-small", ()),
    "linear with BatchNorm": ("segmenter-linear-small", ("decoder.batch_norm=true",)),
}
FIRST = "DEPICT-SA"  # of which everything is measured; the others by an epoch
CROPS = (252, 378, 504)
EPOCH = 367 // 8 * 8  # images of an epoch of CamVid, in batches of 8


class Bench:
    """A decoder behind the encoder, a batch of views, and their rows in a store."""

    def __init__(self, title: str, way: str, crop: int, batch: int, device: str = "cpu") -> None:
        model, overrides = DECODERS[title]
        shapes = (f"data.size={crop}", f"data.resize={crop}", f"data.crop={crop}", f"data.train_length={batch}")
        own = (f"train.batch_size={batch}", "data.views=1", *overrides)
        frozen = "false" if way == "whole" else "true"
        own = (*own, "encoder.pretrained=false", f"encoder.frozen={frozen}", f"encoder.random={frozen}")
        self.config: RunConfig = resolve(model, "shapes", (*shapes, *own), encoder=ENCODER, recipe="frozen")
        torch.manual_seed(0)
        classes, palette = dataset_info(self.config.data)
        built = build(self.config.encoder, self.config.decoder, len(classes), classes, palette)
        self.learner = Learner(built, self.config, accelerator_for(self.config, Path(), device), None)
        self.signals, self.way, self.keys = StopSignals(), way, [(0, index) for index in range(batch)]
        self.samples: Views | EncodedViews = self.views(0)
        if way == "stored":
            self.samples = self.stored(self.samples, 0)
            self.learner.inputs = self.samples.encoded
        self.batch = self.read()

    def views(self, seed: int) -> Views:
        mean_255 = tuple(self.learner.built.mean.flatten().tolist())
        images = build_dataset(self.config.data, "train", augment=True, seed=seed, mean_255=mean_255)
        return Views(images, 1)

    def stored(self, views: Views, seed: int) -> EncodedViews:
        """The views with their tokens; those of another seed are in another store."""
        config = replace(self.config, data=replace(self.config.data, view_seed=seed))
        return encoded_views(self.learner.built, views, config, "made")

    def read(self) -> Batch:
        return collate(([self.samples[key] for key in self.keys], 0.0))

    def update(self) -> None:
        """One step; that of stored tokens reads them."""
        batch = self.read() if self.way == "stored" else self.batch
        self.learner.update(batch, 0, self.config.optim.lr, self.signals)

    @torch.inference_mode()
    def forward(self) -> None:
        """The encoder's pass of a batch that is in memory."""
        self.learner.built.eval()
        self.learner.built.encode(self.batch.images)


def steps(crops: list[int], batch: int, turns: int) -> Iterator[tuple[Cell, ...]]:
    """An update in three ways, by crop."""
    for crop in crops:
        benches = {way: Bench(FIRST, way, crop, batch) for way in WAYS}
        passed = seconds({way: bench.update for way, bench in benches.items()}, turns)
        height, width = benches["whole"].learner.built.packing((crop, crop)).grids[0]
        times = [spread(passed[way]) for way in WAYS]
        gains = [ratio(passed[way], passed["stored"]) for way in ("whole", "frozen")]
        yield (crop, height * width, *times, *gains)


def epochs(crop: int, batch: int, turns: int) -> Iterator[tuple[Cell, ...]]:
    """Stored tokens to an epoch of each decoder, and what of an update is reading."""
    for title in DECODERS:
        bench = Bench(title, "stored", crop, batch)
        passed = seconds({"update": bench.update, "read": bench.read}, turns)
        trained = sum(value.numel() for value in bench.learner.built.parameters() if value.requires_grad)
        epoch = spread([each * EPOCH / batch for each in passed["update"]])
        reading = spread(
            [100 * part for part in (r / u for r, u in zip(passed["read"], passed["update"], strict=True))]
        )
        yield (title, trained / 1e6, spread(passed["update"]), epoch, reading)


def stores(crop: int, batch: int, turns: int) -> Iterator[tuple[Cell, ...]]:
    """Building a store against plain passes of the same images, its size, and memory."""
    bench, seed = Bench(FIRST, "frozen", crop, batch), iter(range(1, turns + 2))

    def build_store() -> EncodedViews:
        chosen = next(seed)
        return bench.stored(bench.views(chosen), chosen)

    passed = seconds({"plain": bench.forward, "built": build_store}, turns)
    yield "plain passes of the encoder, images/s", spread([batch / each for each in passed["plain"]])
    yield "building the store, images/s", spread([batch / each for each in passed["built"]])
    yield "time of building / plain", ratio(passed["built"], passed["plain"])
    packing, dtype = bench.learner.built.packing((crop, crop)), PRECISIONS[bench.config.store.precision]
    yield "bytes a token", packing.length * dtype.itemsize // math.prod(packing.grids[0])


def memory(crop: int, batch: int) -> Iterator[tuple[Cell, ...]]:
    """What a process of each way held before, and at most, in one update."""
    grown: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for way in WAYS:
        before, peak = peak_memory(way, crop, batch)
        grown[way] = peak - before
        peaks[way] = peak
        yield way, before, peak, grown[way], grown[way] / grown[WAYS[0]], peak / peaks[WAYS[0]]


def peak_memory(way: str, crop: int, batch: int) -> tuple[float, float]:
    """In GB, of a fresh process: with all libraries imported, and at most during one update."""
    command = [sys.executable, str(Path(__file__).resolve()), "peak", way, str(crop), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, peak = done.stdout.split()[-2:]
    return float(before), float(peak)


@contextmanager
def own_stores() -> Iterator[None]:
    """Stores that nobody else sees, gone afterwards."""
    with TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"WHITEBOX_CACHE": folder}):
        yield


def figure(rows: Sequence[Sequence[Cell]], stem: Path) -> None:
    """Seconds of an update against tokens, in three ways."""
    with figure_style():
        made = new_figure(PAGE / 2, 2.6)
        axes = made.add_subplot()
        for index, way in enumerate(WAYS):
            cells = [row[2 + index] for row in rows]
            assert all(isinstance(cell, Estimate) for cell in cells)
            axes.plot([row[1] for row in rows], [cell.value for cell in cells], marker="o", label=way)  # type: ignore[union-attr,arg-type]
        axes.set(xlabel="tokens an image", ylabel="seconds an update", xscale="log", yscale="log")
        tokens = [float(str(row[1])) for row in rows]
        axes.set_xticks(tokens, [f"{each:g}" for each in tokens])
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.legend()
        save_figure(made, stem)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    turns: Annotated[int, typer.Option(min=1)] = 5,
    crop: Annotated[list[int], typer.Option(help="px; all but the update is measured at the first.")] = list(CROPS),  # noqa: B006
    part: Annotated[list[str], typer.Option(help="steps, epochs, store, memory; repeat for several.")] = [],  # noqa: B006
    batch: int = 8,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    output: Path = Path("results/benchmarks"),
) -> None:
    """Measure, print and write."""
    torch.set_num_threads(threads)
    cpu, version = hardware()["cpu"], torch.__version__.split("+")[0]
    name = re.sub(r"[^a-z0-9.]+", "-", f"{cpu}-{threads}-threads-torch-{version}".lower())
    told = (
        f"{cpu}, {threads} threads, torch {version}, Python {platform.python_version()}; median and range over {turns} "
        f"turns that alternate; batches of {batch}, ViT-S/14."
    )
    first, console = crop[0], table_console()
    tables = {
        "steps": lambda: steps_table(list(steps(crop, batch, turns)), told),
        "epochs": lambda: Table(
            (
                Column("decoder"),
                Column("trained, M", 2),
                Column("update, s", 3),
                Column(f"epoch of {EPOCH} images, s"),
                Column("reading, % of the update", 2),
            ),
            tuple(epochs(first, batch, turns)),
            f"Training on stored tokens at {first} px; reading is part of the update. {told}",
        ),
        "store": lambda: Table(
            (Column("quantity"), Column("value", 2)),
            tuple(stores(first, batch, turns)),
            f"At {first} px; building reads and augments too. {told}",
        ),
        "memory": lambda: Table(
            (
                Column("way"),
                Column("before, GB", 2),
                Column("peak, GB", 2),
                Column("growth, GB", 2),
                Column(f"growth / {WAYS[0]}", 2),
                Column(f"peak / {WAYS[0]}", 2),
            ),
            tuple(memory(first, batch)),
            f"One update of {DECODERS[FIRST][0]} at {first} px, batch of {batch}, one thread, one process each. "
            f"Before: libraries, after an update of a linear decoder at 28 px. {cpu}, torch {version}.",
        ),
    }
    unknown = sorted(set(part) - set(tables))
    if unknown:
        raise typer.BadParameter(f"no part {', '.join(unknown)}; there are {', '.join(tables)}.")
    with own_stores():
        for chosen in part or tables:
            table = tables[chosen]()
            console.print(table.to_rich())
            table.write(output / f"frozen-{chosen}-{name}")
            if chosen == "steps":
                figure(table.rows, output / f"frozen-{chosen}-{name}")


def steps_table(rows: list[tuple[Cell, ...]], told: str) -> Table:
    """Of updates by crop."""
    ways = [Column(f"{way}, s", 3) for way in WAYS]
    ratios = [Column(f"{way} / {WAYS[-1]}", 1) for way in WAYS[:-1]]
    columns = (Column("crop, px", 0), Column("tokens", 0), *ways, *ratios)
    return Table(columns, tuple(rows), f"An update of {DECODERS[FIRST][0]}. {told}")


@app.command(hidden=True)
def peak(way: str, crop: int, batch: int) -> None:
    """Print what this process held in GB before one update, libraries included, and at most."""
    torch.set_num_threads(1)
    Bench("Segmenter, linear", "frozen", 28, 1).update()  # so that what is imported on the way is imported
    before = held_gb()
    Bench(FIRST, way, crop, batch).update()
    typer.echo(f"{before} {peak_gb()}")


if __name__ == "__main__":
    app()
