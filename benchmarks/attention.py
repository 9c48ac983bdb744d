"""What attention costs against the number of tokens: ``python benchmarks/attention.py`` (``--quick`` for a first look).

One layer of each operator, LayerNorm and residual included, at the width of ViT-T and with the heads of the decoders:
MHSA (black box), MSSA (DEPICT), CBSA, TSSA (ToST). Measured on 256 to 16384 tokens, fp32:

    time     of a forward and a backward pass; operators and lengths take turns, so that what else the machine does
             meets all of them. Short passes are timed many at once. Freed memory is kept: without it glibc returns
             large tensors to the system and the time to get them back, page by page, is added at 16384 tokens alone
    memory   of the tensors of one such pass at their peak, without its input, as PyTorch's allocator counts it

Beside them the formulas of docs/decoders.md: multiply-adds (MACs) of a forward pass, and how far the measurements are
from a straight line in the number of tokens. Writes two tables (CSV, Markdown, LaTeX) and a figure (PNG, PDF), hardware
and versions in their names. Weights and tokens are random: neither time nor memory depends on them.

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from turns import spread

from analysis.record import hardware
from analysis.show.figures import PAGE, figure_style, new_figure, save_figure
from analysis.show.tables import Column, Table
from whitebox.memory import keep_freed
from whitebox.models.attention import CBSA, MHSA, TSSA, SubspaceAttention
from whitebox.terminal import table_console

WIDTH, BLACK_HEADS = 192, 3
HEADS, HEAD_DIM, POOL = 3, 100, 10
LENGTHS = tuple(2**power for power in range(8, 15))
QUICK = (256, 1024)
WARM_UP = 16  # tokens
TOGETHER = 8192  # tokens that are timed at once, in as many passes as they take


class BlackBox(nn.Module):
    """MHSA as in a Transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = MHSA(WIDTH, BLACK_HEADS, qkv_bias=True)

    def forward(self, z_BND: Tensor) -> Tensor:
        return z_BND + self.attention(self.norm(z_BND))


class OnGrid(nn.Module):
    """CBSA on a grid as square as powers of two allow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = CBSA(WIDTH, HEADS, HEAD_DIM, POOL)

    def forward(self, z_BND: Tensor) -> Tensor:
        power = z_BND.shape[1].bit_length() - 1
        return self.layer(z_BND, (2 ** (power // 2), 2 ** (power - power // 2)))


INNER, REPRESENTATIVES = HEADS * HEAD_DIM, POOL * POOL
OPERATORS: dict[str, Callable[[], nn.Module]] = {
    "MHSA": BlackBox,
    "MSSA": lambda: SubspaceAttention(WIDTH, HEADS, HEAD_DIM),
    "CBSA": OnGrid,
    "TSSA": lambda: TSSA(WIDTH, HEADS, HEAD_DIM),
}
MACS: dict[str, Callable[[int], int]] = {
    "MHSA": lambda n: 4 * n * WIDTH**2 + 2 * n**2 * WIDTH,
    "MSSA": lambda n: 2 * n * WIDTH * INNER + 2 * n**2 * INNER,
    "CBSA": lambda n: 2 * n * WIDTH * INNER + 3 * REPRESENTATIVES * n * INNER + 2 * REPRESENTATIVES**2 * INNER,
    "TSSA": lambda n: 2 * n * WIDTH * INNER,
}


def tokens(length: int, device: str) -> Tensor:
    """(1, N, D)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, length, WIDTH, generator=generator).to(device).requires_grad_()


def work(layer: nn.Module, z_BND: Tensor) -> None:
    """One forward and one backward pass; gradients do not stay."""
    layer(z_BND).sum().backward()
    layer.zero_grad(set_to_none=True)
    z_BND.grad = None


def measure_times(lengths: Sequence[int], repeats: int, device: str) -> dict[tuple[str, int], list[float]]:
    """Seconds of a pass by operator and length, one a turn; the first turn is not counted."""
    torch.manual_seed(0)
    layers = {name: build().to(device) for name, build in OPERATORS.items()}
    inputs = {length: tokens(length, device) for length in lengths}
    passed: dict[tuple[str, int], list[float]] = {(name, length): [] for name in layers for length in lengths}
    for turn in range(repeats + 1):
        for length, z_BND in inputs.items():
            passes = max(1, TOGETHER // length)
            for name, layer in layers.items():
                if passes > 1:  # what the one before left in the caches is felt by short passes
                    work(layer, z_BND)
                _synchronise(device)
                start = time.perf_counter()
                for _ in range(passes):
                    work(layer, z_BND)
                _synchronise(device)
                if turn:
                    passed[name, length].append((time.perf_counter() - start) / passes)
    return passed


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def peak_memory(layer: nn.Module, z_BND: Tensor) -> int:
    """Bytes of what a pass allocates, at their peak."""
    work(layer, z_BND[:, :WARM_UP].detach().requires_grad_())
    if z_BND.is_cuda:
        torch.cuda.reset_peak_memory_stats(z_BND.device)
        before = torch.cuda.memory_allocated(z_BND.device)
        work(layer, z_BND)
        return torch.cuda.max_memory_allocated(z_BND.device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work(layer, z_BND)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    steps = sorted((each for each in events if each.get("name") == "[memory]"), key=lambda each: each["ts"])
    return max(accumulate((each["args"]["Bytes"] for each in steps), initial=0))


@dataclass(frozen=True)
class Fit:
    """a + b N through values at several N, least squares of the relative deviations.

    Attributes:
        slope: b.
        deviation: the largest relative deviation of a value from the line.
    """

    slope: float
    deviation: float


def straight_line(values: Mapping[int, float]) -> Fit:
    """The fit of values by length, two lengths at least."""
    length_N, value_N = (np.array(list(each), dtype=float) for each in (values.keys(), values.values()))
    design_N2 = np.stack([1 / value_N, length_N / value_N], axis=1)
    coefficients, *_ = np.linalg.lstsq(design_N2, np.ones(len(value_N)), rcond=None)
    return Fit(float(coefficients[1]), float(np.abs(design_N2 @ coefficients - 1).max()))


def cost_table(passed: Mapping[tuple[str, int], list[float]], memory: Mapping[tuple[str, int], int], on: str) -> Table:
    """One row an operator and length."""
    turns = len(next(iter(passed.values())))
    rows = tuple(
        (name, length, MACS[name](length) / 1e9, spread([1e3 * each for each in seconds]), memory[name, length] / 1e6)
        for (name, length), seconds in passed.items()
    )
    columns = (
        Column("Operator"),
        Column("Tokens", 0),
        Column("GMACs", 3),
        Column("Time (ms)", 2),
        Column("Memory (MB)", 2),
    )
    return Table(
        columns,
        rows,
        f"{on}. One layer of width {WIDTH}; MHSA: {BLACK_HEADS} heads of {WIDTH // BLACK_HEADS}, others {HEADS} of "
        f"{HEAD_DIM}, CBSA with {REPRESENTATIVES} representatives; batch 1, fp32. MACs of a forward pass by formula. "
        f"Time of a forward and a backward pass, median [range] of {turns} turns; memory at its peak.",
    )


def fit_table(passed: Mapping[tuple[str, int], list[float]], memory: Mapping[tuple[str, int], int], on: str) -> Table:
    """How straight the measurements are in the number of tokens, one row an operator."""
    lengths = sorted({length for _, length in passed})
    rows = []
    for name in OPERATORS:
        times = straight_line({length: 1e6 * statistics.median(passed[name, length]) for length in lengths})
        sizes = straight_line({length: memory[name, length] / 1e3 for length in lengths})
        rows.append((name, times.slope, 100 * times.deviation, sizes.slope, 100 * sizes.deviation))
    columns = (
        Column("Operator"),
        Column("µs a token", 3),
        Column("time off the line (%)"),
        Column("kB a token", 2),
        Column("memory off the line (%)"),
    )
    return Table(
        columns,
        tuple(rows),
        f"{on}. Straight lines a + b N through time and peak memory at {lengths[0]} to {lengths[-1]} tokens, least "
        "squares of relative deviations: the slope b and the largest deviation.",
    )


def draw(
    passed: Mapping[tuple[str, int], list[float]], memory: Mapping[tuple[str, int], int], on: str, output: Path
) -> list[Path]:
    """Time and memory over the number of tokens, measured (dots) and by formula (lines)."""
    lengths = sorted({length for _, length in passed})
    with figure_style() as colours:
        figure = new_figure(3.1, PAGE)
        left, right = figure.subplots(1, 2)
        for name, colour, marker in zip(OPERATORS, colours, "osD^", strict=False):
            times = [spread([1e3 * each for each in passed[name, length]]) for length in lengths]
            middle = np.array([each.value for each in times])
            ends = [middle - [each.low for each in times], [each.high for each in times] - middle]
            left.errorbar(lengths, middle, ends, fmt=marker, markersize=4, color=colour, elinewidth=0.8, label=name)
            rate = MACS[name](lengths[-1]) / middle[-1]
            left.plot(lengths, [MACS[name](length) / rate for length in lengths], color=colour, linewidth=0.9)
            sizes = {length: memory[name, length] / 1e6 for length in lengths}
            right.plot(lengths, list(sizes.values()), marker, markersize=4, color=colour, label=name)
            right.plot(
                lengths, [sizes[lengths[-1]] * length / lengths[-1] for length in lengths], color=colour, linewidth=0.9
            )
        explicit = [4e-6 * HEADS * length**2 for length in lengths]
        right.plot(lengths, explicit, ":", color="0.4", linewidth=1.1, label=f"one N x N map, {HEADS} heads")
        left.set_ylabel("time, forward and backward (ms)")
        right.set_ylabel("peak memory (MB)")
        left.set_title("lines: MACs of the formula, scaled at the last dot", fontsize=7)
        right.set_title("lines: proportional to N, through the last dot", fontsize=7)
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(lengths, [str(length) for length in lengths])
            axes.minorticks_off()
            axes.set_xlabel("tokens N")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        turns = len(next(iter(passed.values())))
        figure.supxlabel(
            f"{on}; one layer of width {WIDTH}, batch 1, fp32; median and range of {turns} turns", fontsize=6.5
        )
        return save_figure(figure, output)


Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the processor; 0: as PyTorch chooses.")]


def run(
    quick: Annotated[bool, typer.Option("--quick", help="Two short lengths, one turn.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that are counted.")] = 5,
    output: Annotated[Path, typer.Option(help="Folder of tables and figure.")] = Path("results/benchmarks"),
    device: Device = "cpu",
    threads: Threads = 0,
) -> None:
    """Measure, print and write."""
    if threads:
        torch.set_num_threads(threads)
    lengths, repeats = (QUICK, 1) if quick else (LENGTHS, repeats)
    keep_freed(any_size=True)
    passed = measure_times(lengths, repeats, device)
    memory = {
        (name, length): peak_memory(OPERATORS[name]().to(device), tokens(length, device)) for name, length in passed
    }
    on_cpu = f"{hardware()['cpu']}, {torch.get_num_threads()} threads"
    machine = torch.cuda.get_device_name(device) if device.startswith("cuda") else on_cpu
    on = f"{machine}, torch {torch.__version__.split('+')[0]}"
    stem = output / ("attention-" + "quick-" * quick + re.sub(r"[^a-z0-9.]+", "-", on.lower()))
    costs, fits = cost_table(passed, memory, on), fit_table(passed, memory, on)
    written = [
        *costs.write(stem),
        *fits.write(f"{stem}-fit"),
        *draw(passed, memory, on, stem.with_name(f"{stem.name}.png")),
    ]
    console = table_console()
    console.print(costs.to_rich())
    console.print(fits.to_rich())
    for path in written:
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(run)
