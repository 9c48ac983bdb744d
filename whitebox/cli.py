"""The command line: one thin function a command. Heavy imports stay inside the functions, so that --help is quick."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.errors import ConfigError, DataError, WhiteboxError

if TYPE_CHECKING:
    from torch import Tensor

    from analysis.records import Record
    from whitebox.config import RunConfig
    from whitebox.engine.evaluate import LabelledImage
    from whitebox.models import Segmentor

app = typer.Typer(
    name="whitebox",
    help="Train, evaluate and dissect white-box decoders for semantic segmentation.",
    epilog="Any command with --debug shows the traceback of an error.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, e.g. optim.lr=0.01 train.epochs=20.")
]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of the datasets. Default: $WHITEBOX_DATA, else ./data.", show_default=False)
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps. Default: the best there is.")]
Multiscale = Annotated[bool, typer.Option("--multiscale", help="Average six scales and their mirror images.")]
RunsAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RUN]... [KEY=VALUE]...",
        help="Run folders, model.safetensors files, official checkpoints (default: all below results/); overrides.",
    ),
]
RunPath = Annotated[Path, typer.Argument(help="A run folder, a model.safetensors, or an official checkpoint.pth.")]


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A name of `whitebox models`.")],
    overrides: Overrides = None,
    dataset: Annotated[str, typer.Option(help="A name of `whitebox datasets`.")] = "shapes",
    data_root: DataRoot = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the runs.")] = Path("results"),
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: MODEL-DATASET.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, or begin it.")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="With --resume: go on with another configuration.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile: the same as train.compile=true.")] = False,
    device: Device = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the resolved configuration.")] = False,
) -> None:
    """Train a model on a dataset, by default on the built-in `shapes`.

    \b
    whitebox train depict-ca-tiny
    whitebox train segmenter-mask-small --dataset ade20k encoder.pretrained=true
    whitebox train depict-sa-tiny --dataset camvid --data-root data optim.lr=0.01 train.epochs=20
    """
    from whitebox.config import resolve, to_yaml

    chosen = [*(overrides or ()), *(["train.compile=true"] if compile else [])]
    config = resolve(model, dataset, chosen, data_root)
    if print_config:
        typer.echo(to_yaml(config), nl=False)
        return
    from analysis.report import evaluation_record, report_evaluation, report_training
    from whitebox.engine.checkpoint import WEIGHTS
    from whitebox.engine.train import Interrupted
    from whitebox.engine.train import train as run_training
    from whitebox.progress import TrainingProgress

    folder = output / (name or f"{model}-{dataset}")
    try:
        with TrainingProgress() as progress:
            trained, evaluation = run_training(
                config, folder, progress, resume=resume, allow_changes=allow_changes, device=device
            )
    except Interrupted as stopped:
        if _main_process():
            typer.echo(str(stopped), err=True)
        raise typer.Exit(stopped.exit_code) from None
    except KeyboardInterrupt:
        typer.echo("Stopped at once; the same command with --resume goes on from the last saved state.", err=True)
        raise typer.Exit(130) from None
    if not _main_process():
        return
    report_training(folder)
    record = evaluation_record(
        evaluation,
        config,
        run=folder.name,
        weights=folder / WEIGHTS,
        classes=trained.classes,
        split=config.data.val_split,
    )
    report_evaluation(record, evaluation, folder)
    typer.echo(f"Run saved in {folder}. Next: whitebox predict {folder} PHOTO -o out")


@app.command(name="eval")
def evaluate_command(
    runs: RunsAndOverrides = None,
    dataset: Annotated[str | None, typer.Option(help="Default: the one the model was trained on.")] = None,
    data_root: DataRoot = None,
    split: Annotated[str | None, typer.Option(help="Default: the validation split.")] = None,
    multiscale: Multiscale = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    save_images: Annotated[int, typer.Option(min=0, help="Save N pictures: photo, ground truth, prediction.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: each run's folder.")] = None,
    device: Device = None,
) -> None:
    """Measure mIoU, accuracies and per-class IoU with 95 % intervals over images, and compare several runs.

    \b
    whitebox eval results/depict-ca-tiny-shapes
    whitebox eval results/depict-sa-tiny-camvid --split test --multiscale --save-images 4
    whitebox eval results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid -o comparison/
    """
    from analysis.report import report_comparison
    from whitebox.api import weights_file
    from whitebox.engine.distributed import leave

    paths, overrides = _runs_and_overrides(runs or [])
    records = []
    for path in paths:
        model, config = _load(path, dataset, data_root, overrides, multiscale, device)
        records.append(_evaluate(path, model, config, split or config.data.val_split, limit, save_images, output))
    leave()
    if len(records) > 1 and _main_process():
        report_comparison(records, output or Path(os.path.commonpath([weights_file(path).parent for path in paths])))


def _evaluate(
    run: Path, model: Segmentor, config: RunConfig, split: str, limit: int | None, save_images: int, output: Path | None
) -> Record:
    from analysis.report import evaluation_record, report_evaluation
    from whitebox.api import weights_file
    from whitebox.data import build_dataset
    from whitebox.engine.distributed import evaluate_together
    from whitebox.engine.predict import ComparisonSaver
    from whitebox.progress import image_progress

    images = build_dataset(config.data, split, augment=False)
    weights = weights_file(run)
    name, folder = weights.resolve().parent.name, output or weights.parent
    total = min(limit or len(images), len(images))
    pictures = ComparisonSaver(model, folder / "pictures" / f"{config.data.name}-{split}", save_images, total)
    with image_progress(f"{name} on {config.data.name} {split}", total) as advance:

        def on_image(index: int, sample: LabelledImage, prediction: Tensor) -> None:
            pictures(index, sample, prediction)
            advance(index + 1, total)

        evaluation = evaluate_together(model, images, config.inference, config.data, limit=limit, on_image=on_image)
    record = evaluation_record(evaluation, config, run=name, weights=weights, classes=images.classes, split=split)
    if _main_process():
        report_evaluation(record, evaluation, folder)
        if pictures.written:
            typer.echo(f"Pictures: {pictures.folder}")
    return record


def _runs_and_overrides(items: list[str]) -> tuple[list[Path], list[str]]:
    """Runs are what has no ``=`` (or is there as a file); without any, all finished runs below results/."""
    overrides = [item for item in items if "=" in item and not Path(item).exists()]
    runs = [Path(item) for item in items if item not in overrides]
    if not runs:
        runs = sorted(weights.parent for weights in Path("results").glob("**/model.safetensors"))
    if not runs:
        raise ConfigError("There are no runs below results/: name one, or make one with `whitebox train`.")
    return runs, overrides


@app.command()
def predict(
    run: RunPath,
    inputs: Annotated[list[Path], typer.Argument(help="Photos, folders of photos, or videos.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("predictions"),
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also NAME_probabilities.npz.")] = False,
    video: Annotated[str | None, typer.Option(help="OUT.mp4, below the output: a folder of frames as a video.")] = None,
    fps: Annotated[float | None, typer.Option(help="Of the video. Default: as the file, 24 for a folder.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Also a label PNG for each frame of a video.")] = False,
    multiscale: Multiscale = False,
    device: Device = None,
) -> None:
    """Segment photos (a palette label PNG and an overlay for each) and videos (an overlay video for each).

    \b
    whitebox predict results/depict-ca-tiny-shapes photos/ -o out/
    whitebox predict results/depict-sa-tiny-camvid drive.mp4 -o out/ --labels
    whitebox predict results/depict-sa-tiny-camvid frames/ -o out/ --video drive.mp4 --fps 30
    """
    from whitebox.engine.predict import predict_files
    from whitebox.engine.video import is_video, predict_videos
    from whitebox.progress import image_progress

    videos = inputs if video else [path for path in inputs if is_video(path)]
    photos = [path for path in inputs if path not in videos]
    if videos and probabilities:
        raise ConfigError("--probabilities is for photos: leave it out for videos.")
    if fps is not None and not videos:
        raise ConfigError("--fps is for videos: give a video file, or --video OUT.mp4 with a folder of frames.")
    model, config = _load(run, None, None, None, multiscale, device)
    failed = []
    if photos:
        counted = 0
        with image_progress("predicting", None) as advance:

            def on_file(done: int, total: int, path: Path) -> None:
                nonlocal counted
                counted = total
                advance(done, total)

            result = predict_files(
                model, photos, output, config.inference, config.data, probabilities=probabilities, on_file=on_file
            )
        typer.echo(f"{counted - len(result.failed)} of {counted} images segmented into {output}")
        failed += result.failed
    if videos:
        result = predict_videos(
            model,
            videos,
            output,
            config.inference,
            config.data,
            video=video,
            fps=fps,
            labels=labels,
            progress=image_progress,
        )
        for path in result.written:
            typer.echo(f"Video: {path}")
        failed += result.failed
    for _, reason in failed:
        typer.echo(f"error: {reason}", err=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="An official checkpoint.pth beside its variant.yml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new run.")],
) -> None:
    """Turn an official DEPICT or Segmenter checkpoint into a run folder of whitebox."""
    from whitebox.config import to_yaml
    from whitebox.engine.checkpoint import WEIGHTS, save_model
    from whitebox.files import write_text
    from whitebox.interop.official import load_official

    if (output / WEIGHTS).exists():
        raise ConfigError(f"{output / WEIGHTS} exists already; choose another folder with -o.")
    model, config = load_official(checkpoint)
    save_model(output / WEIGHTS, model, config)
    write_text(output / "config.yaml", to_yaml(config))
    typer.echo(str(model.load_report))
    typer.echo(f"Saved in {output}. Next: whitebox predict {output} PHOTO -o out")


@app.command()
def models() -> None:
    """List the models."""
    from rich.table import Table

    from whitebox.config import model_names, resolve
    from whitebox.terminal import table_console

    table = Table("model", "encoder", "decoder", box=None)
    for name in model_names():
        config = resolve(name)
        chosen = {key: value for key, value in vars(config.decoder).items() if key != "name" and value is not None}
        settings = ", ".join(f"{key}={value:g}" for key, value in chosen.items())
        table.add_row(
            name, config.encoder.name, f"{config.decoder.name} ({settings})" if settings else config.decoder.name
        )
    table_console().print(table)


@app.command()
def datasets(data_root: DataRoot = None) -> None:
    """List the datasets, and which of them are there."""
    from rich.table import Table

    from whitebox.config import dataset_names, resolve
    from whitebox.terminal import table_console

    table = Table("dataset", "classes", "epochs", "batch", "crop", "folder", box=None)
    for name in dataset_names():
        config = resolve("segmenter-linear-tiny", name, (), data_root)
        folder = Path(config.data.root) / config.data.path
        there = "built in" if config.data.kind == "shapes" else f"{folder}{'' if folder.is_dir() else ' (not there)'}"
        table.add_row(
            name,
            _class_count(config),
            str(config.train.epochs),
            str(config.train.batch_size),
            str(config.data.crop),
            there,
        )
    table_console().print(table)


data_app = typer.Typer(help="Prepare, check and show datasets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="A name of `whitebox datasets`.")]


@data_app.command(name="prepare")
def prepare_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="ade20k, cityscapes, pascal-context, coco-stuff164k, coco-stuff10k or camvid."
        ),
    ],
    source: Annotated[
        list[str] | None,
        typer.Option("--from", help="An archive, a folder, or another address, in place of the owners'. Repeatable."),
    ] = None,
    data_root: DataRoot = None,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="Accept a part of the dataset.")] = False,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="Keep what was downloaded.")] = False,
) -> None:
    """Download and unpack a dataset, convert its labels, count its images. A second call goes on where one stopped.

    \b
    whitebox data prepare camvid
    whitebox data prepare ade20k --from ~/Downloads/ADEChallengeData2016.zip
    whitebox data prepare cityscapes --from leftImg8bit_trainvaltest.zip --from gtFine_trainvaltest.zip
    """
    from whitebox.data.prepare import prepare
    from whitebox.progress import TransferProgress

    root = data_root or Path(os.environ.get("WHITEBOX_DATA") or "data")
    try:
        with TransferProgress() as progress:
            prepared = prepare(
                name, root, source or (), progress, allow_partial=allow_partial, keep_archives=keep_archives
            )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    dataset = prepared.recipe.dataset
    where = "" if data_root is None else f" --data-root {data_root}"
    typer.echo(f"Next: whitebox data check {dataset}{where}, whitebox data show {dataset}{where}")


@data_app.command(name="check")
def check_command(
    name: DatasetName,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split. Repeatable.")] = None,
    allow_partial: Annotated[bool, typer.Option("--allow-partial", help="A part of it is no problem.")] = False,
    all_problems: Annotated[bool, typer.Option("--all", help="Every problem, not the first 50.")] = False,
) -> None:
    """Read every image and label: counts, classes, sizes, and by name what is wrong (exit code 1).

    \b
    whitebox data check camvid
    whitebox data check folder data.path=photos data.reduce_zero_label=true
    """
    from whitebox.config import resolve
    from whitebox.data.check import check_dataset, print_report
    from whitebox.progress import image_progress
    from whitebox.terminal import table_console

    config = resolve("segmenter-linear-tiny", _config_name(name), overrides or (), data_root).data
    with image_progress(f"checking {config.name}", None) as advance:
        report = check_dataset(config, split or (), allow_partial=allow_partial, on_image=advance)
    console = table_console()
    print_report(report, console, None if all_problems else 50)
    if report.problems:
        raise typer.Exit(1)


@data_app.command(name="show")
def show_command(
    name: DatasetName,
    overrides: Overrides = None,
    data_root: DataRoot = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100, help="Samples.")] = 8,
    split: Annotated[str | None, typer.Option(help="Default: the training split.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice and of the views.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: NAME-SPLIT.png.")] = None,
) -> None:
    """Write a picture of samples with their labels, as they are stored and as training sees them.

    \b
    whitebox data show camvid -n 8 -o camvid.png
    """
    from whitebox.config import resolve
    from whitebox.data.show import show_dataset
    from whitebox.progress import image_progress

    config = resolve("segmenter-linear-tiny", _config_name(name), overrides or (), data_root).data
    split = split or config.train_split
    path = output or Path(f"{config.name}-{Path(split).name or 'all'}.png")
    with image_progress(f"drawing {config.name}", None) as advance:
        show_dataset(config, split, count, path, (127.5, 127.5, 127.5), seed, advance)
    typer.echo(f"Picture: {path}")


def _config_name(name: str) -> str:
    """The configuration of a dataset that `data prepare` calls otherwise."""
    from whitebox.data.prepare import RECIPES

    return RECIPES[name].dataset if name in RECIPES else name


def _main_process() -> bool:
    """Whether this process speaks for all that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"


def _class_count(config: RunConfig) -> str:
    from whitebox.data import dataset_info

    try:
        return str(len(dataset_info(config.data)[0]))
    except DataError:  # the class list is in a folder that is not there
        return "yours" if config.data.kind == "folder" else "?"


def _load(
    run: Path,
    dataset: str | None,
    data_root: Path | None,
    overrides: list[str] | None,
    multiscale: bool,
    device: str | None,
) -> tuple[Segmentor, RunConfig]:
    """Model on its device, with the configuration it was trained with, changed as the command line says."""
    from whitebox.api import load_run
    from whitebox.config import MULTISCALE, change
    from whitebox.engine.distributed import join

    model, config = load_run(run)
    config = change(config, dataset, overrides or (), data_root)
    if multiscale:
        config.inference.scales = list(MULTISCALE)
        config.inference.flip = True
    return model.to(join(device).device), config


def main() -> None:
    """Entry point: one line and an exit code for what the user can mend, a traceback with --debug or for our bugs."""
    debug = "--debug" in sys.argv or bool(os.environ.get("WHITEBOX_DEBUG"))
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except WhiteboxError as error:
        if debug:
            raise
        if os.environ.get("LOCAL_RANK", "0") == "0":  # one line a machine: what is missing may be missing on one
            typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
