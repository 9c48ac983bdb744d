"""How large a page of `whitebox explore` is, how long it takes to make, to open, and to answer a pointer.

``python benchmarks/explorer.py`` makes pages of one photo of 512 px (smooth noise, which compresses like a photo) of
untrained decoders behind a ViT-S/16, three layers of three heads where a decoder has such, and opens them in Debian's
chromium from the disk. ``--run`` and ``--photo`` take others. Times are medians, with ranges over turns:

    make     from the loaded model to the file
    open     from the beginning of loading to the panels being there
    answer   from then to the first hover drawn
    hover    one move of the pointer to another patch, all that is computed and drawn of it; ``slowest`` of all moves

Needs the extra ``test`` (Playwright) and ``apt-get install chromium``.
"""

from __future__ import annotations

import shutil
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from turns import spread

from analysis.consumed import Chosen, Photos
from analysis.record import hardware
from analysis.show.tables import Cell, Column, Estimate, Table
from whitebox.cli.explore import page_of
from whitebox.config import resolve
from whitebox.data.shapes import CLASSES
from whitebox.engine.checkpoint import save_model
from whitebox.models import build
from whitebox.runs import open_run
from whitebox.terminal import table_console

MODELS = (
    "depict-sa-small",
    "depict-ca-small",
    "cbsa-small",
    "crate-small",
    "tost-small",
    "segmenter-mask-small",
    "segvit-small",
)
SIDE, MOVES = 512, 200

_HOVER = """([moves]) => {
  const canvas = document.querySelector("#photo canvas.photo"), box = canvas.getBoundingClientRect(), found = [];
  for (let move = 0; move < moves; move++) {
    const x = box.left + box.width * ((0.5 + 37 * move) % 101) / 101;
    const y = box.top + box.height * ((0.5 + 23 * move) % 97) / 97;
    const start = performance.now();
    canvas.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: y }));
    canvas.getContext("2d").getImageData(0, 0, 1, 1);  // drawn, not only asked for
    found.push(performance.now() - start);
  }
  return found;
}"""


def photo(path: Path) -> Path:
    """Smooth noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path)
    return path


def untrained_run(folder: Path, name: str) -> Path:
    """A run without training, shown photos of 512 px at their own size."""
    config = resolve(name, "shapes", {"data.resize": SIDE, "data.crop": SIDE, "inference.window": None})
    torch.manual_seed(0)
    save_model(
        folder / name / "model.safetensors", build(config.encoder, config.decoder, len(CLASSES), CLASSES), config
    )
    return folder / name


def measured(run_folder: Path, image: Path, page: Path, turns: int, browser: Any) -> list[Estimate]:
    """MB, seconds to make, ms to open, to answer, of a hover, and of the slowest."""
    run = open_run(run_folder, device="cpu")
    makes, opens, answers, hovers, slowest = [], [], [], [], []
    for _ in range(turns + 1):  # the first is not counted
        start = time.perf_counter()
        page_of([run], [Photos(run, Chosen(photos=(image,)))], page)
        makes.append(time.perf_counter() - start)
        shown = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True).new_page()
        shown.goto(page.resolve().as_uri())
        shown.wait_for_selector("html[data-ready]")
        opens.append(float(shown.evaluate("document.documentElement.dataset.ready")))
        first = shown.evaluate(_HOVER, [1])
        every = shown.evaluate(_HOVER, [MOVES])
        answers.append(first[0])
        hovers.append(statistics.median(every))
        slowest.append(max(every))
        shown.context.close()
    size = page.stat().st_size / 1e6
    return [Estimate(size), *(spread(each[1:]) for each in (makes, opens, answers, hovers, slowest))]


def main(
    run: Annotated[list[Path] | None, typer.Option(help="Runs; default: untrained ones.")] = None,
    image: Annotated[Path | None, typer.Option("--photo", help="Default: smooth noise of 512 px.")] = None,
    turns: Annotated[int, typer.Option(min=1)] = 5,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    output: Path = Path("results/benchmarks"),
) -> None:
    """Measure, print and write the table."""
    from playwright.sync_api import sync_playwright

    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder, sync_playwright() as driver:
        shown = image or photo(Path(folder) / "photo.png")
        folders = run or [untrained_run(Path(folder), name) for name in MODELS]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        rows: list[tuple[Cell, ...]] = [
            (each.name, *measured(each, shown, Path(folder) / "page.html", turns, browser)) for each in folders
        ]
        version = browser.version
        browser.close()
    cpu, of_torch = hardware()["cpu"], torch.__version__.split("+")[0]
    columns = ("Size (MB)", "Make (s)", "Open (ms)", "Answer (ms)", "Hover (ms)", "Slowest (ms)")
    table = Table(
        columns=(Column("Model"), *(Column(name, 2 if "(ms)" not in name else 1) for name in columns)),
        rows=tuple(rows),
        caption=f"{cpu}, {threads} threads, torch {of_torch}, chromium {version}; median and range over {turns} turns; "
        f"hover: median of {MOVES} moves to another patch, slowest of them.",
    )
    table_console().print(table.to_rich())
    table.write(output / f"explorer-{cpu}-{threads}-threads-torch-{of_torch}".lower().replace(" ", "-"))


if __name__ == "__main__":
    typer.run(main)
