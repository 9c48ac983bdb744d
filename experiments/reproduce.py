"""Carry out experiments: find the runs they need, say what is missing and what it would cost, measure, render.

Finished measurements are noted in ``FOLDER/measured.json``, so a killed reproduction goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from analysis.measures.images import Progress
from analysis.measures.profile import count
from analysis.record import Record, RecordError, describe_weights, read_record, write_record
from analysis.show.render import render
from analysis.show.tables import Column, Table
from experiments import EXPERIMENTS, PAPERS
from experiments.experiment import Experiment, Setting, beside
from whitebox.catalog import flatten, model_names, nearest
from whitebox.config import RunConfig, architecture, resolve
from whitebox.data import build_dataset, dataset_info
from whitebox.errors import ConfigError
from whitebox.files import write_text
from whitebox.foreign import read_json
from whitebox.models import build
from whitebox.runs import Run, saved_runs
from whitebox.terminal import print_line, table_console

DONE = "measured.json"
Bar = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Needed:
    """A run an experiment needs.

    Attributes:
        folder: where it is; None: it has to be trained.
        differs: what is not as in the model it stands for, ``decoder.layers=5``.
    """

    model: str
    folder: Path | None
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrainingCost:
    """What a training would take.

    Attributes:
        steps: optimiser steps. images: forward passes.
        petaflops: 1e15 floating point operations, 2 x MACs: a forward pass, and a backward pass at twice its cost.
        hours: on this machine, from one timed forward pass of a crop, three times; a rough guess.
    """

    steps: int
    images: int
    petaflops: float
    hours: float


def chosen_experiments(name: str, dataset: str) -> list[Experiment]:
    """The experiments of a paper that a dataset can show, or the single one of that name.

    Raises:
        ConfigError: unknown, or only for other datasets.
    """
    if name in PAPERS:
        return [each for each in PAPERS[name] if each.fits(dataset)]
    known = [*PAPERS, *EXPERIMENTS]
    if name not in EXPERIMENTS:
        hint = nearest(name, known)
        raise ConfigError(f"There is no experiment {name!r}{hint} `whitebox reproduce --list` lists them.")
    experiment = EXPERIMENTS[name]
    if not experiment.fits(dataset):
        raise ConfigError(f"{name} is about {' and '.join(experiment.datasets)}: choose one with --dataset.")
    return [experiment]


def needed_runs(
    experiments: Sequence[Experiment], dataset: str, sizes: Sequence[str], root: Path, overrides: Sequence[str] = ()
) -> list[Needed]:
    """The runs of all ``experiments``, once each.

    Of several trainings of a model those with its decoder, encoder and loss come first, and of these the lowest seed.
    A size that some decoders do not have (``large-shrunk``) is left out for them.

    Args:
        overrides: ``key=value``, of the models that are asked for.

    Raises:
        ConfigError: no model has such a size.
    """
    known = model_names()
    models: list[str] = []
    for size in sizes:
        asked = dict.fromkeys(f"{decoder}-{size}" for each in experiments for decoder in each.decoders)
        if not any(model in known for model in asked):
            first = next(iter(asked))
            raise ConfigError(f"There is no model {first}{nearest(first, known)} `whitebox models` lists them.")
        models += [model for model in asked if model in known]
    runs: dict[str, list[tuple[Path, RunConfig]]] = {model: [] for model in models}
    for folder, config in saved_runs(root):
        if config.data.name == dataset and config.model in runs:
            runs[config.model].append((folder, config))
    return [_best(model, there, dataset, overrides) for model, there in runs.items()]


def _best(model: str, runs: Sequence[tuple[Path, RunConfig]], dataset: str, overrides: Sequence[str]) -> Needed:
    """The run that stands for a model, of those that were trained under its name."""
    if not runs:
        return Needed(model, None)
    wanted = resolve(model, dataset, overrides)
    found = [(differences(config, wanted), config.train.seed, folder) for folder, config in runs]
    differs, _, folder = min(found, key=lambda each: (bool(each[0]), *each[1:]))
    return Needed(model, folder, differs)


def differences(config: RunConfig, wanted: RunConfig) -> tuple[str, ...]:
    """What makes a run another model than ``wanted``, or one trained by another loss, as ``key=value`` of the run."""
    there, asked = (architecture(each) | flatten({"loss": asdict(each.loss)}) for each in (config, wanted))
    return tuple(f"{key}={there.get(key)}" for key in sorted({*there, *asked}) if there.get(key) != asked.get(key))


def training_cost(config: RunConfig) -> TrainingCost:
    """What training ``config`` would take; builds the model, and times one pass of it.

    Raises:
        DataError: the training images are not there.
    """
    images = len(build_dataset(config.data, config.data.train_split, augment=False))
    model = build(config.encoder, config.decoder, len(dataset_info(config.data)[0])).eval()
    steps = config.train.epochs * (images // config.train.batch_size)
    seen = steps * config.train.batch_size
    crop = torch.zeros(1, 3, config.data.crop, config.data.crop)
    seconds = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            model.masks(crop)
            seconds.append(time.perf_counter() - start)
    flops = 3 * 2 * count(model, config.data.crop)["model"].macs * seen
    return TrainingCost(steps, seen, flops / 1e15, 3 * min(seconds) * seen / 3600)


def plan_table(needed: Sequence[Needed], dataset: str, overrides: Sequence[str], data_root: Path | None) -> Table:
    """Which runs are there, and what training the others would cost."""
    rows: list[tuple[Any, ...]] = []
    for each in needed:
        if each.folder is not None:
            note = f" (it has {', '.join(each.differs)})" if each.differs else ""
            rows.append((each.model, f"there: {each.folder}{note}", None, None, None))
        else:
            cost = training_cost(resolve(each.model, dataset, overrides, data_root))
            rows.append((each.model, "to be trained", cost.steps, cost.petaflops, cost.hours))
    columns = (Column("Model"), Column("Run"), Column("Steps"), Column("PFLOP", 3), Column("Hours here", 1))
    caption = "Hours on this machine, guessed from one timed forward pass, three times over; a GPU takes a small part."
    return Table(columns, tuple(rows), caption)


def reproduce(experiments: Sequence[Experiment], runs: Sequence[Run], setting: Setting, folder: Path, bar: Bar) -> None:
    """Measure, write records, tables and figures below ``folder``, and show measured beside reported.

    Args:
        runs: all that the experiments need; their models are told by their configurations.
        bar: makes a progress bar of a title.

    Raises:
        WhiteboxError: of the measurements, or the folder cannot be written.
    """
    models = {run.name: run.config.model for run in runs}
    console = table_console()
    for experiment in experiments:
        wanted = [run for run in runs if experiment.size(run.config.model) is not None]
        console.print()
        print_line(console, f"{experiment.name}: {experiment.title} ({experiment.where})")
        with bar(experiment.name) as advance:
            records = _measured(experiment, wanted, setting, folder, advance)
        render(records, folder, experiment.name)
        table = beside(experiment, records, models)
        if table is not None:
            table.write(folder / "tables" / f"{experiment.name}-reported")
            console.print(table.to_rich())


def _measured(
    experiment: Experiment, runs: Sequence[Run], setting: Setting, folder: Path, advance: Progress
) -> list[Record]:
    """The records of an experiment: those of an earlier call where nothing has changed, else new ones."""
    done = _read_done(folder / DONE)
    key = _key(experiment, runs, setting)
    paths = [folder / "records" / name for name in done.get(key, ())]
    if paths and all(path.is_file() for path in paths):
        return [read_record(path) for path in paths]
    records = experiment.measure(runs, setting, folder, advance)
    names = [write_record(record, folder / "records").name for record in records]
    write_text(folder / DONE, json.dumps({**done, key: names}, indent=2) + "\n")
    return records


def _key(experiment: Experiment, runs: Sequence[Run], setting: Setting) -> str:
    weights = [describe_weights(run.weights).sha256 for run in runs]
    settings: list[Any] = [asdict(run.config.inference) for run in runs]
    text = json.dumps([weights, settings, asdict(setting)], sort_keys=True)
    return f"{experiment.name} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value == Path(value).name


def _read_done(path: Path) -> Mapping[str, Sequence[str]]:
    if not path.exists():
        return {}
    try:
        done = read_json(path)
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read ({error}); remove it to measure everything again.") from error
    lists: list[Any] = list(done.values()) if isinstance(done, dict) else [None]
    if not all(isinstance(each, list) for each in lists) or not all(_is_file_name(name) for name in chain(*lists)):
        raise RecordError(f"{path} does not say what was measured; remove it to measure everything again.")
    return done
