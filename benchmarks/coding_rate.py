"""How fast coding rates are beside the published formula, and `rank-analysis` beside evaluating the same images.

``python benchmarks/coding_rate.py rates`` times R for 24 (image, head) pairs of 1174 x 100 tokens: *direct* is the
N x N log-determinant in float32, as the scripts of CRATE and CBSA have it; *ours* the P x P one in float64.
``python benchmarks/coding_rate.py command RUN`` times ``rank-analysis`` and ``eval`` of the same images, without their
figures, and says how far the memory of a process grows from the first image on.

Both paths take turns, so that what else the machine does meets both; the ratio is the median of the ratios of turns.
Writes CSV, Markdown and LaTeX, hardware and versions in their names.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from turns import ratio, seconds, spread

from analysis.consumed import Chosen, Images
from analysis.maths.coding_rate import coding_rate
from analysis.measures.rank_analysis import RankAnalysis
from analysis.record import hardware
from analysis.show.tables import Column, Estimate, Table
from whitebox.data import build_dataset
from whitebox.engine.evaluate import evaluate
from whitebox.runs import open_run
from whitebox.terminal import table_console

PAIRS, TOKENS, DIMENSION, EPS = 24, 1174, 100, 0.1
Turns = Annotated[int, typer.Option(min=1)]
Threads = Annotated[int, typer.Option(min=1)]
Folder = Annotated[Path, typer.Option("--output", "-o")]

app = typer.Typer(add_completion=False, help=__doc__)


def direct(z_BND: Tensor) -> Tensor:
    """R as published: the determinant of an N x N matrix, in the precision of the tokens.

    One matrix after another: the LU factorisation of several at once by two threads (torch 2.15, MKL) is wrong.
    """
    N, D = z_BND.shape[-2:]
    matrices = torch.eye(N) + D / (N * EPS**2) * (z_BND @ z_BND.mT)
    return torch.stack([torch.logdet(matrix) for matrix in matrices]) / 2


@app.command()
def rates(turns: Turns = 5, threads: Threads = 2, output: Folder = Path("results/benchmarks")) -> None:
    """R of 24 (image, head) pairs, directly and by `analysis.maths.coding_rate`."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    z_BND = torch.nn.functional.normalize(torch.randn(PAIRS, TOKENS, DIMENSION, generator=generator), dim=-1)
    passed = seconds({"direct": lambda: direct(z_BND), "ours": lambda: coding_rate(z_BND, EPS)}, turns)
    error = (direct(z_BND) / coding_rate(z_BND, EPS) - 1).abs().max().item()
    table = Table(
        columns=(Column("Coding rate of 24 x (1174 x 100)"), Column("s", 3)),
        rows=(
            ("direct, 1174 x 1174, float32", spread(passed["direct"])),
            ("ours, 100 x 100, float64", spread(passed["ours"])),
            ("direct / ours", ratio(passed["direct"], passed["ours"])),
        ),
        caption=f"{_machine(threads)}; median and range over {turns} turns. Largest relative difference {error:.0e}.",
    )
    _write(table, output / "coding-rate", threads)


@app.command()
def command(
    run: Path,
    limit: Annotated[int, typer.Option(min=1)] = 100,
    turns: Turns = 3,
    threads: Threads = 2,
    data_root: Path | None = None,
    output: Folder = Path("results/benchmarks"),
) -> None:
    """`rank-analysis` and evaluation of the same images of a run."""
    torch.set_num_threads(threads)
    opened = open_run(run, data_root=data_root, device="cpu")
    config = opened.config
    dataset = build_dataset(config.data, config.data.val_split, augment=False)
    resident: list[float] = []

    def rank() -> None:
        RankAnalysis().measure(opened, Images(opened, Chosen(limit=limit)), lambda done, of: resident.append(memory()))

    def evaluation() -> None:
        evaluate(opened.model, dataset, config.inference, config.data, limit=limit)

    passed = seconds({"rank-analysis": rank, "evaluation": evaluation}, turns)
    images = len(resident) // (turns + 1)
    last = resident[-images:]  # the last turn: what libraries keep for themselves is there by then
    growth = Estimate(last[-1] - last[0])
    table = Table(
        columns=(Column(f"{opened.name}, {images} images"), Column("s", 2)),
        rows=(
            *((name, spread(each)) for name, each in passed.items()),
            ("rank-analysis / evaluation", ratio(*passed.values())),
        ),
        caption=f"{_machine(threads)}; windows of {config.inference.window} px; median and range over {turns} turns. "
        f"Resident memory from the first to the last image: {growth.value:+.1f} MB of {last[-1]:.0f} MB.",
    )
    _write(table, output / f"rank-analysis-{opened.name}", threads)


def memory() -> float:
    """Resident memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _machine(threads: int) -> str:
    return f"{hardware()['cpu']}, {threads} threads, torch {torch.__version__.split('+')[0]}"


def _write(table: Table, stem: Path, threads: int) -> None:
    table_console().print(table.to_rich())
    name = f"{stem.name}-{_machine(threads)}".lower().replace(",", "").replace(" ", "-")
    table.write(stem.parent / name)


if __name__ == "__main__":
    app()
