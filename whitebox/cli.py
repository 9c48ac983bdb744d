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
RunPath = Annotated[Path, typer.Argument(help="A run folder, a model.safetensors, or an official checkpoint.pth.")]


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A name of `whitebox models`.")],
    overrides: Overrides = None,
    dataset: Annotated[str, typer.Option(help="A name of `whitebox datasets`.")] = "shapes",
    data_root: DataRoot = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the runs.")] = Path("results"),
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: MODEL-DATASET.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    device: Device = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the resolved configuration.")] = False,
) -> None:
    r"""Train a model on a dataset, by default on the built-in `shapes`.

    \b
    whitebox train depict-ca-tiny
    whitebox train segmenter-mask-small --dataset ade20k encoder.pretrained=true
    whitebox train depict-sa-tiny --dataset camvid --data-root data optim.lr=0.01 train.epochs=20
    """
    from whitebox.config import resolve, to_yaml

    config = resolve(model, dataset, overrides or (), data_root)
    if print_config:
        typer.echo(to_yaml(config), nl=False)
        return
    from analysis.report import evaluation_record, report_evaluation, report_training
    from whitebox.engine.checkpoint import WEIGHTS
    from whitebox.engine.train import train as run_training
    from whitebox.progress import TrainingProgress

    folder = output / (name or f"{model}-{dataset}")
    try:
        with TrainingProgress() as progress:
            trained, evaluation = run_training(config, folder, progress, resume=resume, device=device)
    except KeyboardInterrupt:
        typer.echo("interrupted; --resume goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None
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
    typer.echo(f"Run saved in {folder}. Next: whitebox eval {folder} | whitebox predict {folder} PHOTO -o out")


@app.command(name="eval")
def evaluate_command(
    run: RunPath,
    overrides: Overrides = None,
    dataset: Annotated[str | None, typer.Option(help="Default: the one the model was trained on.")] = None,
    data_root: DataRoot = None,
    split: Annotated[str | None, typer.Option(help="Default: the validation split.")] = None,
    multiscale: Multiscale = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    save_images: Annotated[int, typer.Option(min=0, help="Save N pictures: photo, ground truth, prediction.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: the run folder.")] = None,
    device: Device = None,
) -> None:
    r"""Measure mIoU, accuracies and per-class IoU with 95 % intervals over images.

    \b
    whitebox eval results/depict-ca-tiny-shapes
    whitebox eval results/depict-sa-tiny-camvid --split test --multiscale --save-images 4
    """
    from analysis.report import evaluation_record, report_evaluation
    from whitebox.api import weights_file
    from whitebox.data import build_dataset
    from whitebox.engine.evaluate import evaluate
    from whitebox.engine.predict import ComparisonSaver
    from whitebox.progress import image_progress

    model, config = _load(run, dataset, data_root, overrides, multiscale, device)
    split = split or config.data.val_split
    images = build_dataset(config.data, split, augment=False)
    weights = weights_file(run)
    folder = output or weights.parent
    total = min(limit or len(images), len(images))
    pictures = ComparisonSaver(model, folder / "pictures" / f"{config.data.name}-{split}", save_images, total)
    with image_progress(f"evaluating {config.data.name} {split}", total) as advance:

        def on_image(index: int, sample: LabelledImage, prediction: Tensor) -> None:
            pictures(index, sample, prediction)
            advance(index + 1, total)

        evaluation = evaluate(model, images, config.inference, config.data, limit=limit, on_image=on_image)
    record = evaluation_record(
        evaluation, config, run=weights.resolve().parent.name, weights=weights, classes=images.classes, split=split
    )
    report_evaluation(record, evaluation, folder)
    if pictures.written:
        typer.echo(f"Pictures: {pictures.folder}")


@app.command()
def predict(
    run: RunPath,
    inputs: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("predictions"),
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also NAME_probabilities.npz.")] = False,
    multiscale: Multiscale = False,
    device: Device = None,
) -> None:
    r"""Segment photos: a palette label PNG and an overlay for each.

    \b
    whitebox predict results/depict-ca-tiny-shapes photos/ -o out/
    """
    from whitebox.engine.predict import predict_files
    from whitebox.progress import image_progress

    model, config = _load(run, None, None, None, multiscale, device)
    counted = 0
    with image_progress("predicting", None) as advance:

        def on_file(done: int, total: int, path: Path) -> None:
            nonlocal counted
            counted = total
            advance(done, total)

        result = predict_files(
            model, inputs, output, config.inference, config.data, probabilities=probabilities, on_file=on_file
        )
    for _, reason in result.failed:
        typer.echo(f"error: {reason}", err=True)
    typer.echo(f"{counted - len(result.failed)} of {counted} images segmented into {output}")
    if result.failed:
        raise typer.Exit(1)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="An official checkpoint.pth beside its variant.yml.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new run.")],
) -> None:
    """Turn an official DEPICT or Segmenter checkpoint into a run folder of whitebox."""
    from whitebox.config import to_yaml
    from whitebox.engine.checkpoint import WEIGHTS, save_model, write_text
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
    from rich.console import Console
    from rich.table import Table

    from whitebox.config import model_names, resolve

    table = Table("model", "encoder", "decoder", box=None)
    for name in model_names():
        config = resolve(name)
        chosen = {key: value for key, value in vars(config.decoder).items() if key != "name" and value is not None}
        settings = ", ".join(f"{key}={value:g}" for key, value in chosen.items())
        table.add_row(
            name, config.encoder.name, f"{config.decoder.name} ({settings})" if settings else config.decoder.name
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@app.command()
def datasets(data_root: DataRoot = None) -> None:
    """List the datasets, and which of them are there."""
    from rich.console import Console
    from rich.table import Table

    from whitebox.config import dataset_names, resolve

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
    Console(width=None if sys.stdout.isatty() else 160).print(table)


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
    import torch

    from whitebox.api import load_run
    from whitebox.config import MULTISCALE, change

    model, config = load_run(run)
    config = change(config, dataset, overrides or (), data_root)
    if multiscale:
        config.inference.scales = list(MULTISCALE)
        config.inference.flip = True
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return model.to(device), config
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error


def main() -> None:
    """Entry point: one line and an exit code for what the user can mend, a traceback with --debug or for our bugs."""
    debug = "--debug" in sys.argv or bool(os.environ.get("WHITEBOX_DEBUG"))
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except WhiteboxError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
