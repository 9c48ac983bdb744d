"""What SED's decoder costs against the number of names: ``python benchmarks/sed.py run --threads 1``.

Three tables (CSV, Markdown, LaTeX), hardware and versions in their names:

    decoder    the formulas as they stand, all names at once (``SED.plain``), beside ours, which visits names and places
               in parts. Both take turns, each time in a process of its own. Memory: how far that process grows beyond
               what it held before (model, maps, text features)
    rejecting  early rejection where the best classes of the places are a given share of the names, beside the decoder
               that keeps all. What real weights keep is unknown here, so the share is forced: the first layer drops all
               others, and later ones no more. All take turns in one process
    text       features of a vocabulary as ``cached_text_features`` finds them on the disk, hashing the tower's weights
               included; written once before, so the file is in the system's cache

Time is that of the processor (all threads), so what else the machine does counts little. Weights, maps and features are
random: time does not depend on them.

    python benchmarks/sed.py run --threads 1 --repeats 3
    python benchmarks/sed.py run --size 128 --names 5 --names 9 --rejecting 9 --vocabulary 3      # a first look
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated
from unittest import mock

import torch
import torch.nn.functional as F
import typer
from torch import Tensor
from turns import ratio, seconds, spread

from analysis.record import hardware
from analysis.show.tables import Cell, Column, Table
from whitebox.config import resolve
from whitebox.memory import held_gb, peak_gb
from whitebox.models import OpenSegmentor, build, text
from whitebox.models.clip import CLIPConfig
from whitebox.models.decoders import sed
from whitebox.models.text import cached_text_features
from whitebox.terminal import table_console

PATHS = ("plain", "ours")
SHARES = (5, 10, 20, 50)  # percent of the names that are kept


class Bench:
    """A decoder, and what it takes of one image.

    Args:
        size: px, side of the square that the encoder would see. names: T.
    """

    def __init__(self, model: str, size: int, names: int) -> None:
        torch.manual_seed(0)
        with torch.device("meta"):  # of the encoder only its sizes count
            encoder = sized(model, names).encoder
        config = resolve(model).decoder
        assert isinstance(config, sed.SEDConfig)
        self.decoder = sed.SED(config, encoder.widths[-2::-1], encoder.embed, encoder.prompts, names).eval()
        self.decoder.text_TPD = F.normalize(torch.randn(names, encoder.prompts, encoder.embed), dim=-1)
        channels = [*encoder.widths[:-1], encoder.embed]
        self.maps = [
            torch.randn(1, width, size // stride, size // stride)
            for width, stride in zip(channels, encoder.strides, strict=True)
        ]

    @torch.no_grad()
    def masks(self, path: str) -> Tensor:
        """Of all names, (1, T, h, w)."""
        if path == "plain":
            text_TPD = self.decoder.text_TPD
            assert text_TPD is not None
            return self.decoder.plain(self.maps[-2::-1], self.maps[-1], text_TPD).masks_BKhw
        return self.decoder(self.maps)

    @torch.no_grad()
    def rejecting(self, percent: int | None) -> Tensor:
        """With a share of the names, or (None) all of them."""
        if percent is None:
            return self.masks("ours")
        with kept(percent):
            self.decoder.topk = 1
            try:
                return self.decoder(self.maps)
            finally:
                self.decoder.topk = None


def sized(model: str, names: int) -> OpenSegmentor:
    """A model for so many names."""
    config = resolve(model)
    made = build(config.encoder, config.decoder, names)
    assert isinstance(made, OpenSegmentor)
    return made


@contextmanager
def kept(percent: int) -> Iterator[None]:
    """Let the first layer keep the first names of all, and the others every one of these."""
    seen: list[int] = []

    def best(masks_Thw: Tensor, k: int) -> Tensor:
        T = len(masks_Thw)
        sed_best(masks_Thw, k)  # its time counts
        stay = T if seen else max(1, round(T * percent / 100))
        seen.append(T)
        return torch.arange(T) < stay

    sed_best = sed.among_best
    with mock.patch.object(sed, "among_best", best):
        yield


def decoded(path: str, model: str, size: int, names: int, threads: int) -> tuple[float, float]:
    """Seconds and GB that a process of its own takes to decode one image.

    Raises:
        RuntimeError: it failed.
    """
    arguments = ["decode", path, model, f"--size={size}", f"--names={names}", f"--threads={threads}"]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed: {done.stderr[-500:]}")
    took, memory = done.stdout.split()[-2:]
    return float(took), float(memory)


def decoder_table(model: str, size: int, names: Sequence[int], repeats: int, threads: int, on: str) -> Table:
    """Plain beside ours."""
    rows: list[tuple[Cell, ...]] = []
    for number in names:
        found: dict[str, list[tuple[float, float]]] = {path: [] for path in PATHS}
        for _ in range(repeats):
            for path in PATHS:
                found[path].append(decoded(path, model, size, number, threads))
        cells: list[Cell] = [number]
        for part in (0, 1):  # seconds, memory
            plain, ours = ([turn[part] for turn in found[path]] for path in PATHS)
            cells += [spread(plain), spread(ours), ratio(ours, plain)]
        rows.append(tuple(cells))
    return Table(
        columns=(
            Column("Names", 0),
            *(Column(name, 2) for name in ("Plain (s)", "Ours (s)", "Time, ours to plain")),
            *(Column(name, 2) for name in ("Plain (GB)", "Ours (GB)", "Memory, ours to plain")),
        ),
        rows=tuple(rows),
        caption=f"{on} The decoder of {model} on one image of {size} px, fp32. Plain: the formulas as they stand. "
        f"Processor time, and by how much a process grows: median [range] of {repeats} turns; ratios are one a turn.",
    )


def rejecting_table(model: str, size: int, names: int, repeats: int, on: str) -> Table:
    """Early rejection beside the decoder that keeps all."""
    bench = Bench(model, size, names)
    shares: dict[str, int | None] = {"all": None, **{f"{percent} %": percent for percent in SHARES}}
    ways = {title: partial(bench.rejecting, percent) for title, percent in shares.items()}
    found = seconds(ways, repeats, time.process_time)
    return Table(
        columns=(Column("Names kept"), Column("Time (s)", 2), Column("times faster", 2)),
        rows=tuple((title, spread(each), ratio(found["all"], each)) for title, each in found.items()),
        caption=f"{on} Early rejection in the decoder of {model} with {names} names on one image of {size} px, fp32. "
        "The share that stays after the first layer's rejection is forced; all rows took turns. Processor time, median "
        f"[range] of {repeats} turns.",
    )


def text_table(model: str, names: int, repeats: int, on: str) -> Table:
    """The features of a vocabulary from the disk."""
    encoder = sized(model, 1).encoder
    assert isinstance(encoder.config, CLIPConfig)
    vocabulary = [f"name {index}" for index in range(names)]

    def read() -> Tensor:
        return cached_text_features(encoder.text, encoder.tokenizer, vocabulary, encoder.config.templates)

    def random(tower: object, tokenizer: object, tokens: Sequence[object], prompts: int, progress: object) -> Tensor:
        return torch.randn(len(tokens), prompts, encoder.embed)

    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, WHITEBOX_CACHE=folder):
        with mock.patch.multiple(text, _tokens=lambda tokenizer, names, of: names, _encoded=random):
            features = read()  # in place of an hour
        (passed,) = seconds({"read": read}, repeats, time.process_time).values()
        (wall,) = seconds({"read": read}, repeats).values()
        assert torch.equal(read(), features)
    weights = sum(each.nbytes for each in encoder.text.state_dict().values()) / 1e6
    return Table(
        columns=(Column("Names", 0), Column("Features (MB)", 0), Column("Tower (MB)", 0), Column("Time (s)", 2)),
        rows=((names, features.nbytes / 1e6, weights, spread(passed)),),
        caption=f"{on} Text features of {names} names x {encoder.prompts} templates for {model} from the cache. "
        f"Processor time, median [range] of {repeats} turns; by the clock {spread(wall).value:.2f} s.",
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Size = Annotated[int, typer.Option(min=32, help="px, a multiple of 32.")]
Threads = Annotated[int, typer.Option(min=0, help="0: as PyTorch chooses.")]


@app.command()
def run(
    model: str = "sed-base",
    size: Size = 768,
    names: Annotated[list[int], typer.Option(min=2, help="Repeat for several.")] = [20, 150, 459],  # noqa: B006
    rejecting: Annotated[int, typer.Option(min=2, help="Names of the second table.")] = 459,
    vocabulary: Annotated[int, typer.Option(min=2, help="Names of the third table.")] = 847,
    repeats: Annotated[int, typer.Option(min=1, help="Turns that are counted.")] = 3,
    threads: Threads = 0,
    output: Annotated[Path, typer.Option(help="Folder of the tables.")] = Path("results/benchmarks"),
) -> None:
    """Measure, print and write."""
    if threads:
        torch.set_num_threads(threads)
    cpu, version = hardware()["cpu"], torch.__version__.split("+")[0]
    where = f"{cpu}, {torch.get_num_threads()} threads, torch {version}"
    stem = output / re.sub(r"[^\w.]+", "-", f"{model}-{size}px-{where}").lower()
    console = table_console()
    for title, table in (
        ("", lambda on: decoder_table(model, size, names, repeats, threads, on)),
        ("-rejecting", lambda on: rejecting_table(model, size, rejecting, repeats, on)),
        ("-text", lambda on: text_table(model, vocabulary, repeats, on)),
    ):
        found = table(f"{where}; load {os.getloadavg()[0]:.1f} as it began.")
        console.print(found.to_rich())
        for path in found.write(stem.with_name(stem.name + title)):
            console.print(f"wrote {path}", soft_wrap=True, highlight=False)


@app.command(hidden=True)
def decode(path: str, model: str, size: Size = 768, names: int = 150, threads: Threads = 0) -> None:
    """Decode one image; print the seconds, and by how much this process grew, in GB."""
    if threads:
        torch.set_num_threads(threads)
    bench = Bench(model, size, names)
    F.conv2d(torch.randn(1, 3, 8, 8), torch.randn(4, 3, 3, 3))  # what libraries hold
    before = held_gb()
    began = time.process_time()
    bench.masks(path)
    typer.echo(f"{time.process_time() - began} {peak_gb() - before}")


if __name__ == "__main__":
    app()
