"""Commands on datasets: data prepare, data check, data show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from whitebox.cli.app import App, DataRoot, Overrides, app, say

data_app = App(help="Prepare, check and show datasets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="A name of `whitebox datasets`.")]


@data_app.command(name="prepare", tables=False)
def prepare_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="ade20k, ade20k-full, cityscapes, pascal-context, pascal-voc, coco-stuff164k, coco-stuff10k, camvid.",
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
    from whitebox.cli.progress import TransferProgress
    from whitebox.data.prepare import prepare

    root = data_root or Path(os.environ.get("WHITEBOX_DATA") or "data").expanduser()
    try:
        with TransferProgress() as progress:
            prepared = prepare(
                name, root, source or (), progress, allow_partial=allow_partial, keep_archives=keep_archives
            )
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    dataset = prepared.published.dataset
    where = "" if data_root is None else f" --data-root {data_root}"
    say(f"Next: whitebox data check {dataset}{where}, whitebox data show {dataset}{where}")


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
    from whitebox import terminal
    from whitebox.cli.progress import image_progress
    from whitebox.config import resolve
    from whitebox.data.check import check_dataset, described, print_report
    from whitebox.terminal import table_console

    config = resolve("segmenter-linear-tiny", _config_name(name), overrides or (), data_root).data
    with image_progress(f"checking {config.name}", None) as advance:
        report = check_dataset(config, split or (), allow_partial=allow_partial, on_image=advance)
    if terminal.manner.json:
        terminal.manner.found.append(described(report))
    else:
        print_report(report, table_console(), None if all_problems else 50)
    if report.problems:
        raise typer.Exit(1)


@data_app.command(name="show", tables=False)
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
    from whitebox.cli.progress import image_progress
    from whitebox.config import resolve
    from whitebox.data.show import show_dataset

    config = resolve("segmenter-linear-tiny", _config_name(name), overrides or (), data_root).data
    split = split or config.train_split or config.val_split
    path = output or Path(f"{config.name}-{Path(split).name or 'all'}.png")
    with image_progress(f"drawing {config.name}", None) as advance:
        show_dataset(config, split, count, path, (127.5, 127.5, 127.5), seed, advance)
    say(f"Picture: {path}")


def _config_name(name: str) -> str:
    """The configuration of a dataset that `data prepare` calls otherwise."""
    from whitebox.data.published import PUBLISHED

    return PUBLISHED[name].dataset if name in PUBLISHED else name
