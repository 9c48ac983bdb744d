"""How much faster a noise sweep is than evaluating each of its points: ``python benchmarks/robustness.py``.

A sweep of the decoder, sigmas x draws and the clean model, is measured as ``whitebox robustness`` measures it, with its
rows on disk; between its rows stand plain evaluations (``whitebox eval``) of the same images, so that what else the
machine does meets both. *All plain* is their median times the number of points; the ratio is that over the time of the
whole sweep. *Outside the decoder* is what the rows take besides the decoder itself: drawing noise, adding it, making
pixels of masks, counting, writing.

Weights and photos are random: time does not depend on them. Writes CSV, Markdown and LaTeX, hardware and versions in
their names.

    python benchmarks/robustness.py                                                   # tiny, 512 px, 150 classes
    python benchmarks/robustness.py --model depict-sa-large --size 640 --images 1 --plain 2
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import cv2
import numpy as np
import torch
import typer

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
from whitebox.memory import keep_freed
from whitebox.models import build
from whitebox.runs import Run, open_run
from whitebox.terminal import table_console


def write_photos(folder: Path, images: int, size: int, classes: int) -> None:
    """Photos of 4 : 3: smooth noise compresses like a photo; labels are large regions."""
    random, shape = np.random.default_rng(0), (size * 4 // 3, size)
    for kind in ("images", "masks"):
        (folder / kind / "val").mkdir(parents=True)
    for index in range(images):
        coarse = random.integers(0, 256, (size // 8, size // 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "images" / "val" / f"{index}.jpg"), cv2.resize(coarse, shape))
        regions = random.integers(0, classes, (6, 8), dtype=np.uint8)
        label = cv2.resize(regions, shape, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(folder / "masks" / "val" / f"{index}.png"), label)


def random_run(folder: Path, model: str, size: int, classes: int, images: int) -> Run:
    """A run with random weights, and random photos as its dataset."""
    write_photos(folder / "photos", images, size, classes)
    overrides: dict[str, Any] = {
        "data.path": str(folder / "photos"),
        "data.classes": [f"class {index}" for index in range(classes)],
        "data.resize": size,
        "data.crop": size,
        "inference.window": size,
        "inference.stride": size,
        "encoder.image_size": size,
    }
    config = resolve(model, "folder", overrides)
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
    run, evaluations = bench.run, []
    decoder = Timed(run.model.decoder.predict)
    encoding, rows_taken, inside = Timed(lambda: bench.encoded), Timed(lambda: None), 0.0
    evaluate(run.model, bench.images.dataset, run.config.inference, run.config.data, limit=1)  # warm
    encoding()
    every = -(-len(points) // plain)
    run.model.decoder.predict = decoder  # type: ignore[method-assign, assignment]
    with bench.rows(folder) as rows:
        rows_taken.function = lambda key: rows.add(key, bench.measure(key))
        for number, key in enumerate(points):
            if number % every == 0:
                evaluation = Timed(evaluate)
                evaluation(run.model, bench.images.dataset, run.config.inference, run.config.data)
                evaluations.append(evaluation.seconds)
            before = decoder.seconds
            rows_taken(key)
            inside += decoder.seconds - before
    return {"plain": evaluations, "encoding": encoding.seconds, "rows": rows_taken.seconds, "decoder": inside}


def main(
    model: str = "depict-sa-tiny",
    size: Annotated[int, typer.Option(min=32, help="px")] = 512,
    classes: Annotated[int, typer.Option(min=2)] = 150,
    images: Annotated[int, typer.Option(min=1)] = 8,
    sigmas: Annotated[int, typer.Option(min=1)] = 10,
    draws: Annotated[int, typer.Option(min=1)] = 5,
    plain: Annotated[int, typer.Option(min=1, help="Plain evaluations.")] = 5,
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
        run = random_run(Path(folder), model, size, classes, images)
        bench = ChangedRun(run, EvaluatedImages(run, Chosen()), MEMORY, noise.target)
        found = measure(bench, points, plain, Path(folder))
    one, sweep = statistics.median(found["plain"]), found["encoding"] + found["rows"]
    every = len(points) * one
    cpu, version, used = hardware()["cpu"], torch.__version__.split("+")[0], torch.get_num_threads()
    where = (hardware()["gpus"] or [f"{cpu}, {used} threads"])[0]
    row = (
        model,
        Estimate(one, min(found["plain"]), max(found["plain"])),
        every,
        sweep,
        Estimate(every / sweep, *(len(points) * end(found["plain"]) / sweep for end in (min, max))),
        100 * (found["rows"] - found["decoder"]) / found["rows"],
    )
    names = ("Model", "One plain (s)", "All plain (s)", "Sweep (s)", "Ratio", "Outside the decoder (% of rows)")
    table = Table(
        columns=tuple(Column(name, 2) for name in names),
        rows=(row,),
        caption=f"{where}, fp32, torch {version}; {images} photos of {size * 4 // 3} x {size} px, {classes} classes. "
        f"{len(points)} points: {sigmas} sigmas x {draws} draws, and the clean model. One plain evaluation: median "
        f"[range] of {len(found['plain'])}, spread over the sweep; all plain: times {len(points)}. "
        f"The sweep: {found['encoding']:.1f} s encoder and reading, {found['rows']:.1f} s rows.",
    )
    table_console().print(table.to_rich())
    name = f"robustness-{model}-{size}px-{where}-torch-{version}"
    table.write(output / re.sub(r"[^\w.]+", "-", name).lower())


if __name__ == "__main__":
    typer.run(main)
