"""The command that makes a page of a decoder, or of a study, to be looked at in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whitebox.cli.app import DataRoot, Device, app, runs_and_overrides, say
from whitebox.errors import ConfigError, OutputError, require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from analysis.consumed import Photos
    from analysis.record import Record
    from whitebox.runs import Run, SavedRun


@app.command(name="explore")
def explore_command(
    items: Annotated[
        list[str],
        typer.Argument(
            metavar="[RUN]... PHOTO... [KEY=VALUE]... | FOLDER",
            help="Runs (default: all below results/) and photos, to look into decoders; or a folder of records alone.",
        ),
    ],
    truth: Annotated[
        list[Path] | None, typer.Option(help="Label image of the photo; repeat for several, or a folder of PNGs.")
    ] = None,
    records: Annotated[
        list[Path] | None,
        typer.Option(help="Also show what was measured of these weights below another folder. Repeatable."),
    ] = None,
    budget: Annotated[
        float, typer.Option(help="MB of a photo in a run; what does not fit is left out, and the page says so.")
    ] = 3.0,
    data_root: DataRoot = None,
    device: Device = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file.")] = Path("page.html"),
) -> None:
    """Look into decoders in a browser: one HTML file, offline. Or into all records of a folder.

    \b
    whitebox explore results/depict-sa-tiny-camvid photo.jpg -o page.html
    whitebox explore results/depict-sa-tiny-camvid results/cbsa-tiny-camvid photo.jpg --truth label.png -o compare.html
    whitebox explore results -o study.html
    """
    from whitebox.cli.analysis import is_photo

    require(budget > 0, "--budget", budget, "it must be above 0")
    if output.is_dir():
        raise OutputError(f"Cannot write {output}: it is a folder; name a file, -o {output / 'page.html'}.")
    photos = [item for item in items if is_photo(item)]
    if photos:
        _explore(items, truth or (), records or (), budget, data_root, device, output)
    else:
        _study(items, output)
    size = output.stat().st_size
    say(f"{output}: {size / 1e6:.1f} MB. Open it in a browser; it loads nothing.")


def _study(items: Sequence[str], output: Path) -> None:
    from analysis.show.explorer import packed, write_page
    from analysis.show.study import records_below, study_content

    folders = [Path(item).expanduser() for item in items]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                f"{folder} is no folder of records, and no photo is named: give a photo (jpg, png, ...) to look into "
                "runs, or a folder of records."
            )
    found = {path: record for folder in folders for path, record in records_below(folder).items()}
    title = folders[0].resolve().name if len(folders) == 1 else ", ".join(folder.name for folder in folders)
    write_page(output, title, packed(study_content(found, output)))


def _explore(
    items: Sequence[str],
    truth: Sequence[Path],
    records: Sequence[Path],
    budget: float,
    data_root: Path | None,
    device: str | None,
    output: Path,
) -> None:
    from analysis.consumed import Chosen, Photos
    from whitebox.cli.analysis import found_runs, split_photos
    from whitebox.runs import require_same_classes

    photos, rest = split_photos(list(items))
    paths, overrides = runs_and_overrides(rest)
    require_same_classes(paths)
    found: list[SavedRun] = []
    chosen = Chosen(photos=tuple(photos))
    runs = list(found_runs(paths, None, data_root, overrides, device, found))
    page_of(runs, [Photos(run, chosen, truth) for run in runs], output, records, budget)


def page_of(
    runs: Sequence[SavedRun | Run],
    photos: Sequence[Photos],
    output: Path,
    folders: Sequence[Path] = (),
    budget: float = 3.0,
) -> None:
    """Look at photos in runs, one run after another, and write the page.

    Args:
        photos: of each run; all have the same files.
        folders: where else there are records of the runs.
        budget: MB of a photo in a run.

    Raises:
        WhiteboxError: see `analysis.measures.look`; a record cannot be read; the page cannot be written.
    """
    from analysis.show.explorer import colours, fitted, jpeg, packed, write_page

    made: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    left_out: list[str] = []
    for run, own in zip(runs, photos, strict=True):
        content, seen, shown = _looks(run, own, _records_of(run, folders), first=not pictures)
        pictures = pictures or [
            {"name": path.stem, "size": list(size), "picture": jpeg(image_HW3)}
            for path, (image_HW3, size) in zip(own.paths, shown, strict=True)
        ]
        notes: list[str] = []
        looks = []
        for look in seen:
            notes += look.pop("notes")
            fitting, gone = fitted(look, budget)
            looks.append(fitting)
            if gone:
                left_out.append(f"{run.name}, {look['photo']}: {', '.join(gone)}.")
        made.append({**packed(content), "looks": looks, "notes": list(dict.fromkeys(notes))})
    words = [f"Left out to stay below {budget:g} MB a photo and run (--budget): {each}" for each in left_out]
    content = {
        "kind": "runs",
        "photos": pictures,
        "colours": packed(colours()),
        "runs": made,
        "made": _made(),
        "words": words,
    }
    write_page(output, ", ".join(run.name for run in runs), content)


def _looks(
    saved: SavedRun | Run, photos: Photos, known: Sequence[Record], first: bool
) -> tuple[dict[str, Any], list[dict[str, Any]], list[Any]]:
    """What a run is and what was measured of it, a look at each photo, and the photos where they are wanted."""
    from analysis.measures.look import LEVELS, Noise, about, look, picture
    from analysis.record import laid_out
    from analysis.show.explorer import measured_of, noise_record
    from whitebox.cli.progress import image_progress

    with laid_out(f"The records of {saved.name}"):
        measured = measured_of(known)
        noise = Noise()
        if (curve := noise_record(known)) is not None:
            sigmas = tuple(point["sigma"] for point in curve.measured["curve"] if point["sigma"] > 0)
            settings = curve.settings
            noise = Noise(sigmas or LEVELS, settings["target"], settings["relative"], curve.seeds["noise"])
    table_256 = photos.table_256 if any(photos.labels) else None
    run, seen = saved.open(), []
    with image_progress(f"explore: {run.name}", len(photos.paths)) as advance:
        for done, (path, label) in enumerate(zip(photos.paths, photos.labels, strict=True), start=1):
            seen.append(look(run, path, label, table_256, noise))
            advance(done, len(photos.paths))
    return {**about(run), **measured}, seen, [picture(path, run) for path in photos.paths] if first else []


def _records_of(saved: SavedRun | Run, folders: Sequence[Path]) -> list[Record]:
    """What was measured of these weights: below the run's folder, and below others."""
    from analysis.record import describe_weights, read_record

    own = describe_weights(saved.weights).sha256
    places = [
        saved.folder / "records",
        *(place for folder in folders for place in (folder, *folder.glob("**/records"))),
    ]
    known = [read_record(path) for place in dict.fromkeys(places) for path in sorted(place.glob("*.json"))]
    return [record for record in known if record.weights is not None and record.weights.sha256 == own]


def _made() -> list[list[str]]:
    """How the page was made."""
    import shlex
    import sys
    from datetime import datetime, timezone

    from whitebox.versions import versions

    found = versions()
    command = shlex.join(["whitebox", *sys.argv[1:]])
    return [
        ["Made by", command],
        ["On", datetime.now(timezone.utc).isoformat(timespec="minutes")],
        ["With", f"whitebox {found.get('whitebox')}, commit {found.get('git_commit')}, torch {found.get('torch')}"],
    ]
