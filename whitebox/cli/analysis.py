"""Commands that measure what decoders do: each writes records, tables and figures, and compares several runs.

Most follow from a measurement (`analysis.measurement.KINDS`): its docstring is their help, its fields their options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from analysis.measurement import KINDS, Measurement, Seed, loaded
from whitebox.cli.app import (
    DataRoot,
    Device,
    Encoder,
    RunsAndOverrides,
    Unit,
    app,
    common_folder,
    main_process,
    runs_and_overrides,
    say,
    together,
)
from whitebox.errors import ConfigError
from whitebox.interop.hub import weights_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from analysis.measurement import Progress
    from analysis.record import Record
    from whitebox.runs import SavedRun

__all__ = ["Again", "Dataset", "Limit", "Output", "Seed", "Split"]

Dataset = Annotated[str | None, typer.Option(help="Default: the one the model was trained on.")]
Split = Annotated[str | None, typer.Option(help="Default: the validation split.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N images.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of records, tables, figures. Default: each run's folder.")
]
Again = Annotated[bool, typer.Option("--again", help="Measure anew what has been measured before.")]
RunsAndPhotos = Annotated[
    list[str],
    typer.Argument(
        metavar="[RUN]... PHOTO... [KEY=VALUE]...",
        help="Runs (default: all below results/), photos (jpg, png, ...), overrides, in any order.",
    ),
]
Against = Annotated[
    list[str] | None,
    typer.Option(help="Baselines beside it: untrained, random-subspaces, train (its training images). Repeatable."),
]
Initialisations = Annotated[int, typer.Option(min=1, help="Draws of each random baseline.")]
Checkpoints = Annotated[
    str | None, typer.Option(help="all: also the weights that the training kept (train.keep_every).")
]
HELD: dict[str, Any] = {
    "against": (Against, None),
    "initialisations": (Initialisations, 3),
    "checkpoints": (Checkpoints, None),
}
ON_IMAGES: dict[str, Any] = {"dataset": Dataset, "data_root": DataRoot, "split": Split, "limit": Limit, "unit": Unit}


def command_of(kind: type[Measurement]) -> Callable[..., None]:
    """The command that asks a measurement of runs: its own options, then those of what it consumes."""
    hints = get_type_hints(kind, include_extras=True)
    own = {each.name: (hints[each.name], each.default) for each in fields(kind)}
    assert MISSING not in (default for _, default in own.values()), f"an option of {kind.__name__} has no default"
    seed = {name: own.pop(name) for name in ("seed",) if name in own}
    shared = {name: (option, None) for name, option in ON_IMAGES.items() if kind.takes == "images"}
    held = HELD if kind.quantities is not Measurement.quantities else {}
    last = {"device": (Device, None), "output": (Output, None), "again": (Again, False)}

    def asked(**given: Any) -> None:
        photos, items = split_photos(given.pop("items")) if kind.takes == "photos" else ((), given.pop("runs"))
        where = {name: given.pop(name) for name in (*shared, *held, *last) if name in given}
        ask_runs(kind(**given), items, photos=photos, **where)

    first = {"items": (RunsAndPhotos, ...)} if kind.takes == "photos" else {"runs": (RunsAndOverrides, None)}
    options = {**first, **own, **shared, **held, **seed, **last}
    asked.__doc__ = kind.__doc__
    asked.__annotations__ = {name: option for name, (option, _) in options.items()}
    asked.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is ... else default,
                annotation=option,
            )
            for name, (option, default) in options.items()
        ]
    )
    return asked


def ask_runs(
    measurement: Measurement,
    items: Sequence[str] | None,
    *,
    photos: Sequence[Path] = (),
    dataset: str | None = None,
    data_root: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    unit: str | None = None,
    against: Sequence[str] | None = None,
    initialisations: int = 3,
    checkpoints: str | None = None,
    device: str | None = None,
    output: Path | None = None,
    again: bool = False,
    beside: Callable[[Record, Sequence[SavedRun], Path], Record] | None = None,
) -> None:
    """Ask one run after another, and show them together at the end, trainings of one configuration as one model.

    Of several processes all measure, and the main one stores and shows.

    Args:
        beside: another record of a model, made of its record, its runs, and the folder it is stored below.
    """
    from analysis.ask import measure_runs
    from analysis.consumed import Chosen
    from analysis.measures.baselines import Wanted, kept_weights
    from analysis.measures.baselines import against as held_against
    from analysis.measures.families import family_records
    from analysis.show.render import render
    from whitebox.cli.progress import image_progress
    from whitebox.runs import families

    wanted = Wanted.of(against or (), initialisations, checkpoints)
    paths, overrides = runs_and_overrides(list(items or ()))
    for path in paths if wanted.epochs else ():
        kept_weights(weights_of(path).parent)
    found: list[SavedRun] = []
    chosen = Chosen(split, limit, tuple(photos), unit)

    def bar(title: str) -> AbstractContextManager[Progress]:
        return image_progress(title, None)

    with together(device):
        records = measure_runs(
            measurement,
            found_runs(paths, dataset, data_root, overrides, device, found),
            chosen,
            bar,
            folder=output,
            again=again,
        )
        grouped = families(found)
        own, records = records, family_records([run.seed for run in found], records, grouped, output)
        if beside is not None:
            for record, family in zip(tuple(records), grouped, strict=True):
                records.append(beside(record, [found[index] for index in family.indices], output or family.folder))
        if wanted:
            baselines = [
                held_against(measurement, run, chosen, wanted, record, bar, output or run.folder, again=again)
                for run, record in zip(found, own, strict=True)
            ]
            records = [*records, *family_records([run.seed for run in found], baselines, grouped, output)]
    if main_process():
        render(records, output or common_folder([family.folder for family in grouped]))


def found_runs(
    paths: Sequence[Path],
    dataset: str | None,
    data_root: Path | None,
    overrides: Sequence[str],
    device: str | None,
    found: list[SavedRun],
) -> Iterator[SavedRun]:
    """The runs at ``paths``, one after another; they are noted in ``found``."""
    from whitebox.cli.names import named
    from whitebox.runs import find_run

    for path in paths:
        run = named(find_run(path, dataset, data_root, overrides, device))
        found.append(run)
        yield run


for name, each in KINDS.items():
    if each.measured:
        app.command(name=name)(command_of(loaded(each.measured)))


@app.command(name="profile")
def profile_command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL_OR_RUN]... [KEY=VALUE]...",
            help="Names of `whitebox models`, or runs (default: all below results/); overrides.",
        ),
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="px. Repeatable, for cost against tokens. Default: the window of --dataset, else 512."
        ),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=1, help="Of models by name. Default: those of --dataset, else 150.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in one forward pass.")] = 1,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
    threads: Annotated[int | None, typer.Option(min=1, help="Of the processor. Default: as PyTorch chooses.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed passes.")] = 10,
    dataset: Annotated[str | None, typer.Option(help="Takes size and classes from a dataset.")] = None,
    encoder: Encoder = None,
    data_root: DataRoot = None,
    device: Device = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Default: each run's folder; results/profile for names.")
    ] = None,
    again: Again = False,
) -> None:
    """What does a model cost? Parameters, MACs, FLOPs, images/s and memory, of decoder blocks, decoder, encoder, model.

    \b
    whitebox profile depict-sa-tiny segmenter-mask-tiny
    whitebox profile depict-sa-large --size 640 --repeats 3 decoder.layers=3
    whitebox profile depict-sa-tiny cbsa-tiny --size 256 --size 512 --size 1024
    whitebox profile results/depict-ca-tiny-camvid segmenter-linear-tiny --dataset camvid --precision bf16
    """
    import torch

    from analysis.measures.profile import Setting, as_families, find_subject, profile
    from analysis.show.render import render
    from experiments.published import published_costs
    from whitebox.cli.progress import image_progress
    from whitebox.config import resolve
    from whitebox.errors import ConfigError

    if threads is not None:
        torch.set_num_threads(threads)
    paths, overrides = runs_and_overrides(models)
    sizes = list(dict.fromkeys(size or ()))
    if not sizes:
        inference = [override for override in overrides if override.startswith("inference.")]
        window = resolve("segmenter-linear-tiny", dataset, inference, data_root).inference.window
        if window is None:
            raise ConfigError("inference.window=null leaves no window to take the size of images from: give --size.")
        sizes = [window]
    records, folders = [], []
    for each in sizes:
        setting = Setting(size=each, batch=batch, precision=precision, repeats=repeats)
        subjects = [
            find_subject(
                path,
                each,
                num_classes,
                dataset=dataset,
                data_root=data_root,
                overrides=overrides,
                device=device,
                encoder=encoder,
            )
            for path in paths
        ]
        with image_progress(f"profile, {each} px", None) as advance:
            found = profile(subjects, setting, advance, folder=output, again=again, reported=published_costs)
        records += as_families(subjects, found, output)
        folders += [subject.folder for subject in subjects]
    render(records, output or common_folder(folders))


def split_photos(items: list[str]) -> tuple[list[Path], list[str]]:
    """Photos (see `is_photo`), then runs and overrides."""
    from whitebox.data.images import IMAGE_SUFFIXES
    from whitebox.errors import ConfigError

    photos = [item for item in items if is_photo(item)]
    if not photos:
        raise ConfigError(f"No photo is named: give files that end in {', '.join(IMAGE_SUFFIXES)}.")
    once = {Path(photo).resolve(): Path(photo) for photo in photos}
    return list(once.values()), [item for item in items if item not in photos]


def is_photo(item: str) -> bool:
    """Whether it ends like one (as an override only where there is such a file)."""
    from whitebox.data.images import IMAGE_SUFFIXES

    return item.lower().endswith(IMAGE_SUFFIXES) and ("=" not in item or Path(item).exists())


@app.command(name="render")
def render_command(
    records: Annotated[list[Path], typer.Argument(help="Record files, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of tables and figures.")] = Path("rendered"),
    tables: Annotated[bool, typer.Option("--tables", help="Tables only, which takes no time.")] = False,
    renew: Annotated[
        bool, typer.Option("--renew", help="First make intervals of evaluations and comparisons anew, in their place.")
    ] = False,
    unit: Unit = None,
) -> None:
    """Draw tables and figures from records again; no model is needed. Records of one kind share a figure.

    With --renew the intervals of evaluations and comparisons follow from the counts stored beside them, so records of
    before datasets had units get today's, and --unit gives others.

    \b
    whitebox render results/camvid/analysis/records -o paper/
    whitebox render results/camvid -o results/camvid --renew
    """
    from analysis.record import laid_out
    from analysis.show.render import render_folders

    if unit is not None and not renew:
        raise ConfigError("--unit changes intervals, which render shows as they were measured: add --renew.")
    if renew:
        from analysis.measures.renewal import renew as made_anew

        say(f"{made_anew(records, unit)} records have new intervals.")
    with laid_out(f"The records {' '.join(map(str, records))}"):
        render_folders(records, output, figures=not tables)
