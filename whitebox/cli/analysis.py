"""Commands that measure what decoders do: each writes records, tables and figures, and compares several runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.app import (
    DataRoot,
    Device,
    Encoder,
    RunsAndOverrides,
    app,
    common_folder,
    main_process,
    runs_and_overrides,
)

if TYPE_CHECKING:
    from analysis.measures.images import Progress
    from analysis.record import Record
    from whitebox.runs import Run

Dataset = Annotated[str | None, typer.Option(help="Default: the one the model was trained on.")]
Split = Annotated[str | None, typer.Option(help="Default: the validation split.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N images.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random, and of the bootstrap.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of records, tables, figures. Default: each run's folder.")
]
RunsAndPhotos = Annotated[
    list[str],
    typer.Argument(
        metavar="[RUN]... PHOTO... [KEY=VALUE]...",
        help="Runs (default: all below results/), photos (jpg, png, ...), overrides, in any order.",
    ),
]


@app.command(name="rank-analysis")
def rank_analysis_command(
    runs: RunsAndOverrides = None,
    preset: Annotated[str | None, typer.Option(help="Conventions of a released script: crate, cbsa.")] = None,
    tokens: Annotated[str | None, typer.Option(help="normed (after LayerNorm) or raw.")] = None,
    normalise: Annotated[str | None, typer.Option(help="Scale to length 1: none, token, projected.")] = None,
    eps: Annotated[float | None, typer.Option(help="Distortion; the formula has its square. Default: 0.1.")] = None,
    prefactor: Annotated[str | None, typer.Option(help="d of projected rates: subspace (P) or width (D).")] = None,
    heads: Annotated[str | None, typer.Option(help="sum or mean of their rates.")] = None,
    which: Annotated[str | None, typer.Option(help="patches, or all: with class embeddings compressed along.")] = None,
    encoder: Annotated[bool, typer.Option("--encoder", help="Also the encoder's layers.")] = False,
    layers: Annotated[
        str | None, typer.Option(help="Only these, with wildcards: decoder.input,decoder.layers.*,encoder.layers.11.")
    ] = None,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = None,
    output: Output = None,
) -> None:
    """How much do tokens hold along the layers? Coding rates, rate reduction, projected rates, spectra and ranks.

    Defaults: --tokens normed --normalise none --eps 0.1 --prefactor subspace --heads sum --which patches.

    \b
    whitebox rank-analysis results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid --limit 100
    whitebox rank-analysis results/depict-ca-tiny-camvid --preset crate --encoder
    """
    from analysis.measures.rank_analysis import convention, measure

    rule = convention(
        preset, tokens=tokens, normalise=normalise, eps=eps, prefactor=prefactor, heads=heads, which=which
    )
    names = [] if layers is None else layers.split(",")
    measure_runs(
        "rank-analysis",
        runs,
        lambda run, advance: measure(
            run, rule, encoder=encoder, layers=names, split=split, limit=limit, seed=seed, advance=advance
        ),
        dataset=dataset,
        data_root=data_root,
        device=device,
        output=output,
    )


@app.command(name="orthogonality")
def orthogonality_command(
    runs: RunsAndOverrides = None,
    after: Annotated[
        bool, typer.Option("--after", help="Also the class embeddings after the decoder, on images.")
    ] = False,
    draws: Annotated[int, typer.Option(min=2, help="Random matrices to compare with, of each shape.")] = 100,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = None,
    output: Output = None,
) -> None:
    """Are subspaces, and class embeddings, orthogonal? Heat maps, and numbers beside random matrices.

    The weights alone are measured, unless --after is given.

    \b
    whitebox orthogonality results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid
    whitebox orthogonality results/depict-ca-tiny-camvid --after --limit 100 --data-root data
    """
    from analysis.measures.orthogonality import measure

    measure_runs(
        "orthogonality",
        runs,
        lambda run, advance: measure(
            run, after=after, draws=draws, split=split, limit=limit, seed=seed, advance=advance
        ),
        dataset=dataset,
        data_root=data_root,
        device=device,
        output=output,
    )


@app.command(name="attention")
def attention_command(
    items: RunsAndPhotos,
    layer: Annotated[
        str | None, typer.Option(help="From 0, among the layers with such rows; all. Default: the last.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="From 0, mean or all. Default: mean.")] = None,
    part: Annotated[bool, typer.Option("--decoder/--encoder", help="Whose attention.")] = True,
    classes: Annotated[
        str | None, typer.Option(help="Class embeddings, car,road. Default in decoders: the three most predicted.")
    ] = None,
    patch: Annotated[
        list[str] | None, typer.Option(metavar="ROW,COLUMN", help="A patch, both from 0; repeat for several.")
    ] = None,
    cls: Annotated[bool, typer.Option("--cls", help="The class token. Default in encoders.")] = False,
    rollout: Annotated[
        bool, typer.Option("--rollout", help="Multiplied over layers, from the first to --layer.")
    ] = False,
    masks: Annotated[
        bool, typer.Option("--masks", help="Attention-to-mask instead; --layer counts stages, the last is their sum.")
    ] = False,
    interpolation: Annotated[str, typer.Option(help="From patches to pixels: nearest or bilinear.")] = "nearest",
    colours: Annotated[
        str | None,
        typer.Option(
            help="From 0 to the maximum of each map (own) or of all (shared), or to 1 (unit: default of --masks)."
        ),
    ] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays", help="Also each map over the photo in the photo's resolution.")
    ] = False,
    device: Device = None,
    output: Output = None,
) -> None:
    """What do class embeddings, patches or the class token look at? Attention maps over photos.

    A decoder without attention whose tokens have memberships in its heads (ToST) shows those.

    \b
    whitebox attention results/depict-sa-tiny-camvid photo.jpg --head all --classes car,road
    whitebox attention results/depict-ca-tiny-camvid photo.jpg --patch 3,21 --layer all
    whitebox attention results/depict-sa-tiny-camvid photo.jpg --encoder --cls --rollout
    whitebox attention results/segvit-tiny-camvid photo.jpg --masks --layer all
    """
    from analysis.measures.attention import Choice, measure

    paths, runs = split_photos(items)
    chosen = Choice.parse(
        part="decoder" if part else "encoder",
        layer=layer,
        head=head,
        classes=classes,
        patches=patch or [],
        cls=cls,
        rollout=rollout,
        masks=masks,
        interpolation=interpolation,
        colours=colours,
        overlays=overlays,
    )
    measure_runs(
        "attention",
        runs,
        lambda run, advance: measure(run, paths, chosen, advance),
        dataset=None,
        data_root=None,
        device=device,
        output=output,
    )


@app.command(name="pca")
def pca_command(
    items: RunsAndPhotos,
    truth: Annotated[
        list[Path] | None, typer.Option(help="Label image of the photo; repeat for several, in their order.")
    ] = None,
    directions: Annotated[
        int | None, typer.Option(min=1, help="Principal directions to segment by. Default: the number of classes.")
    ] = None,
    device: Device = None,
    output: Output = None,
) -> None:
    """Principal components of the patch tokens before and after the decoder's layers, and what they segment.

    \b
    whitebox pca results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid photo.jpg --truth label.png
    """
    from analysis.measures.pca import measure

    paths, runs = split_photos(items)
    measure_runs(
        "pca",
        runs,
        lambda run, advance: measure(run, paths, truth or [], directions, advance),
        dataset=None,
        data_root=None,
        device=device,
        output=output,
    )


@app.command(name="alignment")
def alignment_command(
    runs: RunsAndOverrides = None,
    eps: Annotated[float, typer.Option(help="Distortion of R^c; the formula has its square.")] = 0.1,
    at: Annotated[
        str, typer.Option(help="tokens: R^c through a layer's LayerNorm; normed: of the tokens it has normalised.")
    ] = "tokens",
    draws: Annotated[int, typer.Option(min=1, help="Random updates of each window and layer.")] = 4,
    dataset: Dataset = None,
    data_root: DataRoot = None,
    split: Split = None,
    limit: Limit = None,
    seed: Seed = 0,
    device: Device = None,
    output: Output = None,
) -> None:
    """Does each layer do what its derivation says? Its update beside the gradient of its objective.

    \b
    whitebox alignment results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid --limit 20 --data-root data
    whitebox alignment results/depict-ca-tiny-camvid --eps 1 --at normed --limit 20 --data-root data
    """
    from analysis.measures.alignment import measure

    measure_runs(
        "alignment",
        runs,
        lambda run, advance: measure(
            run, eps=eps, at=at, draws=draws, split=split, limit=limit, seed=seed, advance=advance
        ),
        dataset=dataset,
        data_root=data_root,
        device=device,
        output=output,
    )


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
    classes: Annotated[
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
) -> None:
    """What does a model cost? Parameters, MACs, FLOPs, images/s and memory, of decoder blocks, decoder, encoder, model.

    \b
    whitebox profile depict-sa-tiny segmenter-mask-tiny
    whitebox profile depict-sa-large --size 640 --repeats 3 decoder.layers=3
    whitebox profile depict-sa-tiny cbsa-tiny --size 256 --size 512 --size 1024
    whitebox profile results/depict-ca-tiny-camvid segmenter-linear-tiny --dataset camvid --precision bf16
    """
    import torch

    from analysis.measures.profile import Setting, measure, open_subject
    from analysis.record import write_record
    from analysis.show.render import render
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
            open_subject(
                path,
                each,
                classes,
                dataset=dataset,
                data_root=data_root,
                overrides=overrides,
                device=device,
                encoder=encoder,
            )
            for path in paths
        ]
        with image_progress(f"profile, {each} px", None) as advance:
            measured = measure(subjects, setting, advance)
        for subject, record in zip(subjects, measured, strict=True):
            write_record(record, (output or subject.folder) / "records")
        records += measured
        folders += [subject.folder for subject in subjects]
    render(records, output or common_folder(folders))


def split_photos(items: list[str]) -> tuple[list[Path], list[str]]:
    """Photos are what ends like one (an override only where there is no such file); then runs and overrides."""
    from whitebox.data.images import IMAGE_SUFFIXES
    from whitebox.errors import ConfigError

    photos = [
        item for item in items if item.lower().endswith(IMAGE_SUFFIXES) and ("=" not in item or Path(item).exists())
    ]
    if not photos:
        raise ConfigError(f"No photo is named: give files that end in {', '.join(IMAGE_SUFFIXES)}.")
    once = {Path(photo).resolve(): Path(photo) for photo in photos}
    return list(once.values()), [item for item in items if item not in photos]


@app.command(name="render")
def render_command(
    records: Annotated[list[Path], typer.Argument(help="Record files, or folders of them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of tables and figures.")] = Path("rendered"),
) -> None:
    """Draw tables and figures from records again; no model is needed. Records of one kind share a figure.

    \b
    whitebox render results/camvid/analysis/records -o paper/
    """
    from analysis.record import laid_out, read_record, read_records
    from analysis.show.render import render

    found = [record for path in records for record in (read_records(path) if path.is_dir() else [read_record(path)])]
    with laid_out(f"The records {' '.join(map(str, records))}"):
        render(found, output)


def measure_runs(
    what: str,
    runs: list[str] | None,
    measure: Callable[[Run, Progress], Record],
    *,
    dataset: str | None,
    data_root: Path | None,
    device: str | None,
    output: Path | None,
) -> None:
    """Measure one run after another, store each record as soon as it is there, and show them together at the end.

    Of several processes all measure, and the main one stores and shows.
    """
    from analysis.record import write_record
    from analysis.show.render import render
    from whitebox.cli.progress import image_progress
    from whitebox.engine.distributed import leave
    from whitebox.runs import open_run

    paths, overrides = runs_and_overrides(runs)
    records, folders = [], []
    for path in paths:
        run = open_run(path, dataset, data_root, overrides, device)
        with image_progress(f"{what}: {run.name}", None) as advance:
            records.append(measure(run, advance))
        if main_process():
            write_record(records[-1], (output or run.folder) / "records")
        folders.append(run.folder)
    leave()
    if main_process():
        render(records, output or common_folder(folders))
