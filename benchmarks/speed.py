"""How fast whitebox is beside the plain formulas, in one run: ``python benchmarks/speed.py``.

*Plain* is what the equations say, in eager PyTorch, with the same weights: attention with an explicit softmax
(``SDPBackend.MATH``), logits of full size, ``F.cross_entropy`` or argmax of them, windows averaged at full size, as
the official code does. *Ours* is what ``whitebox train`` and ``whitebox eval`` run. Both paths take turns, so that
what else the machine does meets both; the ratio is the median of the ratios of turns. *The limit* is what the matrix
products and the attention of ours would take by themselves (`benchmarks/limit.py`), found in the same turns; what they
take of a task within it, where their operands come from memory, says ``python benchmarks/speed.py products``. Peak
memory is that of a fresh process.

Writes a CSV and a Markdown table, hardware and versions in their names. Weights and images are random: time does not
depend on them.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from limit import limit, share
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from turns import spread

import whitebox
from analysis.show.tables import Column, Table
from whitebox.config import MULTISCALE, DataConfig, InferenceConfig, OptimConfig
from whitebox.engine.inference import predict_many
from whitebox.engine.optimisation import build_optimizer
from whitebox.engine.update import summed_loss
from whitebox.engine.windows import anchors, enlarge, resize_image
from whitebox.memory import keep_freed, peak_gb
from whitebox.models import Segmentor
from whitebox.models.cross_entropy import summed_cross_entropy
from whitebox.terminal import table_console
from whitebox.versions import versions

MODELS = ("depict-sa-tiny", "depict-ca-tiny", "depict-sa-base", "depict-ca-base")
PATHS = ("plain", "ours")
FORWARD, STEP, IMAGE, MULTI = "forward", "training step", "eval, one scale", "eval, scales and flips"
PARTS = ("encoder", "decoder", "tail")
UNITS = {FORWARD: "s", STEP: "s", IMAGE: "images/s", MULTI: "images/s", "memory": "GB"}
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    size: int = 512  # px: crops, windows, and the short side of images; their long side is 4/3 of it
    classes: int = 150
    batch: int = 4  # images of a training step, windows of a forward pass
    precision: str = "fp32"
    device: str = "cpu"
    compile: bool = False
    threads: int = 0  # 0: as PyTorch chooses


@dataclass(frozen=True)
class Row:
    """One line of the table: the same quantity by both paths, one value a turn."""

    model: str
    what: str
    unit: str
    plain: list[float]
    ours: list[float]

    @property
    def ratio(self) -> float:
        """Ours by plain, median over turns; below 1 is better, for images/s above 1."""
        return statistics.median(ours / plain for plain, ours in zip(self.plain, self.ours, strict=True))


class Bench:
    """A model, random data, and the two ways to do the same."""

    def __init__(self, name: str, setting: Setting) -> None:
        torch.manual_seed(0)
        if setting.threads:
            torch.set_num_threads(setting.threads)
        self.setting, self.device = setting, torch.device(setting.device)
        self.model: Segmentor = whitebox.create_model(
            name, setting.classes, encoder={"image_size": setting.size, "drop_path": 0.0}
        ).to(self.device)
        self.compiled = torch.compile(self.model.masks) if setting.compile else None
        self.optimizer = build_optimizer(self.model, OptimConfig())
        random = np.random.default_rng(0)
        shape = (setting.batch, 3, setting.size, setting.size)
        self.images = torch.from_numpy(random.integers(0, 256, shape, dtype=np.uint8)).to(self.device)
        labels = random.integers(0, setting.classes, (shape[0], *shape[2:]), dtype=np.uint8)
        self.labels = torch.from_numpy(labels).to(self.device)
        self.photo: Image = random.integers(0, 256, (setting.size, setting.size * 4 // 3, 3), dtype=np.uint8)
        self.data = DataConfig(resize=setting.size)

    @contextmanager
    def context(self, path: str) -> Iterator[None]:
        """Precision and kind of attention of a path."""
        with ExitStack() as stack:
            if self.setting.precision == "bf16":
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            if path == "plain":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            elif self.compiled is not None:
                self.model.masks = self.compiled  # type: ignore[method-assign]
                stack.callback(delattr, self.model, "masks")  # the class's own is seen again
            yield

    def forward(self, path: str) -> Tensor:
        """One crop to its labels, (H, W)."""
        crop_HW3 = self.images[0].permute(1, 2, 0).cpu().numpy()
        return self.predict(path, InferenceConfig(window=self.setting.size, stride=self.setting.size), crop_HW3, None)

    def evaluate(self, path: str, multi: bool) -> Tensor:
        """One photo to its labels, (H, W)."""
        size, batch = self.setting.size, self.setting.batch
        scales = list(MULTISCALE) if multi else [1.0]
        inference = InferenceConfig(window=size, stride=size, batch=batch, scales=scales, flip=multi)
        return self.predict(path, inference, self.photo, self.data)

    def predict(self, path: str, inference: InferenceConfig, photo: Image, data: DataConfig | None) -> Tensor:
        """One photo to its labels, (H, W)."""
        self.model.eval()
        with self.context(path):
            if path == "plain":
                return plain_labels(self.model, photo, inference, data)
            (label_HW,) = predict_many(self.model, [photo], inference, data)
        return label_HW

    def step(self, path: str) -> Tensor:
        """One update of the weights."""
        self.model.train()
        with self.context(path):
            if path == "plain":
                loss = F.cross_entropy(self.model(self.images).float(), self.labels.long(), reduction="sum")
            else:
                loss = summed_loss(self.model, self.images, self.labels)
        (loss / self.labels.numel()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def parts_of_step(self, path: str) -> dict[str, float]:
        """Seconds of encoder, decoder and tail in a training step, forward and backward."""
        self.model.train()
        model, times, moments = self.model, dict.fromkeys(PARTS, 0.0), []

        def moment() -> None:
            self.synchronise()
            moments.append(time.perf_counter())

        moment()
        with self.context(path):
            z_BND, grid = model.encoder(model.pad(model.normalise(self.images)))
            z_cut = z_BND.detach().requires_grad_()
            moment()
            masks_BKhw = model.decoder(z_cut, grid)
            masks_cut = masks_BKhw.detach().requires_grad_()
            moment()
            if path == "plain":
                loss = F.cross_entropy(model.upsample(masks_cut), self.labels.long(), reduction="sum")
            else:
                loss = summed_cross_entropy(masks_cut, self.labels, model.encoder.patch_size)
        (loss / self.labels.numel()).backward()
        moment()
        masks_BKhw.backward(masks_cut.grad)
        moment()
        z_BND.backward(z_cut.grad)
        moment()
        self.optimizer.zero_grad(set_to_none=True)
        passed = [after - before for before, after in pairwise(moments)]
        times["encoder"], times["decoder"], times["tail"] = passed[0] + passed[4], passed[1] + passed[3], passed[2]
        return times

    def parts_of_prediction(self, run: Callable[[], object]) -> dict[str, float]:
        """Seconds of encoder and decoder during ``run``; the tail is the rest."""
        times: dict[str, float] = defaultdict(float)

        def before(*_: object) -> None:
            self.synchronise()
            times["since"] = time.perf_counter()

        handles = []
        for part in ("encoder", "decoder"):

            def after(*_: object, part: str = part) -> None:
                self.synchronise()
                times[part] += time.perf_counter() - times["since"]

            module = getattr(self.model, part)
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
        total = self.seconds(run)
        for handle in handles:
            handle.remove()
        return {"encoder": times["encoder"], "decoder": times["decoder"], "tail": total - sum(times[p] for p in PARTS)}

    def seconds(self, run: Callable[[], object]) -> float:
        """Wall time."""
        self.synchronise()
        start = time.perf_counter()
        run()
        self.synchronise()
        return time.perf_counter() - start

    def synchronise(self) -> None:
        """Wait for what a GPU still does."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def gflop(self) -> float:
        """Arithmetic of encoder and decoder for one crop."""
        self.model.eval()
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            self.model.decoder(*self.model.encoder(self.model.normalise(self.images[:1])))
        return counter.get_total_flops() / 1e9


@torch.no_grad()
def plain_labels(model: Segmentor, photo: Image, inference: InferenceConfig, data: DataConfig | None) -> Tensor:
    """The official algorithm: everything at full size."""
    window, stride, total_KHW, device = inference.window, inference.stride, torch.zeros(()), model.mean.device
    assert window is not None and stride is not None
    for scale in inference.scales:
        resized = photo if data is None else resize_image(photo, data.resize, scale, data.max_ratio)
        for flipped in (False, True) if inference.flip else (False,):
            image = torch.from_numpy(resized).to(device).permute(2, 0, 1)[None].float() / 255
            image = enlarge(image.flip(3) if flipped else image, window)
            height, width = image.shape[2:]
            tops, lefts = anchors(height, window, stride), anchors(width, window, stride)
            corners = [(y, x) for y in tops for x in lefts]
            logits = torch.zeros(model.num_classes, height, width, device=device)
            count = torch.zeros(height, width, device=device)
            for start in range(0, len(corners), inference.batch):
                chosen = corners[start : start + inference.batch]
                crops = torch.cat([image[:, :, y : y + window, x : x + window] for y, x in chosen])
                for (y, x), part in zip(chosen, model(crops), strict=True):
                    logits[:, y : y + window, x : x + window] += part
                    count[y : y + window, x : x + window] += 1
            logits = F.interpolate((logits / count)[None], photo.shape[:2], mode="bilinear")[0]
            total_KHW = total_KHW.to(device) + (logits.flip(2) if flipped else logits).softmax(0)
    return total_KHW.argmax(0)


def in_unit(what: str, seconds: float) -> float:
    """Seconds of one image or step in the unit that they are shown in."""
    return 1 / seconds if UNITS[what] == "images/s" else seconds


def measure(name: str, setting: Setting, repeats: int, multi: bool) -> list[Row]:
    """Times of one model, both paths in turn; the first turn is not counted."""
    bench, values = Bench(name, setting), defaultdict[str, dict[str, list[float]]](lambda: defaultdict(list))
    limits = defaultdict[str, list[float]](list)
    tasks: dict[str, Callable[[str], object]] = {
        FORWARD: bench.forward,
        STEP: bench.step,
        IMAGE: lambda path: bench.evaluate(path, multi=False),
    }
    if multi:
        tasks[MULTI] = lambda path: bench.evaluate(path, multi=True)
    for what, task in tasks.items():
        for turn in range(repeats + 1):
            for path in PATHS:
                passed = bench.seconds(lambda path=path, task=task: task(path))  # type: ignore[misc]
                if turn:
                    values[what][path].append(in_unit(what, passed))
            if turn:
                least = limit(lambda task=task: task("ours"), bench.synchronise)  # type: ignore[misc]
                limits[what].append(in_unit(what, least))
    for turn in range(repeats + 1):
        for path in PATHS:
            for what, parts in (
                (STEP, bench.parts_of_step(path)),
                (IMAGE, bench.parts_of_prediction(lambda path=path: bench.evaluate(path, multi=False))),  # type: ignore[misc]
            ):
                for part, passed in parts.items():
                    if turn:
                        values[f"{what}: {part}"][path].append(passed)
    rows = [Row(name, what, UNITS.get(what, "s"), found["plain"], found["ours"]) for what, found in values.items()]
    for what, reached in limits.items():
        rows.append(Row(name, f"{what}: the limit", UNITS[what], values[what]["plain"], reached))
    for what, crops in ((FORWARD, 1), (STEP, 3 * setting.batch)):  # a backward pass is twice the arithmetic
        found, work = values[what], bench.gflop() * crops
        speeds = ([work / passed for passed in found[path]] for path in PATHS)
        rows.append(Row(name, f"{what}: arithmetic", "GFLOP/s", *speeds))
    return rows


def peak_memory(name: str, what: str, path: str, setting: Setting) -> float:
    """Peak memory in GB of a fresh process that does ``what`` once, libraries and model included."""
    options = [f"--{key}={value}" for key, value in vars(setting).items() if key != "compile"]
    command = [sys.executable, str(Path(__file__).resolve()), "peak", name, what, path, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def device_name(setting: Setting) -> str:
    """What the numbers were measured on."""
    if setting.device.startswith("cuda"):
        return torch.cuda.get_device_name(setting.device)
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {setting.threads or torch.get_num_threads()} threads"


def markdown(rows: Iterable[Row], setting: Setting, title: str) -> str:
    """The table, median and range over turns."""
    known = ", ".join(f"{key} {value}" for key, value in versions().items() if value)
    lines = [
        f"# Speed on {title}",
        "",
        f"{datetime.now(timezone.utc):%Y-%m-%d}; {known}.",
        "",
        f"Crops, windows and short sides of {setting.size} px, images of {setting.size} x {setting.size * 4 // 3} px, "
        f"{setting.classes} classes, batches of {setting.batch}, {setting.precision}, "
        f"ours {'compiled' if setting.compile else 'eager'}. Random weights.",
        "",
        "Median (range) over turns that alternate between the paths; `plain` and `ours` are described in "
        "`benchmarks/speed.py`. The ratio is ours to plain. Parts of a step are forward and backward, always eager; "
        "parts of an evaluated image are seconds, and its tail includes resizing and windows. The limit: matrix "
        "products and attention of ours alone (`benchmarks/limit.py`). Memory is that of a process, with libraries.",
        "",
        "| model | what | unit | plain | ours | ratio | turns |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{statistics.median(v):.3g} ({min(v):.3g} to {max(v):.3g})" for v in (row.plain, row.ours)]
        lines.append(
            f"| {row.model} | {row.what} | {row.unit} | {cells[0]} | {cells[1]} | {row.ratio:.2f} | {len(row.plain)} |"
        )
    return "\n".join(lines) + "\n"


def write(rows: list[Row], setting: Setting, folder: Path) -> list[Path]:
    """CSV, one line a turn, and Markdown; the file name tells hardware and versions."""
    title = device_name(setting)
    parts = [title, setting.precision, "compiled" * setting.compile, f"torch {torch.__version__.split('+')[0]}"]
    parts.append(f"whitebox {whitebox.__version__}")
    stem = "speed-" + re.sub(r"[^a-z0-9.]+", "-", "-".join(filter(None, parts)).lower())
    folder.mkdir(parents=True, exist_ok=True)
    table, text = folder / f"{stem}.csv", folder / f"{stem}.md"
    with table.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["model", "what", "unit", "path", "turn", "value"])
        for row in rows:
            for path in PATHS:
                for turn, value in enumerate(getattr(row, path)):
                    writer.writerow([row.model, row.what, row.unit, path, turn, f"{value:.6g}"])
    text.write_text(markdown(rows, setting, title), encoding="utf-8")
    return [table, text]


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if os.path.exists(path) else ""


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Models = Annotated[list[str], typer.Option(help="Repeat for several.")]
Turns = Annotated[int, typer.Option(min=1, help="Turns that are counted.")]
Folder = Annotated[Path, typer.Option(help="Folder of the tables.")]
Size = Annotated[int, typer.Option(help="Side of crops and windows, short side of images, px.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16.")]
Threads = Annotated[int, typer.Option(help="Threads of the processor; 0: as PyTorch chooses.")]


@app.command()
def run(
    model: Models = list(MODELS),  # noqa: B006
    repeats: Turns = 5,
    output: Folder = Path("results/benchmarks"),
    size: Size = 512,
    classes: int = 150,
    batch: int = 4,
    precision: Precision = "fp32",
    device: str = "cpu",
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile ours from pixels to masks.")] = False,
    threads: Threads = 0,
) -> None:
    """Measure, print and write the tables. Scales and flips, which take long, only for tiny models."""
    setting, rows, console = Setting(size, classes, batch, precision, device, compile, threads), [], Console()
    if threads:
        torch.set_num_threads(threads)
    for name in model:
        console.print(f"{name}: times")
        rows += measure(name, setting, repeats, multi="tiny" in name)
        for what in (STEP, IMAGE):
            console.print(f"{name}: memory, {what}")
            plain, ours = ([peak_memory(name, what, path, setting)] for path in PATHS)
            rows.append(Row(name, f"{what}: peak memory", UNITS["memory"], plain, ours))
    console.print(markdown(rows, setting, device_name(setting)), soft_wrap=True, markup=False, highlight=False)
    for path in write(rows, setting, output):
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)


@app.command()
def products(
    model: Models = list(MODELS),  # noqa: B006
    repeats: Turns = 5,
    output: Folder = Path("results/benchmarks"),
    size: Size = 512,
    classes: int = 150,
    batch: int = 4,
    threads: Threads = 0,
) -> None:
    """What share of a task its matrix products and attention take within it, on a processor, by our path.

    Scales and flips, which take long, only for tiny models.
    """
    setting, rows = Setting(size, classes, batch, threads=threads), []
    keep_freed()  # as commands do
    for name in model:
        bench = Bench(name, setting)
        tasks = {STEP: partial(bench.step, "ours"), IMAGE: partial(bench.evaluate, "ours", False)}
        if "tiny" in name:
            tasks[MULTI] = partial(bench.evaluate, "ours", True)
        for what, task in tasks.items():
            task()
            rows.append((name, what, spread([100 * share(task) for _ in range(repeats)])))
    where = f"{device_name(setting)}, fp32, torch {torch.__version__.split('+')[0]}"
    table = Table(
        columns=(Column("Model"), Column("Task"), Column("Products (% of its time)", 1)),
        rows=tuple(rows),
        caption=f"{where}; {batch} crops of {size} px a step, a photo of {size * 4 // 3} x {size} px, {classes} "
        f"classes; median [range] of {repeats} turns.",
    )
    table_console().print(table.to_rich())
    table.write(output / re.sub(r"[^\w.]+", "-", f"products-{where}").lower())


@app.command(hidden=True)
def peak(
    name: str,
    what: str,
    path: str,
    size: Size = 512,
    classes: int = 150,
    batch: int = 4,
    precision: Precision = "fp32",
    device: str = "cpu",
    threads: Threads = 0,
) -> None:
    """Do something once and print the peak memory of this process in GB."""
    bench = Bench(name, Setting(size, classes, batch, precision, device, threads=threads))
    bench.step(path) if what == STEP else bench.evaluate(path, multi=False)
    on_gpu = bench.device.type == "cuda"
    Console().print(torch.cuda.max_memory_allocated(bench.device) / 1e9 if on_gpu else peak_gb())


if __name__ == "__main__":
    app()
