"""Commands that make models and use them: train, eval, predict, convert, models, datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from whitebox.cli.app import (
    DataRoot,
    Device,
    Encoder,
    Multiscale,
    Overrides,
    RunsAndOverrides,
    Unit,
    app,
    common_folder,
    complete_datasets,
    complete_models,
    complete_recipes,
    completed_runs,
    main_process,
    params_of,
    runs_and_overrides,
    say,
    together,
)
from whitebox.cli.extras import Boundary, BoundaryRatio, Calibration, Confusion, Images, Variance, chosen_extras
from whitebox.cli.names import Classes, Fast, TopK, Vocabulary, chosen_names, encode_names, named, require_fast
from whitebox.errors import ConfigError, DataError
from whitebox.extras import require_extra

if TYPE_CHECKING:
    from torch import nn

    from analysis.consumed import Chosen
    from analysis.measures.evaluation import Evaluated
    from analysis.measures.extras import Extra
    from analysis.record import Record
    from whitebox.config import DataConfig, InferenceConfig, RunConfig
    from whitebox.runs import Family, SavedRun


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A name of `whitebox models`.", autocompletion=complete_models)],
    overrides: Overrides = None,
    dataset: Annotated[
        str, typer.Option(help="A name of `whitebox datasets`.", autocompletion=complete_datasets)
    ] = "shapes",
    encoder: Encoder = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A name of `whitebox recipes`. Default: the dataset's.", autocompletion=complete_recipes),
    ] = None,
    data_root: DataRoot = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the runs.")] = Path("results"),
    name: Annotated[str | None, typer.Option(help="Name of the run. Default: MODEL-DATASET.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, or begin it.")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="With --resume: go on with other settings, data or code.")
    ] = False,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Train the decoder alone, on the encoder's pretrained weights.")
    ] = False,
    random_encoder: Annotated[
        bool, typer.Option("--random-encoder", help="With --frozen: although the encoder's weights are random.")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="With --frozen: save the encoder too, not only its name and hash.")
    ] = False,
    compile: Annotated[bool, typer.Option("--compile", help="torch.compile: the same as train.compile=true.")] = False,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="A:B", help="Train once with each seed from A to B - 1, in folders seed-A, ... below one name."
        ),
    ] = None,
    device: Device = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the resolved configuration.")] = False,
) -> None:
    """Train a model on a dataset, by default on the built-in `shapes`.

    \b
    whitebox train depict-ca-tiny
    whitebox train segmenter-mask-small --dataset ade20k encoder.pretrained=true
    whitebox train depict-sa-tiny --dataset camvid --data-root data optim.lr=0.01 train.epochs=20
    whitebox train depict-sa-small --encoder dinov2-small --frozen --dataset camvid
    whitebox train depict-sa-tiny --dataset camvid --seeds 0:5 --resume
    """
    from whitebox.config import resolve, to_yaml

    chosen = _with_switches(overrides, frozen=frozen, random_encoder=random_encoder, whole=whole, compile=compile)
    config = resolve(model, dataset, chosen, data_root, encoder=encoder, recipe=recipe)
    if print_config:
        typer.echo(to_yaml(config), nl=False)
        return
    folder = output / (name or "-".join(part for part in (model, encoder, dataset, recipe) if part))
    if name and (os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] in ("..", ".")):
        raise ConfigError(
            f"--name {name} leaves the folder of the runs, {output}: give a name, and the folder with -o."
        )
    if seeds is None:
        _train(config, folder, resume=resume, allow_changes=allow_changes, device=device)
        return
    from whitebox.runs import seeds_of

    if any(each.startswith("train.seed=") for each in chosen):
        raise ConfigError("--seeds and train.seed both choose the seed: leave one of them out.")
    _train_family(config, folder, seeds_of(seeds), resume=resume, allow_changes=allow_changes, device=device)


_SWITCHES = {  # of `train`, and the key that each sets
    "frozen": "encoder.frozen",
    "random_encoder": "encoder.random",
    "whole": "train.whole",
    "compile": "train.compile",
}


def _with_switches(overrides: Sequence[str] | None, **switches: bool) -> list[str]:
    """Overrides and switches of ``train`` as overrides; a frozen encoder is pretrained unless it is said otherwise."""
    chosen = [*(overrides or ()), *(f"{_SWITCHES[name]}=true" for name, on in switches.items() if on)]
    elsewhere = any(each.startswith(("encoder.pretrained=", "encoder.weights=")) for each in chosen)
    if switches["frozen"] and not switches["random_encoder"] and not elsewhere:
        chosen.append("encoder.pretrained=true")
    return chosen


def config_of(words: Sequence[str]) -> RunConfig:
    """What ``whitebox train WORDS`` would be carried out with.

    Raises:
        ConfigError: see `whitebox.config.resolve`.
    """
    from whitebox.config import resolve

    given = params_of("train", words)
    overrides = _with_switches(given["overrides"], **{name: given[name] for name in _SWITCHES})
    return resolve(
        given["model"],
        given["dataset"],
        overrides,
        given["data_root"],
        encoder=given["encoder"],
        recipe=given["recipe"],
    )


def _train_family(
    config: RunConfig, folder: Path, seeds: range, *, resume: bool, allow_changes: bool, device: str | None
) -> None:
    """One training after another, each in a folder of its own; then all as one model."""
    from analysis.consumed import Chosen
    from analysis.measures.evaluation import evaluated
    from analysis.measures.families import family_evaluation
    from analysis.show.render import render
    from whitebox.engine.header import WEIGHTS
    from whitebox.errors import TrainingError
    from whitebox.files import write_text
    from whitebox.runs import (
        FAMILY,
        families,
        find_run,
        lacking_seeds,
        members,
        require_family,
        seed_folder,
        wanted_seeds,
    )

    if (folder / WEIGHTS).exists():
        raise TrainingError(f"{folder} holds one training, not several: choose another name with --name.")
    try:
        known = wanted_seeds(folder) | set(seeds)
    except (OSError, ValueError):
        raise TrainingError(f"{folder / FAMILY} lists no seeds: delete it, and train again with --resume.") from None
    require_family(folder, config)
    for seed in seeds:
        own = seed_folder(folder, seed)
        if not resume and (own / "config.yaml").exists():
            raise TrainingError(f"{own} holds a run already: continue with --resume, or choose other --seeds.")
    if main_process():
        write_text(folder / FAMILY, "".join(f"{seed}\n" for seed in sorted(known)))
    for seed in seeds:
        own = seed_folder(folder, seed)
        if resume and _finished(own):
            say(f"{own} is finished.")
            continue
        one = replace(config, train=replace(config.train, seed=seed))
        _train(one, own, resume=resume, allow_changes=allow_changes, device=device)
    if not main_process():
        return
    if unfinished := lacking_seeds(folder):
        say(f"{folder} is to have seed {', '.join(map(str, unfinished))}, too: go on with --seeds A:B --resume.")
        return
    runs = [find_run(path, device=device) for path in members(folder)]
    (family,) = families(runs)
    if len(runs) > 1:
        record = family_evaluation(family, [evaluated(run, run.name, Chosen()) for run in runs]).record
        render([record], folder)
    count = "One training" if len(runs) == 1 else f"{len(runs)} trainings"
    say(f"{count} saved in {folder}. Next: whitebox eval {folder}")


def _finished(folder: Path) -> bool:
    """Whether a training has ended, and was evaluated, which is the last thing it does."""
    from analysis.record import read_records
    from whitebox.runs import ended

    return ended(folder) and bool(read_records(folder / "records", "eval"))


def _train(config: RunConfig, folder: Path, *, resume: bool, allow_changes: bool, device: str | None) -> None:
    """One training, with its evaluation and its curves."""
    from analysis.consumed import Chosen, EvaluatedImages
    from analysis.measures.evaluation import evaluation_question, store_evaluation
    from analysis.record import RecordError
    from analysis.show.render import render
    from analysis.show.training import training_curves
    from whitebox.cli.progress import TrainingProgress
    from whitebox.engine.train import Interrupted
    from whitebox.engine.train import train as run_training
    from whitebox.runs import find_run

    try:
        with TrainingProgress() as progress:
            trained, evaluation = run_training(
                config, folder, progress, resume=resume, allow_changes=allow_changes, device=device
            )
    except Interrupted as stopped:
        if main_process():
            say(str(stopped), err=True)
        raise typer.Exit(stopped.exit_code) from None
    except KeyboardInterrupt:
        typer.echo("Stopped at once; the same command with --resume goes on from the last saved state.", err=True)
        raise typer.Exit(130) from None
    if not main_process():
        return
    run = find_run(folder)
    images = EvaluatedImages(run, Chosen())
    question = evaluation_question(run, images)
    record = store_evaluation(question, evaluation, trained.classes, images.units.of_N, folder, folder.name).record
    try:
        training_curves(folder / "metrics.jsonl", folder / "curves.png")
    except RecordError as error:  # the log of a finished run was lost; the run is as it was
        say(f"No curves are drawn: {error}", err=True)
    render([record], folder)
    say(f"Run saved in {folder}. Next: whitebox predict {folder} PHOTO -o out")


@app.command(name="eval")
def evaluate_command(
    runs: RunsAndOverrides = None,
    dataset: Annotated[str | None, typer.Option(help="Default: the one the model was trained on.")] = None,
    data_root: DataRoot = None,
    split: Annotated[str | None, typer.Option(help="Default: the validation split.")] = None,
    multiscale: Multiscale = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N images.")] = None,
    save_images: Annotated[int, typer.Option(min=0, help="Save N pictures: photo, ground truth, prediction.")] = 0,
    boundary: Boundary = False,
    boundary_ratio: BoundaryRatio = None,
    calibration: Calibration = False,
    confusion: Confusion = False,
    images: Images = False,
    variance: Variance = False,
    vocabulary: Vocabulary = None,
    fast: Fast = False,
    topk: TopK = None,
    unit: Unit = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: each run's folder.")] = None,
    device: Device = None,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what has been measured before.")] = False,
) -> None:
    """Measure mIoU, accuracies and per-class IoU with 95 % intervals, and show several runs side by side.

    Intervals are over what is independent in the data (--unit), and over trainings: runs that differ in their seed
    alone are one model.

    \b
    whitebox eval results/depict-ca-tiny-shapes
    whitebox eval results/depict-sa-tiny-camvid --split test --multiscale --save-images 4
    whitebox eval results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid -o comparison/
    whitebox eval results/depict-sa-tiny-camvid --boundary --calibration --confusion
    whitebox eval results/sed-base --vocabulary ade847 --dataset ade20k-full --fast --topk 8
    """
    from analysis.consumed import Chosen
    from analysis.show.render import render
    from whitebox.runs import families, find_run

    paths, overrides = runs_and_overrides(runs)
    names = chosen_names(None, vocabulary)
    require_fast(fast, topk)
    extras = chosen_extras(boundary, boundary_ratio, calibration, confusion, images, variance)
    found, runs_found = [], []
    with together(device):
        for path in paths:
            run = named(find_run(path, dataset, data_root, overrides, device, multiscale, names, fast, topk))
            found.append(_evaluate(run, Chosen(split, limit, unit=unit), save_images, output, again, extras))
            runs_found.append(run)
        grouped = families(runs_found)
        shown = [_as_one(family, found, extras, output) for family in grouped]
    if main_process():
        for own, family in zip(shown, grouped, strict=True):
            render(own, output or family.folder, show=len(shown) == 1)
        if len(shown) > 1:
            all_shown = [record for own in shown for record in own]
            render(all_shown, output or common_folder([family.folder for family in grouped]))


def _as_one(family: Family, found: Sequence[Evaluated], extras: Sequence[Extra], output: Path | None) -> list[Record]:
    """The records of a run that stands alone, or of the trainings of a family as one model."""
    from analysis.measures.families import family_evaluation, family_extras

    trained = [found[index] for index in family.indices]
    if len(trained) == 1:
        return [trained[0].record, *trained[0].extras]
    return [family_evaluation(family, trained, output).record, *family_extras(family, trained, extras, output)]


def _evaluate(
    run: SavedRun, chosen: Chosen, save_images: int, output: Path | None, again: bool, extras: Sequence[Extra]
) -> Evaluated:
    """An evaluation, and what else was asked for; pictures need predictions, so these are made again."""
    from analysis.consumed import EvaluatedImages
    from analysis.measures.evaluation import evaluated
    from whitebox.cli.progress import image_progress

    with image_progress(f"{run.name} on {run.data.name}", None) as advance:
        if not save_images:
            return evaluated(run, run.name, chosen, output, advance, again=again, extras=extras)
        from whitebox.engine.predict import ComparisonSaver

        split = chosen.split or run.data.val_split
        folder = (output or run.folder) / "pictures" / f"{run.data.name}-{split}"
        opened, images = run.open(), EvaluatedImages(run, chosen)
        pictures = ComparisonSaver(images.dataset, folder, save_images, len(images))
        found = evaluated(opened, run.name, chosen, output, advance, again=True, on_image=pictures, extras=extras)
    if pictures.written and main_process():
        say(f"Pictures: {pictures.folder}")
    return found


@app.command(tables=False)
def predict(
    run: Annotated[
        Path,
        typer.Argument(
            help="A run folder, a model.safetensors, an official checkpoint.pth, hf-hub:ORG/NAME, or an exported "
            "model.onnx.",
            autocompletion=completed_runs,
        ),
    ],
    inputs: Annotated[list[Path], typer.Argument(help="Photos, folders of photos, or videos.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = Path("predictions"),
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also NAME_probabilities.npz.")] = False,
    video: Annotated[str | None, typer.Option(help="OUT.mp4, below the output: a folder of frames as a video.")] = None,
    fps: Annotated[float | None, typer.Option(help="Of the video. Default: as the file, 24 for a folder.")] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Also a label PNG for each frame of a video.")] = False,
    classes: Classes = None,
    vocabulary: Vocabulary = None,
    fast: Fast = False,
    topk: TopK = None,
    multiscale: Multiscale = False,
    device: Device = None,
) -> None:
    """Segment photos (a palette label PNG and an overlay for each) and videos (an overlay video for each).

    \b
    whitebox predict results/depict-ca-tiny-shapes photos/ -o out/
    whitebox predict results/depict-sa-tiny-camvid drive.mp4 -o out/ --labels
    whitebox predict results/depict-sa-tiny-camvid frames/ -o out/ --video drive.mp4 --fps 30
    whitebox predict results/sed-base photos/ --classes "cat, sofa, striped cushion, window" -o out/
    """
    from whitebox.cli.progress import image_progress
    from whitebox.engine.predict import predict_files
    from whitebox.engine.video import codec_in_words, has_sound, is_video, predict_videos

    videos = inputs if video else [path for path in inputs if is_video(path)]
    photos = [path for path in inputs if path not in videos]
    if videos and probabilities:
        raise ConfigError("--probabilities is for photos: leave it out for videos.")
    if fps is not None and not videos:
        raise ConfigError("--fps is for videos: give a video file, or --video OUT.mp4 with a folder of frames.")
    names = chosen_names(classes, vocabulary)
    require_fast(fast, topk)
    model, inference, data = _predictor(run, device, multiscale, names, fast, topk)
    failed = []
    if photos:
        with image_progress("predicting", None) as advance:
            result = predict_files(
                model,
                photos,
                output,
                inference,
                data,
                probabilities=probabilities,
                on_file=lambda done, total, _path: advance(done, total),
            )
        say(f"{result.images - len(result.failed)} of {result.images} images segmented into {output}")
        failed += result.failed
    if videos:
        result = predict_videos(
            model,
            videos,
            output,
            inference,
            data,
            video=video,
            fps=fps,
            labels=labels,
            progress=image_progress,
        )
        for path in result.written:
            say(f"Video: {path} ({codec_in_words()})")
        if silent := [str(path) for path in videos if has_sound(path)]:
            say(f"Their sound is left out: {', '.join(silent)}")
        failed += result.failed
    for _, reason in failed:
        say(f"error: {reason}", err=True)
    if failed:
        raise typer.Exit(1)


def _predictor(
    run: Path, device: str | None, multiscale: bool, names: tuple[str, ...] | None, fast: bool, topk: int | None
) -> tuple[nn.Module, InferenceConfig, DataConfig]:
    """The model of a run or of an exported file, and how photos are shown to it."""
    from whitebox.config import MULTISCALE
    from whitebox.runs import open_run

    if run.suffix != ".onnx":
        opened = open_run(run, device=device, multiscale=multiscale, names=names, fast=fast, topk=topk)
        encode_names(opened)
        return opened.model, opened.inference, opened.data
    from whitebox.interop.export import read_onnx

    if names is not None or fast:
        raise ConfigError(f"{run} has the classes it was exported with: leave --classes, --vocabulary and --fast out.")
    if device not in (None, "cpu"):
        raise ConfigError(f"{run} runs on the processor: leave --device {device} out, or name the run it was made of.")
    model = read_onnx(run)
    inference = model.inference
    if multiscale:
        inference = replace(inference, scales=list(MULTISCALE), flip=True)
    return model, inference, model.data


@app.command(tables=False)
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="An official checkpoint.pth beside its variant.yml, a released SegViT .pth, SED's model_final.pth, "
            "what mmsegmentation has trained (--from mmseg), or a run (--to mmseg)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new run, or FILE.pth for mmseg.")],
    origin: Annotated[str, typer.Option("--from", help="official or mmseg.")] = "official",
    target: Annotated[str, typer.Option("--to", help="whitebox or mmseg.")] = "whitebox",
    mmseg_config: Annotated[
        Path | None, typer.Option("--config", help="With --from mmseg: its config, if the checkpoint has none.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="With --from mmseg: what it was trained on.")] = None,
) -> None:
    """Turn an official DEPICT, CBSA, Segmenter, SegViT or SED checkpoint into a run; or from and to mmsegmentation.

    \b
    whitebox convert official/checkpoint.pth -o results/official
    whitebox convert work_dirs/mine/iter_20000.pth --from mmseg --dataset ade20k -o results/mine
    whitebox convert results/depict-ca-tiny-shapes --to mmseg -o model.pth
    """
    from whitebox.api import load_run
    from whitebox.config import to_yaml
    from whitebox.engine.checkpoint import save_model
    from whitebox.engine.header import WEIGHTS
    from whitebox.files import write_text

    for option, value, known in (("from", origin, ("official", "mmseg")), ("to", target, ("whitebox", "mmseg"))):
        if value not in known:
            raise ConfigError(f"--{option} {value} is impossible: choose {' or '.join(known)}.")
    if origin != "mmseg" and (mmseg_config is not None or dataset is not None):
        raise ConfigError("--config and --dataset describe an mmsegmentation checkpoint: add --from mmseg.")
    if "mmseg" in (origin, target):
        require_extra("mmseg", f"whitebox convert --{'from' if origin == 'mmseg' else 'to'} mmseg")
    present = output / WEIGHTS if target == "whitebox" else output
    if present.exists():
        raise ConfigError(f"{present} exists already; choose another name with -o.")
    if origin == "mmseg":
        from whitebox.interop.mmseg import from_mmseg, require_dataset

        model, config = from_mmseg(checkpoint, mmseg_config, dataset)
        require_dataset(model, config.data, checkpoint)
    else:
        model, config = load_run(checkpoint)
    if target == "mmseg":
        from whitebox.interop.mmseg import to_mmseg

        say(f"Saved {output} and its config {to_mmseg(model, config, output)}.")
        return
    save_model(output / WEIGHTS, model, config)
    write_text(output / "config.yaml", to_yaml(config))
    say(str(model.load_report))
    say(f"Saved in {output}. Next: whitebox predict {output} PHOTO -o out")


@app.command()
def models(
    pattern: Annotated[
        str | None, typer.Argument(help="Only names like this, as depict or *-tiny.", autocompletion=complete_models)
    ] = None,
) -> None:
    """List the models.

    \b
    whitebox models depict
    whitebox models "*-tiny"
    """
    from whitebox.catalog import model_names, nearest
    from whitebox.config import resolve
    from whitebox.terminal import show_rows

    rows = []
    for name in (each for each in model_names() if _fits(each, pattern)):
        config = resolve(name)
        chosen = {key: value for key, value in vars(config.decoder).items() if key != "name" and value is not None}
        texts = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in chosen.items()}
        settings = ", ".join(f"{key}={text}" for key, text in texts.items())
        decoder = f"{config.decoder.name} ({settings})" if settings else config.decoder.name
        rows.append((name, config.encoder.name, decoder))
    if not rows:
        raise ConfigError(f"No model is called like {pattern!r}{nearest(str(pattern), model_names())}")
    show_rows(("model", "encoder", "decoder"), rows)


def _fits(name: str, pattern: str | None) -> bool:
    """Whether a name holds a text, or is like a pattern with * and ?."""
    from fnmatch import fnmatchcase

    if pattern is None:
        return True
    return fnmatchcase(name, pattern) if set(pattern) & set("*?[") else pattern.lower() in name


@app.command()
def datasets(data_root: DataRoot = None) -> None:
    """List the datasets, and which of them are there."""
    from whitebox.catalog import dataset_names
    from whitebox.config import resolve
    from whitebox.data import GENERATED
    from whitebox.terminal import show_rows

    rows = []
    for name in dataset_names():
        config = resolve("segmenter-linear-tiny", name, (), data_root)
        folder = Path(config.data.root) / config.data.path
        there = "built in" if config.data.kind in GENERATED else f"{folder}{'' if folder.is_dir() else ' (not there)'}"
        length = str(config.train.epochs) if config.train.steps is None else f"{config.train.steps} steps"
        rows.append((name, _class_count(config), length, config.train.batch_size, config.data.crop, there))
    show_rows(("dataset", "classes", "epochs", "batch", "crop", "folder"), rows)


@app.command()
def encoders() -> None:
    """List the encoders that `--encoder` takes."""
    from whitebox.catalog import about, encoder_names
    from whitebox.terminal import show_rows

    rows = []
    for name in encoder_names():
        known = about(name)
        sizes = f"{known.parameters:.1f} M", f"{known.patch} px", f"{known.image_size} px"
        rows.append((name, *sizes, known.pretraining, known.licence, known.gated))
    columns = ("encoder", "parameters", "patch", "made for", "pretraining", "licence", "before downloading")
    show_rows(columns, rows)


@app.command()
def recipes() -> None:
    """List the recipes that `--recipe` takes, on a dataset that they do not name."""
    from whitebox.catalog import datasets_of, recipe_names
    from whitebox.config import resolve
    from whitebox.terminal import show_rows

    rows = []
    for name in recipe_names():
        config = resolve("segmenter-linear-tiny", recipe=name)
        length = f"{config.train.epochs} epochs" if config.train.steps is None else f"{config.train.steps} steps"
        numbers = f"{config.optim.lr:g}", length, config.train.batch_size, f"{config.data.crop} px"
        rows.append((name, config.optim.name, *numbers, ", ".join(datasets_of(name))))
    show_rows(("recipe", "optimiser", "rate", "length", "batch", "crop", "has its own settings for"), rows)


def _class_count(config: RunConfig) -> str:
    from whitebox.data import dataset_info

    try:
        return str(len(dataset_info(config.data)[0]))
    except DataError:  # the class list is in a folder that is not there
        return "yours" if config.data.kind == "folder" else "?"
