"""What models cost on this machine: counted, and timed in turns.

``measured`` of each: ``scopes`` (name -> ``parameters``, ``macs``), ``images_per_second`` (scope -> median with the
quartiles of the passes as low and high; of the model from photo in memory to label map), ``seconds`` (the passes
themselves, a batch each), ``tokens`` (patches of an image), ``memory`` (bytes of ``weights``, and of ``activations`` by
scope, see `analysis.measures.costs`). A family has the passes of all its trainings, and of ``images_per_second`` the
median of each (``seeds``) with their ``sd``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from analysis.ask import keep, stored
from analysis.maths.conventions import Cost
from analysis.maths.intervals import ranged
from analysis.measurement import Progress
from analysis.measures.costs import PRECISIONS, SEED, TimedModel, count, draw_names
from analysis.record import Answer, Data, Question, Record, describe_weights, hardware
from whitebox.catalog import model_names, nearest
from whitebox.config import RunConfig, resolve, to_dict
from whitebox.data import dataset_info
from whitebox.data.fingerprint import fingerprint
from whitebox.engine.distributed import join
from whitebox.errors import ConfigError
from whitebox.interop.hub import Reference
from whitebox.models import OpenSegmentor, Segmentor, build
from whitebox.runs import find_run

if TYPE_CHECKING:
    from whitebox.runs import Run, SavedRun

KIND = "profile"
WARM_UP = 2  # passes before the timed ones
FOLDER = Path("results") / "profile"  # of models that are no runs
CLASSES = 150  # of models by name, as in most papers (ADE20K)

Reported = Callable[[RunConfig, int, int], Mapping[str, Any]]  # configuration, px, classes -> what papers state


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
    """What is measured: a run, or a new model of a name. It is built when it has to be measured.

    Attributes:
        saved: its configuration, plain.
        device: its type, "cpu".
        weights: the file they are read from; None: not trained, and so not saved.
        folder: where its results belong.
        run: that it is; None: a name.
    """

    name: str
    saved: Mapping[str, Any]
    classes: int
    device: str
    weights: Path | None
    folder: Path
    open: Callable[[], tuple[Segmentor, RunConfig]]
    run: SavedRun | Run | None = None

    def question(self, setting: Setting) -> Question:
        """What it costs, here."""
        return Question(
            kind=KIND,
            model=self.name,
            data=Data("random", f"{setting.size}px", setting.batch, fingerprint([("random", SEED)])),
            weights=None if self.weights is None else describe_weights(self.weights),
            seeds={"images": SEED},
            settings={
                **asdict(setting),
                "classes": self.classes,
                "device": self.device,
                "threads": torch.get_num_threads(),
                "machine": {**hardware(), "torch": version("torch")},
                "encoder": dict(self.saved["encoder"]),
                "decoder": dict(self.saved["decoder"]),
            },
        )


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


def find_subject(
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
    """A run (what exists on the disk or the Hub), or a new model of a name with random weights.

    Args:
        size: px, of the grid that a new model's position embeddings are made for.
        classes: of a new model; None: those of the dataset, else 150.
        overrides: ``key=value``.
        encoder: of a new model; None: its own.

    Raises:
        CheckpointError: it is a file or folder, and no run.
        ConfigError: neither on the disk nor a model; or ``classes`` or ``encoder`` for a run, which has its own.
    """
    if item.exists() or Reference.of(item) is not None:
        run = find_run(item, dataset, data_root, overrides, device)
        if classes not in (None, len(run.classes)):
            raise ConfigError(f"--num-classes is for models by name: {run.name} has {len(run.classes)} classes.")
        if encoder is not None:
            raise ConfigError(f"--encoder is for models by name: {run.name} has its own.")
        return subject_of(run, join(device).device.type)
    name = str(item)
    if name not in model_names():
        raise ConfigError(
            f"{name} is neither a file or folder nor a model{nearest(name, model_names())} "
            "`whitebox models` lists the models."
        )
    config = resolve(name, dataset, [f"encoder.image_size={size}", *overrides], data_root, encoder=encoder)
    if classes is None:
        classes = CLASSES if dataset is None else len(dataset_info(config.data)[0])
    there, count_of_classes = join(device).device, classes

    def opened() -> tuple[Segmentor, RunConfig]:
        with _memory_errors(name, size):
            model = build(config.encoder, config.decoder, count_of_classes).eval().to(there)
            if isinstance(model, OpenSegmentor):
                draw_names(model)
            return model, config

    return Subject(
        name=name if encoder is None else f"{name}-{encoder}",
        saved=to_dict(config),
        classes=classes,
        device=there.type,
        weights=None,
        folder=FOLDER,
        open=opened,
    )


def subject_of(run: SavedRun | Run, device: str) -> Subject:
    """A run, to be measured on a type of device."""

    def opened() -> tuple[Segmentor, RunConfig]:
        loaded = run.open()
        return loaded.model, loaded.config

    return Subject(
        name=run.name,
        saved=run.saved,
        classes=len(run.classes),
        device=device,
        weights=run.weights,
        folder=run.folder,
        open=opened,
        run=run,
    )


def profile(
    subjects: Sequence[Subject],
    setting: Setting,
    advance: Progress,
    *,
    folder: Path | None = None,
    again: bool = False,
    reported: Reported = lambda config, size, classes: {},
) -> list[Record]:
    """Count and time models, where that has not been done on this machine.

    Those that are measured take turns, so that what else the machine does meets all of them.

    Args:
        advance: called after each pass.
        folder: that of the records is below it; None: below each subject's own.
        again: whatever is stored.
        reported: what papers state.

    Raises:
        ConfigError: the memory does not suffice, or the device cannot do this precision.
        RecordError: what is stored cannot be read.
    """
    if setting.precision == "fp16" and any(subject.device == "cpu" for subject in subjects):
        raise ConfigError("--precision fp16 needs a GPU: choose fp32 or bf16.")
    asked = [(subject.question(setting), (folder or subject.folder) / "records") for subject in subjects]
    found = [None if again else stored(question, place) for question, place in asked]
    missing = [index for index, record in enumerate(found) if record is None]
    answers = iter(_answers([subjects[index] for index in missing], setting, reported, advance))
    return [
        keep(question, next(answers), place) if record is None else record
        for (question, place), record in zip(asked, found, strict=True)
    ]


def _answers(subjects: Sequence[Subject], setting: Setting, reported: Reported, advance: Progress) -> list[Answer]:
    models, benches = [], []
    for subject in subjects:
        with _memory_errors(subject.name, setting.size):
            models.append(subject.open())
            benches.append(TimedModel(models[-1][0], setting.size, setting.batch, setting.precision))
    costs = [count(model, setting.size) for model, _ in models]
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
            advance(done, total)
    return [
        Answer(
            measured=_measured(model, setting, cost, timed, peak),
            n=setting.repeats,
            reported=reported(config, setting.size, model.num_classes),
        )
        for (model, config), cost, timed, peak in zip(models, costs, passes, peaks, strict=True)
    ]


def _measured(
    model: Segmentor,
    setting: Setting,
    costs: Mapping[str, Cost],
    passes: Sequence[Mapping[str, float]],
    peaks: Mapping[str, int],
) -> dict[str, Any]:
    seconds = {scope: [each[scope] for each in passes] for scope in passes[0]}
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return {
        "scopes": {scope: asdict(cost) for scope, cost in costs.items()},
        "images_per_second": {scope: _rate(values, setting.batch) for scope, values in seconds.items()},
        "seconds": seconds,
        "tokens": math.ceil(setting.size / model.encoder.patch_size) ** 2,
        "memory": {
            "weights": sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
            "activations": peaks,
        },
    }


def as_families(subjects: Sequence[Subject], records: Sequence[Record], output: Path | None) -> list[Record]:
    """A record a model: those of trainings of one configuration as one, others as they are.

    Args:
        output: that of a family is below it; None: in the family's folder.
    """
    from analysis.measures.families import family_records
    from whitebox.runs import families

    at = [index for index, subject in enumerate(subjects) if subject.run is not None]
    runs = [subject.run for subject in subjects if subject.run is not None]
    grouped = families(runs)
    together = family_records([run.seed for run in runs], [records[index] for index in at], grouped, output, pooled)
    places = [min(at[index] for index in family.indices) for family in grouped]
    found = {index: record for index, record in enumerate(records) if index not in at}
    found |= dict(zip(places, together, strict=True))
    return [found[index] for index in sorted(found)]


def pooled(records: Sequence[Record]) -> Answer:
    """What the trainings of one configuration cost, as one model: the passes of all, and the median of each training.

    Work and memory are the same for all.
    """
    first = records[0]
    seconds = {
        scope: [each for record in records for each in record.measured["seconds"][scope]]
        for scope in first.measured["seconds"]
    }
    rates = {scope: [record.measured["images_per_second"][scope]["value"] for record in records] for scope in seconds}
    speeds = {
        scope: {**_rate(values, first.settings["batch"]), "sd": float(np.std(own, ddof=1)), "seeds": own}
        for (scope, values), own in zip(seconds.items(), rates.values(), strict=True)
    }
    return Answer(
        measured={**first.measured, "images_per_second": speeds, "seconds": seconds},
        n=sum(record.n for record in records),
        reported=first.reported,
    )


def _rate(seconds: Sequence[float], batch: int) -> dict[str, float]:
    """Images a second: the median of the passes with their quartiles."""
    low, value, high = np.quantile([batch / each for each in seconds], [0.25, 0.5, 0.75]).tolist()
    return ranged(value, (low, high))
