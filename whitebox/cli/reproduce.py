"""Figures and tables of the papers by one command: reproduce."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.analysis import Again, Limit, Seed, Split
from whitebox.cli.app import DataRoot, Device, app, params_of, say
from whitebox.errors import ConfigError

if TYPE_CHECKING:
    from experiments.experiment import Setting
    from experiments.foundation import Foundation
    from experiments.study import Study
    from whitebox.config import RunConfig


@app.command(name="reproduce")
def reproduce_command(
    name: Annotated[str | None, typer.Argument(help="A paper, or a figure or table of it (see --list).")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="For trainings, e.g. train.epochs=20.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="The papers' is ade20k.")] = "ade20k",
    data_root: DataRoot = None,
    encoder: Annotated[
        str | None, typer.Option(help="Of the study on a frozen encoder. Default: dinov2-small.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="A:B", help="Of that study's trainings. Default: 0:5.")] = None,
    decoder: Annotated[list[str] | None, typer.Option(help="Only these of that study. Repeatable.")] = None,
    model_size: Annotated[
        list[str] | None, typer.Option(help="tiny, small, base, large. Repeatable. Default: tiny; of that study small.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where runs are looked for, and trained.")] = Path("results"),
    split: Split = None,
    limit: Limit = None,
    draws: Annotated[int, typer.Option(min=1, help="Of noise at each level.")] = 5,
    noise: Annotated[
        str | None, typer.Option(help="Levels of parameter noise, as of `robustness`. Default: the papers'.")
    ] = None,
    seed: Seed = 0,
    device: Device = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: results/PAPER/DATASET.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is missing and what it would cost.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Of that study: tables and figures of what is there, and nothing trained.")
    ] = False,
    list_all: Annotated[bool, typer.Option("--list", help="List papers, figures and tables.")] = False,
    again: Again = False,
) -> None:
    """Train what is missing, measure, draw, and show measured beside reported, for a paper or one of its figures.

    \b
    whitebox reproduce --list
    whitebox reproduce depict --dataset camvid --dry-run
    whitebox reproduce depict-fig7 --dataset camvid --limit 20
    whitebox reproduce foundation --dataset camvid --encoder dinov2-small --seeds 0:5
    """
    if list_all:
        _list()
        return
    if name is None:
        raise ConfigError("Name a paper or a figure; `whitebox reproduce --list` lists them.")
    from experiments import STUDIES
    from experiments.experiment import Setting
    from experiments.foundation import NAME as FOUNDATION
    from experiments.reproduce import chosen_experiments, needed_runs, plan_table, reproduce
    from whitebox.cli.progress import image_progress
    from whitebox.cli.training import train
    from whitebox.data.preflight import preflight
    from whitebox.runs import find_run

    setting = Setting(split=split, limit=limit, draws=draws, noise=noise, seed=seed)
    if name == FOUNDATION:
        study = _asked_study(
            overrides=overrides,
            dataset=dataset,
            data_root=data_root,
            encoder=encoder,
            seeds=seeds,
            decoder=decoder,
            model_size=model_size,
            runs=runs,
            split=split,
            output=output,
        )
        if show:
            study.show(setting)
        else:
            _foundation(study, setting, device, dry_run, again)
        return
    if encoder or seeds or decoder or show:
        raise ConfigError(f"--encoder, --seeds, --decoder and --show belong to `whitebox reproduce {FOUNDATION}`.")
    if name in STUDIES:
        if model_size or split or dataset not in ("ade20k", STUDIES[name].dataset):
            raise ConfigError(
                f"{name} is a study of fixed models and data: leave --dataset, --model-size and --split out."
            )
        _study(STUDIES[name], overrides or [], setting, runs / name, output, data_root, device, dry_run, again)
        return
    experiments = chosen_experiments(name, dataset)
    sizes = model_size or ["tiny"]
    needed = needed_runs(experiments, dataset, sizes, runs, overrides or ())
    if dry_run:
        plan_table(needed, dataset, overrides or (), data_root).show()
        return
    folder = output or Path("results") / name.partition("-")[0] / dataset
    preflight(folder)
    for each in needed:
        if each.differs:
            say(f"{each.model} is shown by {each.folder}, which has {', '.join(each.differs)}.")
        if each.folder is None:
            say(f"{each.model} has no run on {dataset} below {runs}/: it is trained now.")
            train(each.model, overrides, dataset=dataset, data_root=data_root, output=runs, resume=True, device=device)
    found = [find_run(each.folder or runs / f"{each.model}-{dataset}", None, data_root, (), device) for each in needed]
    models = {run.name: each.model for run, each in zip(found, needed, strict=True)}
    reproduce(experiments, found, models, setting, folder, lambda title: image_progress(title, None), again=again)


def study_config_of(words: Sequence[str]) -> RunConfig:
    """What ``whitebox reproduce foundation WORDS``, for one decoder, would train, but for the seed.

    Raises:
        ConfigError: see `whitebox.config.resolve`.
    """
    given = params_of("reproduce", words)
    study = _asked_study(**{name: given[name] for name in inspect.signature(_asked_study).parameters})
    (decoder,) = study.only
    return study.config(decoder)


def _asked_study(
    *,
    overrides: Sequence[str] | None,
    dataset: str,
    data_root: Path | None,
    encoder: str | None,
    seeds: str | None,
    decoder: Sequence[str] | None,
    model_size: Sequence[str] | None,
    runs: Path,
    split: str | None,
    output: Path | None,
) -> Foundation:
    """The study on a frozen encoder, of the options of the command."""
    from experiments.foundation import ENCODER, NAME, SEEDS, Foundation
    from whitebox.runs import seeds_of

    if split or len(model_size or ()) > 1:
        raise ConfigError(f"{NAME} has splits of its own, and one --model-size: leave --split out.")
    return Foundation(
        dataset=dataset,
        encoder=encoder or ENCODER,
        size=model_size[0] if model_size else "small",
        seeds=seeds_of(seeds) if seeds else SEEDS,
        overrides=tuple(overrides or ()),
        folder=output or runs / NAME,
        data_root=data_root,
        only=tuple(decoder or ()),
    )


def _study(
    study: Study,
    overrides: list[str],
    setting: Setting,
    folder: Path,
    output: Path | None,
    data_root: Path | None,
    device: str | None,
    dry_run: bool,
    again: bool,
) -> None:
    """Train the runs of a study that are missing, and measure all."""
    from experiments.reproduce import study_plan
    from whitebox.cli.progress import image_progress
    from whitebox.cli.training import train
    from whitebox.engine.header import WEIGHTS
    from whitebox.runs import find_run

    if dry_run:
        study_plan(study, folder, overrides, data_root).show()
        return
    for name, run in study.runs.items():
        if not (folder / name / WEIGHTS).is_file():
            say(f"{name} is not in {folder}/: it is trained now.")
            chosen = [*study.recipe, *run.overrides, *overrides]
            train(
                run.model,
                chosen,
                dataset=study.dataset,
                data_root=data_root,
                output=folder,
                name=name,
                resume=True,
                device=device,
            )
    found = {name: find_run(folder / name, None, data_root, (), device) for name in study.runs}
    study.measure(found, setting, output or folder, lambda title: image_progress(title, None), again=again)


def _foundation(study: Foundation, setting: Setting, device: str | None, dry_run: bool, again: bool) -> None:
    """Train, measure and let go, seed by seed; then all as a few models."""
    from experiments.reproduce import foundation_plan
    from whitebox.cli.progress import image_progress
    from whitebox.cli.training import train
    from whitebox.runs import ended, find_run

    if dry_run:
        foundation_plan(study, setting).show()
        return
    for decoder, seed in study.trainings():
        folder = study.place(decoder, seed)
        if study.done(decoder, seed, setting) and not again:
            say(f"{folder} is measured.")
            continue
        if not ended(folder):
            train(
                study.model(decoder),
                study.chosen(decoder),
                dataset=study.dataset,
                encoder=study.encoder,
                recipe="frozen",
                data_root=study.data_root,
                output=study.folder,
                name=decoder,
                seeds=f"{seed}:{seed + 1}",
                resume=True,
                device=device,
            )
        run = find_run(folder, None, study.data_root, (), device)
        study.measure(run, decoder, seed, setting, lambda title: image_progress(title, None), again=again)
    study.show(setting)


def _list() -> None:
    from experiments import EXPERIMENTS, STUDIES, foundation
    from whitebox.terminal import show_rows

    rows = [(each.name, each.title, each.where, ", ".join(each.decoders)) for each in EXPERIMENTS.values()]
    for study in STUDIES.values():
        rows.append((study.name, study.title, f"ours, results/{study.name}", ", ".join(study.runs)))
    where = f"ours, results/{foundation.NAME}"
    rows.append((foundation.NAME, foundation.TITLE, where, ", ".join(foundation.DECODERS)))
    show_rows(("name", "shows", "where", "models"), rows)
