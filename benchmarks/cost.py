"""What measuring costs against what it grows with, and how near that is to the limit: ``python benchmarks/cost.py``.

    tokens    one crop from pixels to labels, against the patches in it
    classes   decoder, pixels and counts of one photo whose tokens are there, against the number of classes
    images    ``whitebox eval`` of so many photos, reading included
    draws     a noise sweep of so many draws at one level, encoding four photos once included

*The limit* is the matrix products and the attention of the same task alone (`benchmarks/limit.py`), measured in the
same turns. Writes a table (CSV, Markdown, LaTeX) and a figure (PNG, PDF), hardware and versions in their names. Weights
and photos are random; of random weights all classes are everywhere about as likely, which is the worst case.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from limit import limit
from robustness import run_of
from speed import Bench, Setting
from turns import spread

from analysis.consumed import Chosen, EvaluatedImages
from analysis.measures.changes import ChangedRun
from analysis.measures.noise import Noise
from analysis.record import hardware
from analysis.show.figures import PAGE, figure_style, new_figure, save_figure
from analysis.show.tables import Column, Estimate, Table
from whitebox.engine.encoded import MEMORY
from whitebox.engine.evaluate import evaluate
from whitebox.memory import keep_freed
from whitebox.runs import Run
from whitebox.terminal import table_console

SIDES = (128, 256, 384, 512, 640)  # px
CLASSES = (2, 50, 100, 150, 200, 250)
IMAGES = (1, 2, 4)
DRAWS = (1, 2, 4, 8)
Task = tuple[str, int, Callable[[], object]]  # what it grows with, how much of it, and the task
Found = tuple[str, int, Estimate, Estimate]  # seconds of the task, and at the limit


def changed(run: Run, images: int) -> ChangedRun:
    """A run whose decoder is to be changed, on some of its photos."""
    return ChangedRun(run, EvaluatedImages(run, Chosen(limit=images)), MEMORY, "decoder")


def tasks(model: str, size: int, folder: Path) -> Iterator[Task]:
    """All that is measured."""
    for side in SIDES:
        crop = Bench(model, Setting(size=side))
        patches = side // crop.model.encoder.patch_size
        yield "tokens", patches**2, lambda crop=crop: crop.forward("ours")  # type: ignore[misc]
    for classes in CLASSES:
        one = changed(run_of(folder / f"classes-{classes}", model, size, classes, 1, steps=0), 1).encoded
        yield "classes", classes, one.evaluate
    run = run_of(folder / "images", model, size, 150, max(IMAGES), steps=0)
    dataset = EvaluatedImages(run, Chosen()).dataset
    for images in IMAGES:

        def evaluated(images: int = images) -> object:
            return evaluate(run.model, dataset, run.inference, run.data, limit=images)

        yield "images", images, evaluated
    noise = Noise(levels=(0.01,), draws=max(DRAWS))
    for draws in DRAWS:

        def swept(draws: int = draws) -> object:
            bench = changed(run, 4)
            return [bench.measure(key) for draw in range(draws) for key in noise.keys(0.01, draw)]

        yield "draws", draws, swept


def measure(every: list[Task], turns: int) -> Iterator[Found]:
    """Seconds of each task and of its limit; all take turns, and the first turn is not counted."""
    passed: list[list[float]] = [[] for _ in every]
    least: list[list[float]] = [[] for _ in every]
    for turn in range(turns + 1):
        for number, (_, _, task) in enumerate(every):
            start = time.perf_counter()
            task()
            if turn:
                passed[number].append(time.perf_counter() - start)
                least[number].append(limit(task))
    for number, (what, amount, _) in enumerate(every):
        yield what, amount, spread(passed[number]), spread(least[number])


def draw(found: list[Found], on: str, turns: int, output: Path) -> list[Path]:
    """A panel for each thing that the cost grows with."""
    from matplotlib.ticker import MaxNLocator

    titles = {
        "tokens": "one crop",
        "classes": "one photo, its tokens there",
        "images": "evaluation",
        "draws": "noise sweep, four photos",
    }
    with figure_style() as colours:
        figure = new_figure(4.6, PAGE)
        for axes, (what, title) in zip(figure.subplots(2, 2).flat, titles.items(), strict=True):
            own = [(amount, took, least) for each, amount, took, least in found if each == what]
            amounts = [amount for amount, _, _ in own]
            took = [each for _, each, _ in own]
            middle = [each.value for each in took]
            ends = [[each.value - each.low for each in took], [each.high - each.value for each in took]]
            style = {"fmt": "o", "markersize": 4, "elinewidth": 0.8, "color": colours[0], "label": "measured"}
            axes.errorbar(amounts, middle, ends, **style)
            limits = [each.value for _, _, each in own]
            axes.plot(amounts, limits, color=colours[1], linewidth=1, label="limit: products and attention alone")
            axes.set_xlim(0)
            axes.set_ylim(0)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_xlabel(what)
            axes.set_ylabel("time (s)")
            axes.set_title(title)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        figure.supxlabel(f"{on}; median and range of {turns} turns", fontsize=6.5)
        return save_figure(figure, output)


def run(
    model: str = "depict-sa-tiny",
    size: Annotated[int, typer.Option(min=32, help="Short side of photos, px.")] = 512,
    turns: Annotated[int, typer.Option(min=1, help="Turns that are counted.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="0: as PyTorch chooses.")] = 0,
    output: Annotated[Path, typer.Option("--output", "-o")] = Path("results/benchmarks"),
) -> None:
    """Measure, print and write."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed()
    with TemporaryDirectory() as folder:
        found = list(measure(list(tasks(model, size, Path(folder))), turns))
    version = torch.__version__.split("+")[0]
    on = f"{model}, {hardware()['cpu']}, {torch.get_num_threads()} threads, fp32, torch {version}"
    table = Table(
        (
            Column("Grows with"),
            Column("Amount", 0),
            Column("Time (s)", 3),
            Column("Limit (s)", 3),
            Column("Time / limit", 2),
        ),
        tuple((what, amount, took, least, took.value / least.value) for what, amount, took, least in found),
        f"{on}. Photos of {size * 4 // 3} x {size} px, 150 classes where nothing else is said. Tokens: one crop; "
        "classes: decoder, pixels and counts of one photo; images: an evaluation, reading included; draws: a sweep at "
        f"one level on four photos, encoding included. Median [range] of {turns} turns. The limit: matrix products and "
        "attention alone.",
    )
    stem = output / re.sub(r"[^a-z0-9.]+", "-", f"cost {on}".lower())
    console = table_console()
    console.print(table.to_rich())
    for path in (*table.write(stem), *draw(found, on, turns, stem.with_name(f"{stem.name}.png"))):
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(run)
