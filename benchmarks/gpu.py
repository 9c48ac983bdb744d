"""What a GPU is used for: ``python benchmarks/gpu.py run``, one command, six minutes at most.

Beside the plain formulas in fp32 (`benchmarks/speed.py`: what the official codes compute, eager) and the arithmetic
limit of the device, in one run, whatever else it does meeting all of them in turn:

    correct      logits and labels of fused attention against explicit softmax, of bf16 against fp32; first, since a
                 wrong number is never fast
    step         one update, plain fp32 against ours in fp32, bf16, and bf16 compiled; share of the device's bf16 peak
                 (MFU: 3 x the forward pass's arithmetic / time / peak); share of the time its kernels run; peak memory
    evaluation   one photo, and its scales and flips
    frozen       an update on the encoder's stored tokens (`benchmarks/frozen.py`), and what of it reading is
    sweep        51 levels of decoder noise on encoded photos, against evaluating them as often from the pixels

Aims: `AIMS`; each that is missed is a line at the end. What does not fit in the time is left out, and said. On a CPU
all of it runs at a small size, so that it cannot rot; there are no aims for one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from frozen import Bench as FrozenBench
from frozen import own_stores
from speed import Bench, Setting, device_name
from turns import ratio, spread

from analysis.maths.perturbation import perturbed, target_parameters
from analysis.show.figures import PAGE, figure_style, new_figure, save_figure
from analysis.show.tables import Cell, Column, Estimate, Table
from whitebox.config import InferenceConfig
from whitebox.data import Sample
from whitebox.engine.encoded import EncodedImages
from whitebox.engine.evaluate import evaluate
from whitebox.terminal import table_console

MODELS = tuple(
    f"{decoder}-{size}" for size in ("tiny", "base", "large") for decoder in ("depict-sa", "cbsa", "segmenter-mask")
)
WAYS = {"plain": ("fp32", False), "fp32": ("fp32", False), "bf16": ("bf16", False), "compiled": ("bf16", True)}
LEVELS = 51
# Dense bf16 of a whole device, TFLOP/s, as NVIDIA's data sheets state it (tensor cores, without sparsity)
PEAKS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "A10": 125, "V100": 125, "4090": 165, "3090": 71, "T4": 65}
# quantity -> least; of base and large
AIMS = {
    "step, compiled / plain": 4.0,
    "evaluation, bf16 / plain": 4.0,
    "MFU, compiled (%)": 40.0,
    "device busy, compiled (%)": 90.0,
}
BOUNDS = {"fused": 1e-3, "bf16": 5e-2}  # of the largest logit


@dataclass
class Budget:
    """Seconds that are left."""

    ends: float
    left_out: list[str] = field(default_factory=list)

    def allows(self, what: str) -> bool:
        """Whether there is time; else it is noted."""
        if time.monotonic() < self.ends:
            return True
        self.left_out.append(what)
        return False


class Timed(Bench):
    """As `speed.Bench`, in the four ways of `WAYS`."""

    def __init__(self, name: str, setting: Setting) -> None:
        super().__init__(name, setting)
        self.eager = self.setting

    @contextmanager
    def way(self, way: str) -> Iterator[str]:
        """The path of a way, in its precision."""
        precision, compiled = WAYS[way]
        self.setting = replace(self.eager, precision=precision)
        self.compiled = self._compiled() if compiled else None
        torch.set_float32_matmul_precision("high" if self.device.type == "cuda" and way != "plain" else "highest")
        try:
            yield "plain" if way == "plain" else "ours"
        finally:
            self.setting, self.compiled = self.eager, None
            torch.set_float32_matmul_precision("highest")

    def _compiled(self) -> Any:
        if not hasattr(self, "_graph"):
            self._graph = torch.compile(self.model.masks)
        return self._graph

    def medians(self, task: Callable[[str], object], ways: tuple[str, ...], turns: int) -> dict[str, list[float]]:
        """Seconds of each turn; ways alternate, and the first turn, which compiles, is not counted."""
        passed: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(turns + 1):
            for way in ways:
                with self.way(way) as path:
                    once = self.seconds(lambda path=path: task(path))  # type: ignore[misc]
                if turn:
                    passed[way].append(once)
        return passed

    def busy(self, task: Callable[[str], object], way: str) -> float | None:
        """Percent of the time that the device's kernels run, of five repetitions; None: it has none."""
        if self.device.type != "cuda":
            return None
        from torch.profiler import ProfilerActivity, profile

        with self.way(way) as path:
            task(path)
            with profile(activities=[ProfilerActivity.CUDA]) as seen:
                passed = self.seconds(lambda: [task(path) for _ in range(5)])
        kernels = sum(event.device_time_total for event in seen.events() if event.device_type.name == "CUDA")
        return 100 * 1e-6 * kernels / passed

    def memory(self, task: Callable[[str], object], way: str) -> float | None:
        """Peak GB on the device; None: it is a CPU (see `speed.py`)."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        with self.way(way) as path:
            task(path)
        return torch.cuda.max_memory_allocated(self.device) / 1e9


def correct(bench: Timed) -> Iterator[tuple[str, float, float, float]]:
    """Way, largest difference of logits by the largest logit, percent of labels that agree, and the bound."""
    logits = {}
    bench.model.eval()
    with torch.inference_mode():
        for way in ("plain", "fp32", "bf16"):
            with bench.way(way) as path, bench.context(path):
                logits[way] = bench.model(bench.images[:1]).float()
    for way, reference, name in (("fp32", "plain", "fused"), ("bf16", "fp32", "bf16")):
        one, other = logits[way], logits[reference]
        difference = float((one - other).abs().max() / other.abs().max())
        agree = float((one.argmax(1) == other.argmax(1)).float().mean())
        yield name, difference, 100 * agree, BOUNDS[name]


def gains(passed: dict[str, list[float]], way: str) -> Estimate:
    """How many times faster than plain, of the same turns."""
    return ratio(passed["plain"], passed[way])


def peak_tflops(device: str) -> float | None:
    """Of the device, where its name is known."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    return next((float(peak) for key, peak in PEAKS.items() if key in name), None)


def of_model(
    name: str, setting: Setting, turns: int, ways: tuple[str, ...], budget: Budget
) -> Iterator[tuple[Cell, ...]]:
    """Rows of one model: quantity, way, value."""
    bench, peak = Timed(name, setting), peak_tflops(setting.device)
    for kind, difference, agree, bound in correct(bench):
        if difference > bound:
            raise SystemExit(f"{name}: {kind} logits differ by {difference:.2g} of the largest, more than {bound:g}.")
        yield name, f"{kind}, largest difference of logits", kind, Estimate(difference)
        yield name, f"{kind}, labels that agree (%)", kind, Estimate(agree)
    work = 3 * setting.batch * bench.gflop() / 1e3  # TFLOP of an update: a backward pass is twice a forward pass
    if budget.allows(f"{name}: step"):
        passed = bench.medians(bench.step, ways, turns)
        for way in ways:
            yield name, "step (s)", way, spread(passed[way])
            if way != "plain":
                yield name, f"step, {way} / plain", way, gains(passed, way)
            if peak is not None:
                yield name, f"MFU, {way} (%)", way, spread([100 * work / each / peak for each in passed[way]])
            busy, memory = bench.busy(bench.step, way), bench.memory(bench.step, way)
            if busy is not None and memory is not None:
                yield name, f"device busy, {way} (%)", way, Estimate(busy)
                yield name, "peak memory (GB)", way, Estimate(memory)
    eager = tuple(way for way in ways if way != "compiled")
    for title, multi in (("evaluation", False), ("scales and flips", True)):
        if budget.allows(f"{name}: {title}"):
            passed = bench.medians(lambda path, multi=multi: bench.evaluate(path, multi), eager, turns)  # type: ignore[misc]
            for way in eager:
                yield name, f"{title} (s a photo)", way, spread(passed[way])
                if way != "plain":
                    yield name, f"{title}, {way} / plain", way, gains(passed, way)


class Photos:
    """Random photos with labels, as a dataset."""

    def __init__(self, count: int, size: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.classes = tuple(map(str, range(classes)))
        self.ignore_index = 255
        self.samples = [
            Sample(
                torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8),
                torch.randint(0, min(classes, 255), (size, size), generator=generator, dtype=torch.uint8),
                str(index),
            )
            for index in range(count)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def sweep(name: str, setting: Setting, levels: int, photos: int) -> Iterator[tuple[Cell, ...]]:
    """Noise on the decoder of encoded photos, against whole evaluations."""
    bench = Timed(name, setting)
    data: Any = Photos(photos, setting.size, setting.classes)
    inference = InferenceConfig(window=setting.size, stride=setting.size, batch=setting.batch)
    parameters = target_parameters(bench.model, "decoder")

    def encoded() -> None:
        images = EncodedImages(bench.model, data, inference, workers=0)
        for level in range(levels):
            with perturbed(parameters, 0.01 * level, seed=0, draw=0, sign=1, relative=False):
                images.evaluate()

    once = bench.seconds(lambda: evaluate(bench.model, data, inference, workers=0))
    once = bench.seconds(lambda: evaluate(bench.model, data, inference, workers=0))
    passed = bench.seconds(encoded)
    yield name, f"sweep of {levels} levels (s)", setting.precision, Estimate(passed)
    yield name, "sweep, evaluations from pixels / encoded", setting.precision, Estimate(levels * once / passed)


def frozen(crop: int, batch: int, turns: int, device: str) -> Iterator[tuple[Cell, ...]]:
    """An update of DEPICT-SA on stored tokens."""
    with own_stores():
        bench = FrozenBench("DEPICT-SA", "stored", crop, batch, device)
        passed: dict[str, list[float]] = {"update": [], "read": []}
        for turn in range(turns + 1):
            for what, task in (("update", bench.update), ("read", bench.read)):
                start = time.perf_counter()
                task()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if turn:
                    passed[what].append(time.perf_counter() - start)
    yield "depict-sa-small, frozen", "step (s)", "fp32", spread(passed["update"])
    shares = [100 * read / update for read, update in zip(passed["read"], passed["update"], strict=True)]
    yield "depict-sa-small, frozen", "reading of a step (%)", "fp32", spread(shares)


def missed(rows: list[tuple[Cell, ...]]) -> list[str]:
    """A line an aim that a base or large model misses."""
    found = []
    for name, quantity, _, value in rows:
        aim = AIMS.get(str(quantity))
        if (
            aim is not None
            and str(name).endswith(("-base", "-large"))
            and isinstance(value, Estimate)
            and value.value < aim
        ):
            found.append(f"missed: {name}, {quantity}: {value.value:.3g}, aim {aim:g}")
    return found


def figure(rows: list[tuple[Cell, ...]], stem: Path) -> None:
    """How many times faster than the plain formulas a step is, by model and way."""
    shown = [row for row in rows if re.fullmatch(r"step, \w+ / plain", str(row[1]))]
    names = list(dict.fromkeys(str(row[0]) for row in shown))
    ways = list(dict.fromkeys(str(row[2]) for row in shown))
    with figure_style(len(ways)) as colours:
        made = new_figure(PAGE, 0.8 + 0.3 * max(3, len(names)))
        axes = made.add_subplot()
        for index, (way, colour) in enumerate(zip(ways, colours, strict=False)):
            own = {str(row[0]): row[3] for row in shown if row[2] == way}
            places = [names.index(name) + 0.25 * (index - (len(ways) - 1) / 2) for name in own]
            values = [each.value for each in own.values() if isinstance(each, Estimate)]
            axes.barh(places, values, height=0.22, color=colour, label=way)
        axes.axvline(1, color="0.3", linewidth=0.6)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel("times as fast as the plain formulas in fp32 (one update)")
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        save_figure(made, stem)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """What a GPU is used for."""


@app.command()
def run(
    model: Annotated[list[str], typer.Option(help="Repeat for several.")] = list(MODELS),  # noqa: B006
    turns: Annotated[int, typer.Option(min=1, help="That are counted.")] = 5,
    size: Annotated[int, typer.Option(help="px")] = 512,
    classes: int = 150,
    batch: int = 8,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    compiled: Annotated[bool, typer.Option(help="Also compiled.")] = torch.cuda.is_available(),
    minutes: Annotated[float, typer.Option(min=0.0, help="After these nothing more is begun.")] = 6.0,
    levels: Annotated[int, typer.Option(min=1)] = LEVELS,
    photos: Annotated[int, typer.Option(min=1, help="Of the sweep.")] = 16,
    output: Path = Path("results/benchmarks"),
) -> None:
    """Measure, print, write the table and the figure, and say which aims are missed."""
    setting, budget = Setting(size, classes, batch, "fp32", device), Budget(time.monotonic() + 60 * minutes)
    ways = tuple(way for way in WAYS if compiled or way != "compiled")
    console, rows = table_console(), list[tuple[Cell, ...]]()
    if budget.allows("frozen"):
        rows += frozen(min(size, 252) // 14 * 14, batch, turns, device)
    if budget.allows("sweep"):
        rows += sweep(model[0], setting, levels, photos)
    for name in model:
        if budget.allows(name):
            rows += of_model(name, setting, turns, ways, budget)
    title = device_name(setting)
    left_out = f" Left out for time: {', '.join(budget.left_out)}." if budget.left_out else ""
    table = Table(
        (Column("model"), Column("quantity"), Column("way"), Column("value", 3)),
        tuple(rows),
        f"{title}, torch {torch.__version__}; {size} px, {classes} classes, batches of {batch}; median and range over "
        f"{turns} turns that alternate. plain: the formulas, eager, fp32; ours may use TF32 on a GPU.{left_out}",
    )
    stem = output / f"gpu-{re.sub(r'[^a-z0-9.]+', '-', f'{title}-torch-{torch.__version__.split(chr(43))[0]}'.lower())}"
    console.print(table.to_rich())
    table.write(stem)
    figure(rows, stem)
    for line in missed(rows) if device.startswith("cuda") else ():
        console.print(line, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    app()
