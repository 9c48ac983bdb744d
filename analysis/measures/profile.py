"""What a model costs: parameters, multiply-accumulates, images a second, memory; by scope.

One multiply-accumulate (MAC) of a matrix product or convolution is two floating point operations: FLOPs = 2 x MACs.
The scopes:

    decoder blocks   the layers of the decoder (its ``layers`` and ``cross_layers``), nothing else. The scope of the
                     decoder GFLOPs that DEPICT (arXiv 2411.03033) and CBSA (arXiv 2509.16875) publish; their N is
                     patches + class tokens
    decoder          with projections, norms and the product of patches and class embeddings: tokens to masks
    encoder          with patch embedding: image to tokens
    model            image to class maps: encoder and decoder, and where the decoder says what each mask is (SegViT) the
                     product of masks and classes at every pixel, as SegViT's published numbers count it

Counted by ``torch.utils.flop_counter`` with attention written out, on tensors without content: a count is exact, costs
no arithmetic and does not depend on the machine. Not counted: what is no matrix product or convolution, such as
softmax, normalisation, pooling, upsampling, and token statistics taken element by element (ToST's second moments).
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from analysis.measures.images import Progress
from analysis.record import Data, Record, RecordError, describe_weights, fingerprint, hardware, new_record
from analysis.show.figures import PAGE, figure_style, legend_columns, new_figure, save_figure
from analysis.show.tables import Cell, Column, Estimate, Table
from whitebox.catalog import model_names, nearest
from whitebox.config import InferenceConfig, RunConfig, architecture, resolve
from whitebox.data import dataset_info
from whitebox.engine.distributed import join
from whitebox.engine.inference import device_of, predict_many
from whitebox.errors import ConfigError
from whitebox.models import Decoder, Segmentor, build
from whitebox.runs import open_run

KIND = "profile"
SCOPES = ("decoder blocks", "decoder", "encoder", "model")
BLOCKS, MODEL = "decoder blocks GFLOPs", "model GMACs"  # what papers publish, as keys of ``reported``
LAYER_LISTS = ("layers", "cross_layers")  # what decoders call their layers, see whitebox.models.taps
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
WARM_UP = 2  # passes before the timed ones
SEED = 0  # of the images
FOLDER = Path("results") / "profile"  # of models that are no runs

PAPER_CLASSES = 150  # ADE20K
PAPER_SIZES = {"tiny": 512, "small": 512, "base": 512, "large": 640, "shrunk": 640}  # px
_PLOT = "read off QishuaiWen/DEPICT assets/performance.png"
_CBSA = "README of QishuaiWen/CBSA"
_SEGVIT = "README of zbwxp/SegVit, which calls MACs FLOPs"
PUBLISHED: dict[str, tuple[str, float, str]] = {  # model -> what, value, source
    "segmenter-mask-tiny": (BLOCKS, 4.22, _PLOT),
    "segmenter-mask-small": (BLOCKS, 12.61, _PLOT),
    "segmenter-mask-base": (BLOCKS, 41.71, _PLOT),
    "segmenter-mask-large": (BLOCKS, 113.2, _PLOT),
    "depict-sa-tiny": (BLOCKS, 5.8, _PLOT),
    "depict-sa-small": (BLOCKS, 6.58, _PLOT),
    "depict-sa-base": (BLOCKS, 8.17, _PLOT),
    "depict-sa-large": (BLOCKS, 34.95, _PLOT),
    "cbsa-tiny": (BLOCKS, 1.5, _CBSA),
    "cbsa-small": (BLOCKS, 2.3, _CBSA),
    "cbsa-base": (BLOCKS, 7.8, _CBSA),
    "cbsa-large": (BLOCKS, 22.3, _CBSA),
    "segvit-base": (MODEL, 120.9, _SEGVIT),
    "segvit-large": (MODEL, 637.9, _SEGVIT),
    "segvit-large-shrunk": (MODEL, 373.5, _SEGVIT),
}


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-accumulates for one image."""

    parameters: int
    macs: int

    @property
    def gflops(self) -> float:
        """2 x MACs, in units of 1e9."""
        return 2e-9 * self.macs


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How costs are measured.

    Attributes:
        size: px, sides of the images; also the window.
        batch: images in one forward pass.
        precision: a key of ``PRECISIONS``; the lower ones by autocast.
        repeats: timed passes.

    Raises:
        ConfigError: an impossible value.
    """

    size: int = 512
    batch: int = 1
    precision: str = "fp32"
    repeats: int = 10

    def __post_init__(self) -> None:
        for name in ("size", "batch", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)} is impossible: it must be at least 1.")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"--precision {self.precision} is unknown: choose from {', '.join(PRECISIONS)}.")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: a run, or a new model of a name.

    Attributes:
        weights: the file they were read from; None: not trained, and so not saved.
        folder: where its results belong.
    """

    name: str
    model: Segmentor
    config: RunConfig
    weights: Path | None
    folder: Path


@contextmanager
def _memory_errors(name: str, size: int) -> Iterator[None]:
    """Not enough memory is something a user can mend."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # PyTorch's allocator of the processor raises plain RuntimeErrors
        known = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not known:
            raise
        raise ConfigError(
            f"{name} at --size {size} does not fit into the memory of this machine: choose a smaller --size or --batch."
        ) from error


def open_subject(
    item: Path,
    size: int,
    classes: int | None,
    *,
    dataset: str | None = None,
    data_root: Path | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    encoder: str | None = None,
) -> Subject:
    """A run (what exists on the disk), or a new model of a name with random weights.

    Args:
        size: px, of the grid that a new model's position embeddings are made for.
        classes: of a new model; None: those of the dataset, else 150.
        overrides: ``key=value``.
        encoder: of a new model; None: its own.

    Raises:
        CheckpointError: it is a file or folder, and no run.
        ConfigError: neither on the disk nor a model; or ``classes`` or ``encoder`` for a run, which has its own.
    """
    if item.exists():
        run = open_run(item, dataset, data_root, overrides, device)
        if classes not in (None, run.model.num_classes):
            raise ConfigError(f"--classes is for models by name: {run.name} has {run.model.num_classes} classes.")
        if encoder is not None:
            raise ConfigError(f"--encoder is for models by name: {run.name} has its own.")
        return Subject(name=run.name, model=run.model, config=run.config, weights=run.weights, folder=run.folder)
    name = str(item)
    if name not in model_names():
        raise ConfigError(
            f"{name} is neither a file or folder nor a model{nearest(name, model_names())} "
            "`whitebox models` lists the models."
        )
    config = resolve(name, dataset, [f"encoder.image_size={size}", *overrides], data_root, encoder=encoder)
    if classes is None:
        classes = PAPER_CLASSES if dataset is None else len(dataset_info(config.data)[0])
    with _memory_errors(name, size):
        model = build(config.encoder, config.decoder, classes).eval().to(join(device).device)
    name = name if encoder is None else f"{name}-{encoder}"
    return Subject(name=name, model=model, config=config, weights=None, folder=FOLDER)


def blocks(decoder: Decoder) -> dict[str, nn.Module]:
    """The layers of a decoder by name, ``layers.0``, ``cross_layers.2``; a linear decoder has none."""
    lists = {name: layers for name, layers in decoder.named_children() if name in LAYER_LISTS}
    return {f"{name}.{index}": block for name, layers in lists.items() for index, block in enumerate(layers.children())}


def count(model: Segmentor, size: int) -> dict[str, Cost]:
    """Parameters and MACs of each scope for one image of ``size`` x ``size`` px, padded to whole patches.

    Parameters include what is frozen or unused in segmentation (the encoder's ImageNet classifier), as published
    counts do.
    """
    state = chain(model.named_parameters(), model.named_buffers())
    empty = {name: tensor.detach().to("meta") for name, tensor in state}
    images = torch.empty(1, 3, size, size, device="meta")
    flops = dict.fromkeys(SCOPES, 0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():

        def before(scope: str) -> None:
            flops[scope] -= counter.get_total_flops()

        def after(scope: str) -> None:
            flops[scope] += counter.get_total_flops()

        with watched(model, before, after):
            torch.func.functional_call(model, empty, (images,))
    layers = blocks(model.decoder)
    of_modules = counter.get_flop_counts()
    for name in layers:
        flops["decoder blocks"] += sum(of_modules[f"{type(model).__name__}.decoder.{name}"].values())
    flops["model"] = counter.get_total_flops()
    modules: dict[str, list[nn.Module]] = {
        "decoder blocks": list(layers.values()),
        "decoder": [model.decoder],
        "encoder": [model.encoder],
        "model": [model],
    }
    return {scope: Cost(_parameters(modules[scope]), flops[scope] // 2) for scope in SCOPES}


def _parameters(modules: Sequence[nn.Module]) -> int:
    found = {id(parameter): parameter.numel() for module in modules for parameter in module.parameters()}
    return sum(found.values())


@contextmanager
def watched(model: Segmentor, before: Callable[[str], object], after: Callable[[str], object]) -> Iterator[None]:
    """Inside the block, ``before(scope)`` and ``after(scope)`` are called around encoder and decoder."""

    def around(scope: str, method: Callable[..., Any], *arguments: Any) -> Any:
        before(scope)
        result = method(*arguments)
        after(scope)
        return result

    places: dict[str, tuple[nn.Module, str]] = {"encoder": (model, "encode"), "decoder": (model.decoder, "predict")}
    for scope, (owner, name) in places.items():
        vars(owner)[name] = partial(around, scope, getattr(owner, name))  # found before the class's method
    try:
        yield
    finally:
        for owner, name in places.values():
            del vars(owner)[name]


def published(config: RunConfig, size: int, classes: int) -> dict[str, Any]:
    """The published cost, for ``reported``; empty where no paper has this model and setting."""
    if config.model not in PUBLISHED or (classes, size) != (PAPER_CLASSES, PAPER_SIZES[config.model.split("-")[-1]]):
        return {}
    if architecture(config) != architecture(resolve(config.model)):
        return {}
    what, value, source = PUBLISHED[config.model]
    return {what: {"value": value, "source": source}}


class LiveMemory(TorchDispatchMode):
    """Inside the block: how many bytes the tensors made there take, and their peak; on any device.

    What a kernel takes for itself and gives back is not seen.

    Args:
        before: tensors that were there before (weights, inputs); they do not count.

    Attributes:
        alive, peak: bytes.
    """

    def __init__(self, before: Iterator[Tensor]) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in before)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._known:  # a view shares the storage of what it shows
            self._known.add(storage)
            self._change(storage.nbytes())
            weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, size: int) -> None:
        self.alive += size
        self.peak = max(self.peak, self.alive)


class Bench:
    """A model and random photos, to be segmented as `whitebox predict` does: photos in memory to label maps."""

    def __init__(self, model: Segmentor, setting: Setting) -> None:
        self.model, self.setting, self.device = model, setting, device_of(model)
        random = np.random.default_rng(SEED)
        shape = (setting.size, setting.size, 3)
        self.photos = [random.integers(0, 256, shape, dtype=np.uint8) for _ in range(setting.batch)]
        self.inference = InferenceConfig(window=setting.size, stride=setting.size, batch=setting.batch)

    def predict(self) -> None:
        """One forward pass of the whole batch, and the label maps from it."""
        dtype = PRECISIONS[self.setting.precision]
        lower = nullcontext() if dtype == torch.float32 else torch.autocast(self.device.type, dtype)
        with lower:
            for _ in predict_many(self.model, self.photos, self.inference):
                pass
        self.synchronise()

    def synchronise(self) -> None:
        """Wait for what an accelerator still does."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def seconds(self) -> dict[str, float]:
        """Wall time of encoder, decoder and model (everything) in one pass."""
        times = dict.fromkeys(("encoder", "decoder", "model"), 0.0)

        def before(scope: str) -> None:
            times[scope] -= time.perf_counter()

        def after(scope: str) -> None:
            self.synchronise()
            times[scope] += time.perf_counter()

        with watched(self.model, before, after):
            before("model")
            self.predict()
            after("model")
        return times

    def peak_memory(self) -> dict[str, int]:
        """Most bytes of tensors alive at once, beside weights and photos: in encoder, decoder and model (all of it)."""
        peaks: dict[str, int] = {}
        with LiveMemory(chain(self.model.parameters(), self.model.buffers())) as memory:

            def before(scope: str) -> None:
                memory.peak = memory.alive

            def after(scope: str) -> None:
                peaks[scope] = memory.peak

            with watched(self.model, before, after):
                self.predict()
        return {**peaks, "model": max(memory.peak, *peaks.values())}


def measure(subjects: Sequence[Subject], setting: Setting, advance: Progress | None = None) -> list[Record]:
    """Count and time models. They take turns, so that what else the machine does meets all of them.

    ``measured`` of each: ``scopes`` (name -> ``parameters``, ``macs``), ``images_per_second`` (scope -> median with the
    quartiles of the passes as low and high; of the model from photo in memory to label map), ``seconds`` (the passes
    themselves, a batch each), ``tokens`` (patches of an image), ``memory`` (bytes of ``weights``, and of
    ``activations`` by scope, see `LiveMemory`).

    Args:
        advance: called after each pass.

    Raises:
        ConfigError: the memory does not suffice, or the device cannot do this precision.
    """
    if setting.precision == "fp16" and any(device_of(subject.model).type == "cpu" for subject in subjects):
        raise ConfigError("--precision fp16 needs a GPU: choose fp32 or bf16.")
    costs = [count(subject.model, setting.size) for subject in subjects]
    benches = []
    for subject in subjects:
        with _memory_errors(subject.name, setting.size):
            benches.append(Bench(subject.model, setting))
    passes: list[list[dict[str, float]]] = [[] for _ in subjects]
    peaks: list[dict[str, int]] = []
    total, done = (WARM_UP + setting.repeats) * len(subjects), 0
    for turn in range(WARM_UP + setting.repeats):
        for subject, bench, timed in zip(subjects, benches, passes, strict=True):
            with _memory_errors(subject.name, setting.size):
                if turn == 0:
                    peaks.append(bench.peak_memory())
                elif turn < WARM_UP:
                    bench.predict()
                else:
                    timed.append(bench.seconds())
            done += 1
            if advance is not None:
                advance(done, total)
    return [_record(*each, setting) for each in zip(subjects, costs, passes, peaks, strict=True)]


def _record(
    subject: Subject,
    costs: Mapping[str, Cost],
    passes: Sequence[Mapping[str, float]],
    peaks: Mapping[str, int],
    setting: Setting,
) -> Record:
    model, config = subject.model, subject.config
    seconds = {scope: [each[scope] for each in passes] for scope in passes[0]}
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return new_record(
        KIND,
        model=subject.name,
        data=Data("random", f"{setting.size}px", setting.batch, fingerprint([("random", SEED)])),
        measured={
            "scopes": {scope: asdict(cost) for scope, cost in costs.items()},
            "images_per_second": {scope: _rate(values, setting.batch) for scope, values in seconds.items()},
            "seconds": seconds,
            "tokens": math.ceil(setting.size / model.encoder.patch_size) ** 2,
            "memory": {
                "weights": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
                "activations": peaks,
            },
        },
        n=setting.repeats,
        weights=None if subject.weights is None else describe_weights(subject.weights),
        seeds={"images": SEED},
        settings={
            **asdict(setting),
            "classes": model.num_classes,
            "device": device_of(model).type,
            "threads": torch.get_num_threads(),
            "machine": {**hardware(), "torch": torch.__version__},
            "encoder": asdict(config.encoder),
            "decoder": asdict(config.decoder),
        },
        reported=published(config, setting.size, model.num_classes),
    )


def _rate(seconds: Sequence[float], batch: int) -> dict[str, float]:
    """Images a second: the median of the passes with their quartiles."""
    low, value, high = np.quantile([batch / each for each in seconds], [0.25, 0.5, 0.75]).tolist()
    return {"value": value, "low": low, "high": high}


def render(records: Sequence[Record], stem: Path) -> Mapping[str, Table]:
    """One row a model, and (``-scopes``) one row a model and scope; bars of GFLOPs beside images a second.

    Where a model was measured at several sizes also (``-tokens``) the cost of its decoder against the number of tokens.

    Raises:
        RecordError: timed under different conditions, so not to be compared.
    """
    for key in ("batch", "precision", "device", "threads"):
        if len({record.settings[key] for record in records}) > 1:
            raise RecordError(f"These profiles were timed with different {key}; render them apart, or measure again.")
    if len({str(record.hardware) for record in records}) > 1:
        raise RecordError("These profiles were timed on different machines; render them apart, or measure again.")
    _draw(records, stem)
    by_model = {
        model: [each for each in records if each.model == model and "tokens" in each.measured]
        for model in dict.fromkeys(record.model for record in records)
    }
    if several := {model: group for model, group in by_model.items() if len(group) > 1}:
        _draw_tokens(several, stem.with_name(f"{stem.name}-tokens"))
    return {"": _summary(records), "-scopes": _scopes(records)}


def stored_cost(record: Record, scope: str) -> Cost:
    """What a record with ``scopes`` holds."""
    return Cost(**record.measured["scopes"][scope])


def stored_speed(record: Record, scope: str) -> Estimate:
    """Images a second of a profile."""
    return Estimate(**record.measured["images_per_second"][scope])


def timed_under(record: Record) -> str:
    """Machine, precision, batch and version of a profile's times, in words."""
    settings = record.settings
    machine = record.hardware["cpu"] if settings["device"] == "cpu" else ", ".join(record.hardware["gpus"])
    threads = f", {settings['threads']} thread{'s' if settings['threads'] > 1 else ''}"
    return (
        f"{machine}{threads if settings['device'] == 'cpu' else ''}, {settings['precision']}, "
        f"batch {settings['batch']}, torch {record.versions['torch']}"
    )


def _passes(records: Sequence[Record]) -> str:
    """How often was timed."""
    counts = sorted({record.n for record in records})
    return f"{' or '.join(map(str, counts))} pass{'' if counts == [1] else 'es'}"


_CONVENTION = (
    "FLOPs = 2 x MACs of matrix products and convolutions (softmax, norms, pooling, upsampling not counted), one image."
)
_BLOCKS = "Decoder blocks: the decoder's layers alone, N = patches + class tokens, the scope papers publish."
_ALIVE = "most bytes of tensors alive at once"


def _summary(records: Sequence[Record]) -> Table:
    some_published = any(BLOCKS in record.reported for record in records)
    columns = [
        Column("Model"),
        Column("px"),
        Column("Classes"),
        Column("Params (M)", 2),
        Column("Decoder (M)", 2),
        Column("Blocks (G)", 2),
        *([Column("Published (G)", 2)] if some_published else []),
        Column("Decoder (G)", 2),
        Column("Model (G)"),
        Column("Images/s", 2),
        Column("Memory (MB)"),
    ]
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        memory, reported = record.measured["memory"], record.reported.get(BLOCKS)
        rows.append(
            (
                record.model,
                record.settings["size"],
                record.settings["classes"],
                1e-6 * stored_cost(record, "model").parameters,
                1e-6 * stored_cost(record, "decoder").parameters,
                stored_cost(record, "decoder blocks").gflops,
                *([None if reported is None else float(reported["value"])] if some_published else []),
                stored_cost(record, "decoder").gflops,
                stored_cost(record, "model").gflops,
                stored_speed(record, "model"),
                1e-6 * (memory["weights"] + memory["activations"]["model"]),
            )
        )
    caption = (
        f"M: millions of parameters. G: GFLOPs. {_CONVENTION} {_BLOCKS} Images/s: photo in memory to label map, "
        f"median of {_passes(records)} [quartiles], {timed_under(records[0])}. Memory: weights and {_ALIVE}."
    )
    return Table(tuple(columns), tuple(rows), caption + _sources(records))


def _scopes(records: Sequence[Record]) -> Table:
    columns = (
        Column("Model"),
        Column("Scope"),
        Column("Params (M)", 3),
        Column("GMACs", 3),
        Column("GFLOPs", 3),
        Column("Published"),
        Column("Images/s", 2),
        Column("Activations (MB)"),
    )
    rows: list[tuple[Cell, ...]] = []
    for record in records:
        activations = record.measured["memory"]["activations"]
        published_by_scope = {key.rpartition(" ")[0]: key for key in record.reported}
        for scope in SCOPES:
            cost, published_as = stored_cost(record, scope), published_by_scope.get(scope)
            text = ""
            if published_as is not None:
                text = f"{record.reported[published_as]['value']} {published_as.rpartition(' ')[2]}"
            timed = scope in activations
            measured = (stored_speed(record, scope), 1e-6 * activations[scope]) if timed else (None, None)
            numbers = (1e-6 * cost.parameters, 1e-9 * cost.macs, cost.gflops)
            rows.append((record.model, scope, *numbers, text, *measured))
    caption = (
        f"{_CONVENTION} {_BLOCKS} Model: photo in memory to label map. Images/s: median of {_passes(records)} "
        f"[quartiles], {timed_under(records[0])}. Activations: {_ALIVE}, beside weights."
    )
    return Table(columns, tuple(rows), caption + _sources(records))


def _sources(records: Sequence[Record]) -> str:
    sources = sorted({reported["source"] for record in records for reported in record.reported.values()})
    return f" Published: {'; '.join(sources)}." if sources else ""


def _draw(records: Sequence[Record], stem: Path) -> None:
    names = [f"{record.model}, {record.settings['size']} px" for record in records]
    rows = range(len(records))
    parts = {
        "decoder blocks": [stored_cost(record, "decoder blocks").gflops for record in records],
        "rest of the decoder": [
            stored_cost(record, "decoder").gflops - stored_cost(record, "decoder blocks").gflops for record in records
        ],
        "encoder": [stored_cost(record, "encoder").gflops for record in records],
    }
    speeds = [stored_speed(record, "model") for record in records]
    with figure_style() as colours:
        figure = new_figure(1.15 + 0.24 * len(records), PAGE)
        work, speed = figure.subplots(1, 2, sharey=True)
        left = [0.0] * len(records)
        for (part, values), colour in zip(parts.items(), (colours[0], colours[9], "0.8"), strict=True):
            work.barh(rows, values, left=left, height=0.6, color=colour, linewidth=0, label=part)
            left = [start + value for start, value in zip(left, values, strict=True)]
        for row, record in enumerate(records):
            text = f" {stored_cost(record, 'decoder').gflops:.3g} of {stored_cost(record, 'model').gflops:.3g}"
            work.text(left[row], row, text, va="center", ha="left", fontsize=6)
        work.set_xlim(0, 1.25 * max(left))
        work.set_yticks(rows, names)
        work.set_ylim(len(records) - 0.4, -0.6)
        work.set_xlabel("GFLOPs an image (2 x MACs);\nnumbers: decoder of model")
        values = [each.value for each in speeds]
        low_high = [[each.value - each.low for each in speeds], [each.high - each.value for each in speeds]]
        speed.errorbar(values, rows, xerr=low_high, fmt="o", color=colours[2], markersize=3.5, linewidth=1)
        for row, each in enumerate(speeds):
            speed.text(each.high, row, f"  {each.value:.3g}", va="center", ha="left", fontsize=6)
        speed.set_xlim(0, 1.25 * max(each.high for each in speeds))
        batch, precision = records[0].settings["batch"], records[0].settings["precision"]
        speed.set_xlabel(
            f"images/s to label maps, {precision}, batch {batch};\nmedian and quartiles of {_passes(records)}"
        )
        for axes in (work, speed):
            axes.grid(visible=False, axis="y")
        handles, labels = work.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=3)
        save_figure(figure, f"{stem}.png")


def _draw_tokens(records: Mapping[str, Sequence[Record]], stem: Path) -> None:
    """What the decoder of each model costs against the number of patch tokens: by formula, and as measured."""
    from matplotlib.ticker import NullFormatter

    first = next(iter(records.values()))[0]
    with figure_style(len(records)) as colours:
        figure = new_figure(2.9, PAGE)
        work, time_taken, memory = panels = figure.subplots(1, 3)
        for (model, group), colour in zip(records.items(), colours, strict=False):
            ordered = sorted(group, key=lambda record: record.measured["tokens"])
            tokens = [record.measured["tokens"] for record in ordered]
            look: dict[str, Any] = {"color": colour, "linewidth": 1, "markersize": 3.5, "label": model}
            work.plot(tokens, [1e-9 * stored_cost(record, "decoder").macs for record in ordered], "o-", **look)
            seconds = np.array(
                [np.quantile(record.measured["seconds"]["decoder"], [0.25, 0.5, 0.75]) for record in ordered]
            )
            milliseconds = 1e3 * seconds / first.settings["batch"]
            low_high = np.abs(milliseconds[:, [0, 2]] - milliseconds[:, [1]]).T
            time_taken.errorbar(tokens, milliseconds[:, 1], low_high, fmt="o-", **look)
            alive = [record.measured["memory"]["activations"]["decoder"] for record in ordered]
            memory.plot(tokens, [1e-6 * each for each in alive], "o-", **look)
        labels = ("GMACs", "ms an image", "activations (MB)")
        for axes, label in zip(panels, labels, strict=True):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlabel("patch tokens")
            axes.set_ylabel(label)
            axes.yaxis.set_minor_formatter(NullFormatter())
        names = list(records)
        figure.legend(names, loc="outside upper center", ncols=legend_columns(names, PAGE))
        figure.supxlabel(
            f"of the decoder, {first.settings['classes']} classes; time: median and quartiles of {first.n} passes; "
            f"{timed_under(first)}",
            fontsize=6.5,
        )
        save_figure(figure, f"{stem}.png")
