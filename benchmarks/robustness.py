"""How much faster a noise sweep is than evaluating each of its points: ``python benchmarks/robustness.py``.

A sweep of the decoder, sigmas x draws and the clean model, is measured as ``whitebox robustness`` measures it, with its
rows on disk; between its rows stand plain evaluations (``whitebox eval``) of the same images, so that what else the
machine does meets both. *All plain* is their median times the number of points; the ratio is that over the time of the
whole sweep. *Outside the decoder* is what the rows take besides the decoder itself: drawing noise, adding it, making
pixels of masks, counting, writing.

Labels of many classes are found the faster the larger the regions of one class (``whitebox.engine.knots``). So the
model is trained for a moment, on photos of 20 regions with a colour for each class; as many objects are in an image of
ADE20K (19.5: Zhou et al., CVPR 2017). ``--steps 0`` leaves weights random, whose regions are smaller. Writes CSV,
Markdown and LaTeX, hardware and versions in their names.

    python benchmarks/robustness.py                                                   # tiny, 512 px, 150 classes
    python benchmarks/robustness.py --model depict-sa-large --size 640 --images 1 --plain 2 --steps 0
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer
from torch import Tensor

from analysis.consumed import Chosen, EvaluatedImages
from analysis.measures.changes import CLEAN, ChangedRun
from analysis.measures.noise import Noise
from analysis.measures.rows import Key
from analysis.record import hardware
from analysis.show.tables import Column, Estimate, Table
from whitebox.config import resolve
from whitebox.engine.checkpoint import save_model
from whitebox.engine.encoded import MEMORY
from whitebox.engine.evaluate import evaluate
from whitebox.engine.log import Silent
from whitebox.engine.train import train
from whitebox.memory import keep_freed
from whitebox.models import build
from whitebox.runs import Run, open_run
from whitebox.terminal import table_console

CROP = 128  # px, of the training
APART = 16  # px, a patch


def write_photos(folder: Path, split: str, images: int, size: int, classes: int, seed: int) -> None:
    """Photos of 4 : 3: large regions, of a colour for each class, under a noise that compresses like a photo."""
    random, shape = np.random.default_rng(seed), (size * 4 // 3, size)
    levels = np.linspace(20, 235, math.ceil(classes ** (1 / 3)))
    colours = np.array(list(product(levels, repeat=3)))
    for kind in ("images", "masks"):
        (folder / kind / split).mkdir(parents=True)
    for index in range(images):
        regions = random.integers(0, classes, (4, 5), dtype=np.uint8)
        label = cv2.resize(regions, shape, interpolation=cv2.INTER_NEAREST)
        noise = cv2.resize(random.normal(0, 12, (size // 8, size // 6, 3)), shape)
        photo = np.clip(colours[label] + noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / split / f"{index}.jpg"), photo)
        cv2.imwrite(str(folder / "masks" / split / f"{index}.png"), label)


def run_of(folder: Path, model: str, size: int, classes: int, images: int, steps: int) -> Run:
    """A run on such photos, trained for some steps on parts of them."""
    write_photos(folder / "photos", "val", images, size, classes, seed=0)
    overrides: dict[str, Any] = {
        "data.path": str(folder / "photos"),
        "data.classes": [f"class {index}" for index in range(classes)],
        "data.resize": size,
        "data.crop": min(size, CROP),
        "data.photometric": False,
        "data.scale_range": [1.0, 1.0],
        "inference.window": size,
        "inference.stride": size,
        "encoder.image_size": size,
        "optim.name": "adamw",
        "optim.lr": 2e-3,
        "train.eval_every": 0,
        "train.steps": max(steps, 1),
    }
    config = resolve(model, "folder", overrides)
    if steps:
        write_photos(folder / "photos", "train", 4 * images, size, classes, seed=1)
        train(config, folder / "run", Silent())
    else:
        torch.manual_seed(0)
        built = build(config.encoder, config.decoder, classes, tuple(config.data.classes))
        save_model(folder / "run" / "model.safetensors", built, config)
    return open_run(folder / "run")


class Timed:
    """Calls a function, and adds up the seconds it takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any) -> Any:
        start = now()
        result = self.function(*arguments)
        self.seconds += now() - start
        return result


def now() -> float:
    """Seconds, when all that was asked of a device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(bench: ChangedRun, points: Sequence[Key], plain: int, folder: Path) -> dict[str, Any]:
    """Seconds of a sweep, of what is in it, and of ``plain`` evaluations spread between its rows."""
    run, evaluations, taken, inside = bench.run, [], [], []
    differing: list[float] = []
    decoder = Timed(run.model.decoder.predict)
    encoding, add = Timed(lambda: bench.encoded), Timed(lambda key: rows.add(key, bench.measure(key)))

    def look(_: int, __: Any, label_HW: Tensor) -> None:
        differing.append(float((label_HW[:, APART:] != label_HW[:, :-APART]).float().mean()))

    evaluate(run.model, bench.images.dataset, run.config.inference, run.config.data, on_image=look)  # warm
    encoding()
    every = -(-len(points) // plain)
    run.model.decoder.predict = decoder  # type: ignore[method-assign, assignment]
    with bench.rows(folder) as rows:
        for number, key in enumerate(points):
            if number % every == 0:
                evaluation = Timed(evaluate)
                evaluation(run.model, bench.images.dataset, run.config.inference, run.config.data)
                evaluations.append(evaluation.seconds)
            add.seconds = decoder.seconds = 0.0
            add(key)
            taken.append(add.seconds)
            inside.append(decoder.seconds)
    return {
        "plain": evaluations,
        "encoding": encoding.seconds,
        "rows": np.array(taken),
        "decoder": np.array(inside),
        "differing": statistics.mean(differing),
    }


def outside(found: dict[str, Any], draws: int) -> Estimate:
    """Percent of the rows' time that is not the decoder's, and its range over draws."""
    shares = [
        100 * (1 - decoder.sum() / rows.sum())
        for rows, decoder in zip(*(np.array_split(found[name][1:], draws) for name in ("rows", "decoder")), strict=True)
    ]
    return Estimate(100 * (1 - found["decoder"].sum() / found["rows"].sum()), min(shares), max(shares))


def main(
    model: str = "depict-sa-tiny",
    size: Annotated[int, typer.Option(min=32, help="px")] = 512,
    classes: Annotated[int, typer.Option(min=2)] = 150,
    images: Annotated[int, typer.Option(min=1)] = 8,
    sigmas: Annotated[int, typer.Option(min=1)] = 10,
    draws: Annotated[int, typer.Option(min=1)] = 5,
    plain: Annotated[int, typer.Option(min=1, help="Plain evaluations.")] = 5,
    steps: Annotated[int, typer.Option(min=0, help="Of the training; 0: random weights.")] = 300,
    threads: Annotated[int, typer.Option(min=0, help="0: as PyTorch chooses.")] = 0,
    output: Path = Path("results/benchmarks"),
) -> None:
    """Measure, print and write the table."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed()  # as commands do
    noise = Noise(levels=tuple(0.01 * (index + 1) for index in range(sigmas)), draws=draws)
    points = [CLEAN, *(key for draw in range(draws) for sigma in noise.levels for key in noise.keys(sigma, draw))]
    with TemporaryDirectory() as folder:
        run = run_of(Path(folder), model, size, classes, images, steps)
        bench = ChangedRun(run, EvaluatedImages(run, Chosen()), MEMORY, noise.target)
        found = measure(bench, points, plain, Path(folder))
    one, sweep = statistics.median(found["plain"]), found["encoding"] + found["rows"].sum()
    every = len(points) * one
    cpu, version, used = hardware()["cpu"], torch.__version__.split("+")[0], torch.get_num_threads()
    where = (hardware()["gpus"] or [f"{cpu}, {used} threads"])[0]
    row = (
        model,
        Estimate(one, min(found["plain"]), max(found["plain"])),
        every,
        sweep,
        Estimate(every / sweep, *(len(points) * end(found["plain"]) / sweep for end in (min, max))),
        outside(found, draws),
    )
    names = ("Model", "One plain (s)", "All plain (s)", "Sweep (s)", "Ratio", "Outside the decoder (% of rows)")
    table = Table(
        columns=tuple(Column(name, 2) for name in names),
        rows=(row,),
        caption=f"{where}, fp32, torch {version}; {images} photos of {size * 4 // 3} x {size} px, {classes} classes. "
        f"{len(points)} points: {sigmas} sigmas x {draws} draws, and the clean model. One plain evaluation: median "
        f"[range] of {len(found['plain'])}, spread over the sweep; all plain: times {len(points)}. "
        f"Weights: {f'trained for {steps} steps' if steps else 'random'}. "
        f"The sweep: {found['encoding']:.1f} s encoder and reading, {found['rows'].sum():.1f} s rows; outside: all "
        f"[range of the draws]. Of pixels {APART} px apart, {100 * found['differing']:.0f} % are seen as of two "
        "classes.",
    )
    table_console().print(table.to_rich())
    name = f"robustness-{model}-{size}px-{'' if steps else 'random-'}{where}-torch-{version}"
    table.write(output / re.sub(r"[^\w.]+", "-", name).lower())


if __name__ == "__main__":
    typer.run(main)
