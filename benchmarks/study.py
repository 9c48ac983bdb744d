"""What a large study costs on paper, and how long a sweep of many tasks takes to say where it is.

``python benchmarks/study.py cost`` counts a study of 30 encoders x 9 decoders x 5 seeds on the frozen tokens of ADE20K:
arithmetic by our own counter (``whitebox profile``), bytes from the sizes of tokens, no image and no weight. What
divides them are the constants below, each with where it is from. Two tables: each encoder, and the study on 1, 8 and
64 GPUs, with the tokens of V views stored and without a store.

Arithmetic, reading and augmenting run side by side, so the longest of them counts: where that is reading from one
server, more GPUs do not help.

``python benchmarks/study.py status`` writes a plan of 10,000 tasks with what became of them and times ``--status``, as
a user waits for it: a process of its own.

Shapes: N tokens of an image, D their width, V views of it.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from turns import seconds, spread

from analysis.measures.costs import count
from analysis.record import hardware
from analysis.show.tables import Cell, Column, Table
from experiments.foundation import DECODERS
from whitebox.catalog import encoder_names
from whitebox.config import resolve
from whitebox.models import build
from whitebox.sweep import DONE, FAILED, LOST, WAITING, read_plan
from whitebox.terminal import table_console

LEFT_OUT = ("clip-convnext", "dinov2-giant")  # no ViT; and what nobody trains nine decoders on
SEEDS, VIEWS, EPOCHS, BATCH = 5, 8, 20, 8  # the recipe `frozen`
TRAIN, VAL, CLASSES = 20_210, 2_000, 150  # of ADE20K; an evaluation takes about 1.3 windows of 512 px of an image
WINDOWS, STEPS = 1.3, EPOCHS * (TRAIN // BATCH)
TERA = 1e12
# Dense bf16 of an H200, as in benchmarks/gpu.py. The share of it that is reached is assumed: timm's tables have 0.73 of
# the peak in forward passes of ViT-B at 384 px (RTX 4090, compiled, 1,081 images/s of 111 GFLOPs) and 0.45 in training
# (RTX 3090, 97 images/s); matrices of a decoder, of 100 columns, fill less of a device.
PEAK, ENCODER_SHARE, DECODER_SHARE = 989 * TERA, 0.5, 0.2
# Measured: results/benchmarks/frozen-steps-*, 504 px, an update of depict-sa-small behind DINOv2-S on two threads
CPU_ENCODER, CPU_DECODER = 0.118 * TERA, 0.132 * TERA
# Assumed, bytes a second: one server behind 25 GbE (its line rate is 3.1e9), and a disk in each machine of 8 GPUs (NVMe
# on PCIe 4.0 x4, whose line rate is 7.9e9)
SERVER, DISK, IN_A_MACHINE = 2.5e9, 6e9, 8
# Assumed: what an update of a small decoder takes at least, some 200 kernels that one thread starts
UPDATE = 0.01
# Measured, s of one core: results/benchmarks/data-*, a photo read and augmented to a crop; assumed: processes of a GPU
AUGMENT, PROCESSES = 0.00908, 8
GPUS = (1, 8, 64)

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Behind:
    """What one encoder costs the study.

    Attributes:
        size: of the decoders behind it. crop: px. tokens: N.
        encoder, decoders: FLOP of one forward pass.
        rows: bytes of a view as each decoder reads it, tokens and label; those that take the same layers share a store.
    """

    name: str
    size: str
    crop: int
    tokens: int
    encoder: float
    decoders: tuple[float, ...]
    rows: tuple[int, ...]

    @property
    def stores(self) -> int:
        return len(set(self.rows))

    @property
    def stored(self) -> float:
        """Bytes of all stores."""
        return float(sum(set(self.rows)) * TRAIN * VIEWS)

    @property
    def read(self) -> float:
        """Bytes that all trainings read."""
        return float(sum(self.rows) * STEPS * BATCH * SEEDS)

    @property
    def once(self) -> float:
        """FLOP of the encoder's passes, once a store: all views, and the windows that are evaluated."""
        return self.encoder * (TRAIN * VIEWS + VAL * WINDOWS) * self.stores

    @property
    def always(self) -> float:
        """FLOP of the encoder where nothing is stored: in each training, and each evaluation."""
        return self.encoder * (STEPS * BATCH + VAL * WINDOWS) * SEEDS * len(self.decoders)

    @property
    def decoding(self) -> float:
        """FLOP of all decoders: a backward pass costs two forward passes."""
        return sum(self.decoders) * (3 * STEPS * BATCH + VAL * WINDOWS) * SEEDS

    @property
    def updating(self) -> float:
        """Seconds of one GPU for all updates and evaluations of decoders."""
        rate = DECODER_SHARE * PEAK
        updates = sum(max(UPDATE, 3 * BATCH * each / rate) for each in self.decoders) * STEPS
        return SEEDS * (updates + sum(self.decoders) * VAL * WINDOWS / rate)


@functools.cache
def on_a_grid(width: int, grid: int, size: str, decoders: Sequence[str]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Of each decoder: FLOP of a forward pass, and numbers that it takes of an image.

    Decoders see width and grid alone, so they stand on a plain ViT of these, and encoders alike share the count.
    """
    side = 16 * grid
    like = {
        "encoder.width": width,
        "encoder.heads": width // 64,
        "encoder.patch_size": 16,
        "data.crop": side,
        "inference.window": side,
        "inference.stride": side,
    }
    flops, lengths = [], []
    for decoder in decoders:
        own = dict(each.split("=", 1) for each in DECODERS[decoder].overrides)
        config = resolve(f"{DECODERS[decoder].model}-{size}", "ade20k", {**like, **own})
        with torch.device("meta"):
            model = build(config.encoder, config.decoder, CLASSES).eval()
        flops.append(1e9 * count(model, side)["decoder"].gflops)
        lengths.append(model.packing((side, side)).length)
    return tuple(flops), tuple(lengths)


def behind(name: str, decoders: Sequence[str] = tuple(DECODERS)) -> Behind:
    """Count what an encoder costs."""
    config = resolve("segmenter-linear-tiny", "ade20k", encoder=name, recipe="frozen")
    crop = config.data.crop
    with torch.device("meta"):
        bare = replace(config.encoder, pretrained=False, weights=None)
        model = build(bare, config.decoder, CLASSES).eval()
    width, grid = model.encoder.width, crop // model.encoder.patch_size
    size = next(
        size for size, most in (("tiny", 192), ("small", 384), ("base", 768), ("large", 10**6)) if width <= most
    )
    flops, lengths = on_a_grid(width, grid, size, decoders)
    rows = tuple(2 * length + crop**2 for length in lengths)
    return Behind(name, size, crop, grid**2, 1e9 * count(model, crop)["encoder"].gflops, flops, rows)


def encoder_table(found: Sequence[Behind]) -> Table:
    """A row an encoder."""
    gpu = PEAK * 3600
    rows: list[tuple[Cell, ...]] = [
        (
            each.name,
            each.tokens,
            each.encoder / 1e9,
            statistics.mean(each.decoders) / 1e9,
            each.stored / 1e9,
            each.once / ENCODER_SHARE / gpu,
            each.updating / 3600,
            each.read / SERVER / 3600,
            each.always / ENCODER_SHARE / gpu,
        )
        for each in found
    ]
    columns = (
        Column("Encoder"),
        Column("Tokens"),
        Column("Encoder, GFLOPs", 1),
        Column("a decoder, GFLOPs", 1),
        Column("Stores, GB", 0),
        Column("Encoding once, GPU h", 2),
        Column("updates, GPU h", 1),
        Column("reading, h", 1),
        Column("Encoding always, GPU h", 1),
    )
    caption = (
        f"ADE20K, {len(found[0].rows)} decoders x {SEEDS} seeds, {EPOCHS} epochs of {TRAIN:,} crops, {VIEWS} views, "
        f"fp16 tokens. Arithmetic is counted; GPU: {PEAK / TERA:.0f} TFLOP/s, of which an encoder reaches "
        f"{ENCODER_SHARE:g}, a decoder {DECODER_SHARE:g}, and an update takes {1000 * UPDATE:g} ms at least (assumed). "
        f"Reading: all trainings, {SERVER / 1e9:g} GB/s. Trainings and evaluations alone."
    )
    return Table(columns, tuple(rows), caption)


def study_table(found: Sequence[Behind]) -> Table:
    """The study on numbers of GPUs, in days; what each way waits for."""
    once, always, decoding, updating, read, stored = (
        sum(getattr(each, part) for each in found)
        for part in ("once", "always", "decoding", "updating", "read", "stored")
    )
    trainings, crop = SEEDS * sum(len(each.decoders) for each in found), AUGMENT / PROCESSES
    making = max(once / ENCODER_SHARE / PEAK, crop * TRAIN * VIEWS * sum(each.stores for each in found))  # of one GPU
    without = max(always / ENCODER_SHARE / PEAK + updating, crop * STEPS * BATCH * trainings)
    largest = max(each.stored for each in found)
    rows: list[tuple[Cell, ...]] = []
    for gpus in GPUS:
        reading = (read / SERVER, read / DISK / max(1, gpus // IN_A_MACHINE))
        days = [(making / gpus + max(updating / gpus, each)) / 86400 for each in (0.0, *reading)]
        waits = ["reading" if each > updating / gpus else "updates" for each in reading]
        rows.append((gpus, *days, without / gpus / 86400, *waits))
    years = (once / CPU_ENCODER + decoding / CPU_DECODER) / (365.25 * 86400)
    columns = (
        Column("GPUs"),
        Column("Without reading, days", 1),
        Column("store on one server, days", 1),
        Column("on a disk a machine, days", 1),
        Column("no store, days", 1),
        Column("one server: waits for"),
        Column("disks: wait for"),
    )
    caption = (
        f"{len(found)} encoders x {len(found[0].rows)} decoders x {SEEDS} seeds on ADE20K: "
        f"{(once + decoding) / 1e18:.0f} EFLOP with stored tokens, {(always + decoding) / 1e18:.0f} without; "
        f"stores {stored / TERA:.1f} TB (of one encoder at most {largest / TERA:.2f}), of "
        f"which trainings read {read / 1e15:.2f} PB. One server {SERVER / 1e9:g} GB/s, a disk {DISK / 1e9:g} GB/s in "
        f"each machine of {IN_A_MACHINE} GPUs (assumed); each GPU has {PROCESSES} processes that augment. "
        f"Two threads of an AMD EPYC at their measured rate: {years:.0f} years."
    )
    return Table(columns, tuple(rows), caption)


def written(table: Table, stem: Path) -> None:
    """Show a table, and write it."""
    table_console().print(table.to_rich())
    table.write(stem)


@app.command()
def cost(
    encoders: Annotated[list[str] | None, typer.Option(help="These alone.")] = None,
    decoders: Annotated[list[str] | None, typer.Option(help="These alone, as the study names them.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tables.")] = Path("results/benchmarks"),
) -> None:
    """Count the study."""
    names = encoders or [each for each in encoder_names() if not each.startswith(LEFT_OUT)]
    found = [behind(name, tuple(decoders or DECODERS)) for name in names]
    written(encoder_table(found), output / "study-encoders")
    written(study_table(found), output / "study-gpus")


def make_plan(folder: Path, tasks: int) -> Path:
    """A plan of so many tasks, with what became of them: most done, some failed or lost, the rest waiting."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "plan.yaml"
    plan.write_text(
        f"folder: {folder / 'runs'}\ntrain:\n  models: [segmenter-linear-tiny]\n  seeds: 0:{tasks}\n",
        encoding="utf-8",
    )
    read = read_plan(plan)
    read.place.mkdir(parents=True)
    for index, task in enumerate(read.tasks):
        state = {0: WAITING, 1: FAILED, 2: LOST}.get(index % 10, DONE)
        if state != WAITING:
            said = {"commands": task.commands, "state": state, "seconds": 60.0, "last": "error: the disk is full"}
            (read.place / f"{task.name}.json").write_text(json.dumps(said), encoding="utf-8")
    return plan


@app.command()
def status(
    tasks: Annotated[int, typer.Option(help="Of the plan.", min=1)] = 10_000,
    turns: Annotated[int, typer.Option(help="Repetitions.", min=1)] = 5,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the table.")] = Path("results/benchmarks"),
) -> None:
    """Time `whitebox sweep --status` of a plan of many tasks, whose files the system has in memory."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "whitebox", "sweep", str(make_plan(Path(folder), tasks)), "--status"]
        asked = functools.partial(subprocess.run, command, check=True, capture_output=True)
        (passed,) = seconds({"status": asked}, turns).values()
    machine = hardware()["cpu"]
    row = (tasks, spread(passed), os.getloadavg()[0])
    columns = (Column("Tasks"), Column("Status (s)", 2), Column("load", 1))
    caption = (
        f"From the start of the process to its end; median and range of {turns}. {machine}, Python "
        f"{platform.python_version()}; files in memory, no queue is asked."
    )
    written(Table(columns, (row,), caption), output / f"study-status-{'-'.join(machine.lower().split()[:2])}")


if __name__ == "__main__":
    app()
