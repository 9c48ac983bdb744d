"""Carry out experiments: find the runs they need, say what is missing and what it would cost, measure, render.

What has been measured is read (`analysis.ask`), so a killed reproduction goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from analysis.ask import Bar
from analysis.show.render import render
from analysis.show.tables import Column, Table
from experiments import EXPERIMENTS, PAPERS, STUDIES, foundation
from experiments.experiment import Experiment, Setting, beside
from experiments.study import Study
from whitebox import terminal
from whitebox.catalog import flatten, model_names, nearest
from whitebox.config import RunConfig, architecture, resolve
from whitebox.data import build_dataset, dataset_info
from whitebox.engine.header import WEIGHTS
from whitebox.engine.views import shared_store
from whitebox.errors import ConfigError
from whitebox.runs import Run, SavedRun, ended, saved_runs
from whitebox.terminal import print_line, table_console

Result = TypeVar("Result")


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
    """What trainings would take.

    Attributes:
        steps: optimiser steps. images: that they see.
        petaflops: 1e15 floating point operations, 2 x MACs: a forward pass, and a backward pass at twice its cost.
        hours: on this machine, from one timed forward pass of a crop; a rough guess.
        disk: GB of the tokens that are stored for them.
    """

    steps: int
    images: int
    petaflops: float
    hours: float
    disk: float


def chosen_experiments(name: str, dataset: str) -> list[Experiment]:
    """The experiments of a paper that a dataset can show, or the single one of that name.

    Raises:
        ConfigError: unknown, or only for other datasets.
    """
    if name in PAPERS:
        return [each for each in PAPERS[name] if each.fits(dataset)]
    known = [*PAPERS, *STUDIES, *EXPERIMENTS]
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


def training_cost(config: RunConfig, trainings: int = 1, stored: bool = False) -> TrainingCost:
    """What training ``config`` would take; builds the model, without pretrained weights, and times one pass of it.

    A frozen encoder sees an image once a step, or, where views of it are stored, each view once.

    Args:
        trainings: of other seeds, which share what is stored.
        stored: whether the frozen encoder's tokens are there already.

    Raises:
        DataError: the training images are not there.
    """
    import torch

    from analysis.measures.costs import count
    from whitebox.models import build

    images, side = len(build_dataset(config.data, config.data.train_split, augment=False)), config.data.crop
    bare = replace(config.encoder, pretrained=False, weights=None)
    model = build(bare, config.decoder, len(dataset_info(config.data)[0])).eval()
    costs, crop = count(model, side), torch.zeros(1, 3, side, side)
    with torch.inference_mode():
        encoding, (tokens, grid) = _timed(lambda: model.encode(crop))
        decoding, _ = _timed(lambda: model.decoder.predict(tokens, grid))
    steps = trainings * (config.train.steps or config.train.epochs * (images // config.train.batch_size))
    seen = steps * config.train.batch_size
    decoded = encoded = 3 * seen  # a backward pass costs two forward passes
    disk = 0
    if config.encoder.frozen:
        views = config.data.views
        encoded = seen if views is None else 0 if stored else images * views
        parts = tokens if isinstance(tokens, list) else [tokens]
        disk = sum(each.numel() for each in parts) * 2 * encoded * (views is not None)  # fp16
    flops = 2 * (costs["decoder"].macs * decoded + costs["encoder"].macs * encoded)
    hours = (decoding * decoded + encoding * encoded) / 3600
    return TrainingCost(steps, seen, flops / 1e15, hours, disk / 1e9)


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
    return _plan(rows)


def _plan(rows: Sequence[tuple[Any, ...]]) -> Table:
    columns = (Column("Model"), Column("Run"), Column("Steps"), Column("PFLOP", 3), Column("Hours here", 1))
    caption = "Hours on this machine, guessed from one timed forward pass; a GPU takes a small part."
    return Table(columns, tuple(rows), caption)


def study_config(study: Study, name: str, overrides: Sequence[str] = (), data_root: Path | None = None) -> RunConfig:
    """What a run of a study is trained with."""
    run = study.runs[name]
    return resolve(run.model, study.dataset, [*study.recipe, *run.overrides, *overrides], data_root)


def study_plan(study: Study, folder: Path, overrides: Sequence[str], data_root: Path | None) -> Table:
    """Which runs of a study are there, and what training the others would cost."""
    rows: list[tuple[Any, ...]] = []
    for name in study.runs:
        if (folder / name / WEIGHTS).is_file():
            rows.append((name, f"there: {folder / name}", None, None, None))
        else:
            cost = training_cost(study_config(study, name, overrides, data_root))
            rows.append((name, "to be trained", cost.steps, cost.petaflops, cost.hours))
    return _plan(rows)


def foundation_plan(study: foundation.Foundation, setting: Setting) -> Table:
    """Which trainings on a frozen encoder are there, and what the others would cost, without measuring them."""
    rows: list[tuple[Any, ...]] = []
    stored: set[str | None] = set()
    for decoder in foundation.DECODERS:
        missing = [
            seed
            for seed in study.seeds
            if not (study.done(decoder, seed, setting) or ended(study.place(decoder, seed)))
        ]
        there = f"{len(study.seeds) - len(missing)} of {len(study.seeds)} trainings there"
        if not missing:
            rows.append((decoder, there, None, None, None, None))
            continue
        config = study.config(decoder)
        shared = shared_store(config)  # decoders that take the same layers share the encoder's tokens
        cost = training_cost(config, len(missing), shared in stored)
        rows.append((decoder, there, cost.steps, cost.petaflops, cost.hours, cost.disk))
        stored.add(shared)
    plan = _plan([row[:5] for row in rows])
    return replace(
        plan,
        columns=(*plan.columns, Column("Disk (GB)", 2)),
        rows=tuple(rows),
        caption=f"{plan.caption} The encoder's tokens are computed once, by the first decoder that takes them.",
    )


def _timed(task: Callable[[], Result]) -> tuple[float, Result]:
    """The least seconds of three, and what came of it."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = task()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def reproduce(
    experiments: Sequence[Experiment],
    runs: Sequence[Run | SavedRun],
    models: dict[str, str],
    setting: Setting,
    folder: Path,
    bar: Bar,
    *,
    again: bool = False,
) -> None:
    """Measure, write records, tables and figures below ``folder``, and show measured beside reported.

    Args:
        runs: all that the experiments need.
        models: name of each run -> name of its model.
        bar: makes a progress bar of a title.
        again: measure anew what has been measured.

    Raises:
        WhiteboxError: of the measurements, or the folder cannot be written.
    """
    console = table_console()
    for experiment in experiments:
        wanted = [run for run in runs if experiment.size(models[run.name]) is not None]
        console.print()
        print_line(console, f"{experiment.name}: {experiment.title} ({experiment.where})")
        records = experiment.measure(wanted, replace(setting, output=folder), folder, bar, again)
        table = beside(experiment, records, models)
        manner = terminal.manner
        render(records, folder, experiment.name, show=manner.verbose or manner.json)
        if table is not None:
            table.write(folder / "tables" / f"{experiment.name}-reported")
            if not manner.json:
                table.print(console)
        print_line(console, f"Figures and tables: {folder}/*/{experiment.name}*")
