"""What a user waits for before anything is measured: ``python benchmarks/waiting.py``.

Three tables (CSV, Markdown), hardware and versions in their names:

    commands   help, the first line of a training, tables of records drawn again: each in a process of its own
    figures    each figure (PNG and PDF) of records that are there, after imports, in processor seconds of one process
    runs       opening one, and beside it, in turns, with weights that are drawn before they are read

Beside the first two stands what they may take (the issue on scale).
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib import import_module
from importlib.metadata import version
from inspect import isfunction
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import typer
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from turns import ratio, seconds, spread

import analysis.show.figures as drawing
from analysis.measurement import KINDS
from analysis.record import Record, hardware, read_records
from analysis.show.render import groups, plain_name
from analysis.show.tables import Cell, Column, Table
from whitebox.config import resolve
from whitebox.engine import checkpoint
from whitebox.engine.checkpoint import WEIGHTS, load_weights, save_model
from whitebox.models import build
from whitebox.terminal import table_console

HELP, FIRST_LINE, TABLES, FIGURE = 0.35, 4.0, 2.0, 1.0  # s
RECORDS = Path("results/camvid")
MODELS = ("depict-sa-tiny", "depict-sa-base", "depict-sa-large")
PLAIN = """
import contextlib, sys
from whitebox.cli.app import main
sys.modules["whitebox.cli.app"].fewer_collections = contextlib.nullcontext
main()
"""
app = typer.Typer(add_completion=False)


def waited(
    arguments: Sequence[str], until_line: bool = False, start: Sequence[str] = ("-m", "whitebox")
) -> tuple[float, float]:
    """Seconds until a command ends, or until it prints, and seconds of a processor that it took (NaN: it goes on)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = [sys.executable, "-u", *start, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        if until_line:
            process.stdout.readline()
            took = time.perf_counter() - began
            process.kill()
            return took, math.nan
        process.stdout.read()
    took = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(f"whitebox {' '.join(arguments)} ended with {process.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(turns: int, records: Path) -> list[tuple[Cell, ...]]:
    """A row a command."""
    rows: list[tuple[Cell, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        run = ("train", "depict-ca-tiny", "-o", str(Path(folder) / "run"), "--overwrite")
        tasks: dict[str, tuple[Callable[[], tuple[float, float]], float | None]] = {
            "whitebox --help": (partial(waited, ["--help"]), HELP),
            "whitebox models, which imports PyTorch": (partial(waited, ["models"]), None),
            "the same, garbage looked for as Python does": (partial(waited, ["models"], start=("-c", PLAIN)), None),
            "first line of whitebox train": (partial(waited, run, until_line=True), FIRST_LINE),
            "whitebox render --tables": (
                partial(waited, ["render", str(records), "--tables", "-o", folder]),
                TABLES,
            ),
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
        for turn in range(turns + 1):
            for name, (task, _) in tasks.items():
                passed = task()
                if turn:  # in the first, files get into memory
                    found[name].append(passed)
        for name, (_, most) in tasks.items():
            took, worked = ([each[index] for each in found[name]] for index in (0, 1))
            rows.append((name, spread(took), None if math.isnan(worked[0]) else spread(worked), most))
    return rows


class Within:
    """Seconds of a processor that some functions have taken since they were last asked for, each second once."""

    def __init__(self) -> None:
        self.passed, self.depth = 0.0, 0

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time counts."""

        @wraps(function)
        def around(*given: Any, **named: Any) -> Any:
            self.depth += 1
            began = time.process_time()
            try:
                return function(*given, **named)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.passed += time.process_time() - began

        return around

    def taken(self) -> float:
        """Since it was last asked."""
        passed, self.passed = self.passed, 0.0
        return passed


def figures(turns: int, records: Path) -> dict[str, tuple[list[float], float]]:
    """By figure, seconds of a processor of each turn, and the share of them that passes within matplotlib.

    What does not is that of one more turn: watching takes time, nearly all of it within matplotlib.
    """
    save, theirs = drawing.save_figure, Within()
    began = 0.0

    def saved(figure: Any, output: str | os.PathLike[str], dpi: int = drawing.DPI) -> list[Path]:
        nonlocal began
        paths = save(figure, output, dpi)
        found[-1][Path(output).name] = time.process_time() - began, theirs.taken()
        began = time.process_time()
        return paths

    def turn(folder: str) -> None:
        nonlocal began
        found.append({})
        for group in groups(all_records(records)):
            shown = import_module(KINDS[group[0].kind].shown)
            with contextlib.ExitStack() as patches:
                for module in (shown, drawing):
                    for name in [name for name, each in vars(module).items() if each is save]:
                        patches.enter_context(mock.patch.object(module, name, saved))
                began = time.process_time()
                shown.figures(group, Path(folder) / plain_name(group))

    found: list[dict[str, tuple[float, float]]] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as watched:
        turn(folder)  # which imports, and does not count
        gc.freeze()  # what is imported: as in a command
        for _ in range(turns):
            turn(folder)
        placing = ConstrainedLayoutEngine, "execute", ConstrainedLayoutEngine.execute
        for kind, name, function in [*_methods(Figure, Axes, Axis), placing]:
            watched.enter_context(mock.patch.object(kind, name, theirs.watched(function)))
        turn(folder)
    _, *counted, last = found
    taken = {name: [each[name][0] for each in counted] for name in last}
    return {
        name: (taken[name], 1 - (whole - within) / statistics.median(taken[name]))
        for name, (whole, within) in last.items()
    }


def _methods(*classes: type) -> list[tuple[type, str, Callable[..., Any]]]:
    """The public methods of some classes of matplotlib and of what they are derived from, each with its owner."""
    owners = dict.fromkeys(owner for each in classes for owner in each.__mro__ if owner is not object)
    return [
        (owner, name, function)
        for owner in owners
        for name, function in vars(owner).items()
        if isfunction(function) and not name.startswith("_")
    ]


def opened(turns: int) -> list[tuple[Cell, ...]]:
    """A row a model. What its encoder does not use is known from the first turn, which is not counted."""
    rows: list[tuple[Cell, ...]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            config = resolve(name, "shapes")
            model = build(config.encoder, config.decoder, 150)
            path = Path(folder) / WEIGHTS
            save_model(path, model, config)
            ours = partial(load_weights, path)
            passed = seconds({"ours": ours, "drawn": partial(_drawn, ours)}, turns)
            numbers = sum(each.numel() for each in model.parameters()) / 1e6
            rows.append((name, numbers, spread(passed["ours"]), ratio(passed["ours"], passed["drawn"])))
    return rows


def _drawn(task: Callable[[], object]) -> None:
    with mock.patch.object(checkpoint, "Undrawn", contextlib.nullcontext):
        task()


def all_records(folder: Path) -> list[Record]:
    """The records below a folder."""
    return [record for place in sorted(folder.glob("**/records")) for record in read_records(place)]


@app.command()
def run(
    turns: Annotated[int, typer.Option(help="Repetitions.", min=1)] = 5,
    records: Annotated[Path, typer.Option(help="Whose tables and figures are drawn.")] = RECORDS,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tables.")] = Path("results/benchmarks"),
) -> None:
    """Measure all of it."""
    machine = hardware()["cpu"]
    told = (
        f"median and range of {turns}. {machine}, Python {platform.python_version()}, matplotlib "
        f"{version('matplotlib')}; files in memory, load {os.getloadavg()[0]:.1f} before."
    )
    most = Column("At most (s)", 2)
    started = Table(
        (Column("What"), Column("Until it is there (s)", 2), Column("Of a processor (s)", 2), most),
        tuple(commands(turns, records)),
        f"Processes of their own; {told}",
    )
    took = figures(turns, records)
    drawn = Table(
        (Column("Figure"), Column("Of a processor (s)", 2), Column("Within matplotlib (%)", 0), most),
        tuple((name, spread(taken), 100 * share, FIGURE) for name, (taken, share) in took.items()),
        f"PNG and PDF of the records below {records}, one after another in one process after its imports; {told} "
        "What is not within matplotlib is that of another turn.",
    )
    found = Table(
        (Column("Model"), Column("Parameters (M)", 1), Column("Opened (s)", 2), Column("Ratio to drawn first", 2)),
        tuple(opened(turns)),
        f"model.safetensors of 150 classes, {torch.get_num_threads()} threads; {told}",
    )
    name = f"{'-'.join(machine.lower().split()[:2])}-python-{platform.python_version()}"
    for what, table in (("commands", started), ("figures", drawn), ("runs", found)):
        table.write(output / f"waiting-{what}-{name}")
        table.print(table_console())


if __name__ == "__main__":
    app()
