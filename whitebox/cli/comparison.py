"""Commands that compare models: compare, summary, intervene."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.analysis import Again, Dataset, Limit, Output, Seed, Split
from whitebox.cli.app import (
    DataRoot,
    Device,
    Multiscale,
    RunPath,
    RunsAndOverrides,
    Unit,
    app,
    common_folder,
    main_process,
    runs_and_overrides,
    say,
    together,
)
from whitebox.cli.extras import Boundary, BoundaryRatio, Calibration, chosen_extras
from whitebox.errors import ConfigError

if TYPE_CHECKING:
    from analysis.consumed import Chosen
    from analysis.measures.evaluation import Evaluated
    from analysis.measures.extras import Extra
    from whitebox.runs import Run, SavedRun


@app.command(name="compare")
def compare_command(
    runs: RunsAndOverrides = None,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    split: Split = None,
    multiscale: Multiscale = False,
    boundary: Boundary = False,
    boundary_ratio: BoundaryRatio = None,
    calibration: Calibration = False,
    limit: Limit = None,
    unit: Unit = None,
    seed: Seed = 0,
    device: Device = None,
    output: Output = None,
    again: Again = False,
) -> None:
    """Is a run better than the first one? Paired differences of IoU with 95 % intervals, of each class and overall.

    Stored evaluations of the same images and settings are used; what is missing is evaluated. Trainings that differ in
    their seed alone are one model. P values are given as they are, and corrected for the number of models and classes.
    With --boundary and --calibration also of Boundary IoU, ECE and Brier score.

    \b
    whitebox compare results/segmenter-mask-tiny-camvid results/depict-sa-tiny-camvid
    whitebox compare results/base results/first results/second --split test -o comparison/
    """
    from analysis.consumed import Chosen
    from analysis.measures.compare import compare, distinct_names
    from analysis.measures.families import model_evaluations
    from analysis.show.render import render
    from whitebox.runs import families, find_run

    paths, overrides = runs_and_overrides(runs)
    if len(paths) < 2:
        raise ConfigError(f"compare takes a reference and at least one other run; {len(paths)} were named.")
    chosen, single = Chosen(split, limit, unit=unit), []
    extras = chosen_extras(boundary, boundary_ratio, calibration)
    with together(device):
        runs_found = [find_run(path, dataset, data_root, overrides, device, multiscale) for path in paths]
        grouped = families(runs_found)
        if len(grouped) < 2:
            raise ConfigError(
                f"{grouped[0].name} is one model, trained with {len(paths)} seeds: compare takes a reference and at "
                "least one other."
            )
        names = distinct_names([run.folder / run.weights.name for run in runs_found])
        for run, name in zip(runs_found, names, strict=True):
            single.append(_evaluated(run, name, chosen, output, again, extras))
        found = model_evaluations(grouped, single, output)
        pairs = zip(found[1:], grouped[1:], strict=True)
        records = [
            compare(found[0], other, output or family.folder, seed, again=again, extras=extras)
            for other, family in pairs
        ]
    if main_process():
        render(records, output or common_folder([family.folder for family in grouped]))


@app.command(name="similarity")
def similarity_command(
    runs: RunsAndOverrides = None,
    encoder: Annotated[bool, typer.Option("--encoder-layers", help="Also the encoder's layers.")] = False,
    draws: Annotated[int, typer.Option(min=1, help="Random rotations to compare subspaces with.")] = 20,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    unit: Unit = None,
    seed: Seed = 0,
    device: Device = None,
    output: Output = None,
    again: Again = False,
) -> None:
    """Have runs learned the same? CKA of layers; angles between subspaces beside random ones; matched heads.

    Of several runs each pair is compared; of one, its layers with each other.

    \b
    whitebox similarity results/depict-sa-tiny-camvid-0 results/depict-sa-tiny-camvid-1 --limit 50
    whitebox similarity results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid --encoder-layers
    """
    from itertools import combinations

    from analysis.consumed import Chosen
    from analysis.measures.compare import distinct_names
    from analysis.measures.similarity import Setting, similarity
    from analysis.show.render import render
    from whitebox.cli.progress import image_progress
    from whitebox.runs import find_run

    paths, overrides = runs_and_overrides(runs)
    chosen, setting = Chosen(split, limit, unit=unit), Setting(encoder, draws, seed)
    records = []
    with together(device):
        found = [find_run(path, dataset, data_root, overrides, device) for path in paths]
        names = distinct_names([run.folder / run.weights.name for run in found])
        folder = output or common_folder([run.folder for run in found])
        for one, other in combinations(range(len(found)), 2) if len(found) > 1 else [(0, 0)]:
            both = names[one], names[other]
            with image_progress(f"similarity: {' | '.join(dict.fromkeys(both))}", None) as advance:
                pair = found[one], found[other]
                records.append(similarity(*pair, both, chosen, setting, advance, folder, again=again))
    if main_process():
        render(records, folder)


@app.command(name="power")
def power_command(
    runs: RunsAndOverrides = None,
    sd_seed: Annotated[
        float | None, typer.Option(min=0, help="Of the difference, in points: between trainings.")
    ] = None,
    sd_unit: Annotated[float | None, typer.Option(min=0, help="Between units. Default: that of the runs.")] = None,
    sd_residual: Annotated[
        float | None, typer.Option(min=0, help="Of a training on a unit. Default: the runs'.")
    ] = None,
    trainings: Annotated[str, typer.Option(help="How many of each model, as 3,5,10.")] = "3,5,10",
    units: Annotated[
        str | None, typer.Option(help="How many units, as 10,20. Default: as the runs have; that twice and four times.")
    ] = None,
    comparisons: Annotated[int, typer.Option(min=1, help="Corrected for, as models against one reference.")] = 1,
    power: Annotated[float, typer.Option(help="How often the difference is to be found.")] = 0.8,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    unit: Unit = None,
    device: Device = None,
    output: Output = None,
) -> None:
    """The smallest difference of mIoU that a study could show, before it is made: by seeds and units.

    From what a reference and other models, each trained several times, have measured; or from standard deviations.

    \b
    whitebox power results/depict-sa-tiny-camvid results/cbsa-tiny-camvid --comparisons 7
    whitebox power --sd-seed 0.4 --sd-unit 2 --sd-residual 0.8 --units 10,23 --trainings 3,5
    """
    from analysis.consumed import Chosen
    from analysis.maths.variance import Sds
    from analysis.measures.compare import require_same_images
    from analysis.measures.families import model_evaluations
    from analysis.measures.power import Study, power_record, sds_of_difference
    from analysis.show.power import power_table
    from analysis.show.render import render
    from whitebox.runs import families, find_run

    given = {"--sd-seed": sd_seed, "--sd-unit": sd_unit, "--sd-residual": sd_residual}

    def study(default: Sequence[int]) -> Study:
        counts = default if units is None else _numbers("units", units)
        return Study(
            seeds=tuple(_numbers("trainings", trainings)), units=tuple(counts), power=power, comparisons=comparisons
        )

    if not runs:
        if lacking := [name for name, sd in given.items() if sd is None]:
            raise ConfigError(f"power needs runs, or standard deviations: give {', '.join(lacking)} as well.")
        if units is None:
            raise ConfigError("power without runs does not know how many units there are: give --units, as 10,20.")
        sds, planned = Sds(sd_seed or 0.0, sd_unit or 0.0, sd_residual or 0.0), study(())
        found_of = {"sd": sds._asdict(), "units": planned.units, "smallest": planned.smallest(sds)}
        about = "Standard deviations as given"
        table = power_table({"given": found_of}, power=power, comparisons=comparisons, about=about)
        if main_process():
            table.show()
            if output is not None:
                table.write(output / "tables" / "power")
                say(f"Table: {output}/tables/power*")
        return
    paths, overrides = runs_and_overrides(runs)
    chosen = Chosen(split, limit, unit=unit)
    with together(device):
        found_runs = [find_run(path, dataset, data_root, overrides, device) for path in paths]
        grouped = families(found_runs)
        if len(grouped) < 2:
            raise ConfigError("power takes a reference and at least one other model: their difference is what varies.")
        single = [_evaluated(run, run.name, chosen, output, again=False) for run in found_runs]
        found = model_evaluations(grouped, single, output)
        count = len(set(found[0].unit_N))
        planned, records = study((count, 2 * count, 4 * count)), []
        for other, family in zip(found[1:], grouped[1:], strict=True):
            require_same_images(found[0], other)
            own = sds_of_difference(found[0], other)
            sds = Sds(*(sd if fixed is None else fixed for sd, fixed in zip(own, given.values(), strict=True)))
            if unknown := [name for name, sd in zip(given, sds, strict=True) if sd != sd]:
                raise ConfigError(
                    f"{found[0].name} or {other.name} was trained once, or has one unit, so {unknown[0][5:]} is "
                    f"unknown: train with --seeds, or give {', '.join(unknown)}."
                )
            records.append(power_record(found[0], other, sds, planned, output or family.folder))
    if main_process():
        render(records, output or common_folder([family.folder for family in grouped]))


def _numbers(option: str, text: str) -> list[int]:
    """``3,5`` -> [3, 5]."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 8 for part in parts):
        raise ConfigError(f"--{option} {text} is impossible: give whole numbers with commas, as 3,5,10.")
    return [int(part) for part in parts]


@app.command(name="summary")
def summary_command(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER]...", help="Of results, with all below. Default: results/.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Default: the one most models were evaluated on.")] = None,
    output: Output = None,
) -> None:
    """One table of all models: mIoU, parameters, GFLOPs, images/s, sigma_50, from the records that are there.

    \b
    whitebox summary results/camvid
    """
    from analysis.record import laid_out
    from analysis.show import summary as shown

    places = folders or [Path("results")]
    if missing := [str(place) for place in places if not place.is_dir()]:
        raise ConfigError(f"{missing[0]} is no folder: name one that holds results, as results/camvid.")
    folder = output or common_folder(places)
    with laid_out(f"The records below {' '.join(map(str, places))}"):
        summary = shown.summarise(shown.find_records(places), split)
        shown.figure(summary, folder / "figures" / "summary")
        table = shown.table(summary)
    table.write(folder / "tables" / "summary")
    table.show()
    for line in summary.missing:
        say(line)
    say(f"Figure and table: {folder}/*/summary*")


@app.command(name="intervene")
def intervene_command(
    run: RunPath,
    ortho: Annotated[str, typer.Option(help="head_ortho, head_trans or ortho_trans (docs/measurements.md).")],
    layers: Annotated[
        str | None, typer.Option(help="Names with commas, as decoder.layers.0,decoder.layers.2. Default: all.")
    ] = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random matrices, and of the bootstrap.")] = 0,
    device: Device = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the altered run. Default: beside the run.")
    ] = None,
) -> None:
    """Replace the learned subspaces of a model, save the altered model as a run, and measure what that does to mIoU.

    \b
    whitebox intervene results/depict-sa-tiny-camvid --ortho head_ortho
    whitebox intervene results/depict-sa-tiny-camvid --ortho ortho_trans --layers decoder.layers.0 --seed 1 -o results/x
    """
    from analysis.consumed import Chosen
    from analysis.measures.compare import compare
    from analysis.record import describe_weights
    from analysis.show.render import render
    from whitebox.config import to_yaml
    from whitebox.engine.checkpoint import save_model
    from whitebox.engine.distributed import leave, on_main
    from whitebox.engine.header import WEIGHTS
    from whitebox.files import write_text
    from whitebox.models import Segmentor, intervene
    from whitebox.runs import Run, open_run

    opened = open_run(run, data_root=data_root, device=device)
    chosen = None if layers is None else [name.strip() for name in layers.split(",")]
    altered = intervene(opened.model, ortho, chosen, seed)
    assert isinstance(altered, Segmentor)
    folder = output or Path(os.path.normpath(opened.folder / ".." / f"{opened.name.replace('/', '--')}-{ortho}"))

    def check() -> None:
        if (folder / WEIGHTS).exists():
            raise ConfigError(f"{folder / WEIGHTS} exists already; choose another folder with -o.")

    on_main(check)
    before = _evaluated(opened, opened.name, Chosen(split, limit), None, again=False)
    done = {
        "operation": ortho,
        "layers": chosen or "all",
        "seed": seed,
        "run": opened.name,
        "sha256": describe_weights(opened.weights).sha256,
    }

    def save() -> None:
        save_model(folder / WEIGHTS, altered, opened.config, altered=done)
        write_text(folder / "config.yaml", to_yaml(opened.config))

    on_main(save)
    changed = Run(folder.resolve().name, folder / WEIGHTS, altered, opened.config)
    after = _evaluated(changed, changed.name, Chosen(split, limit), None, again=False)
    note = f"{ortho} of {', '.join(chosen) if chosen else 'all subspace layers'} of {opened.name}, seed {seed}"
    record = compare(before, after, folder, seed, [note])
    leave()
    if main_process():
        render([record], folder)
        say(f"Run saved in {folder}. Next: whitebox orthogonality {folder}")


def _evaluated(
    run: SavedRun | Run, name: str, chosen: Chosen, output: Path | None, again: bool, extras: Sequence[Extra] = ()
) -> Evaluated:
    """With a bar where the images have to be predicted."""
    from analysis.measures.evaluation import evaluated
    from whitebox.cli.progress import image_progress

    with image_progress(f"evaluating {name}", None) as advance:
        return evaluated(run, name, chosen, output, advance, again=again, extras=extras)
