"""The Hugging Face Hub: push."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whitebox.cli.app import RunPath, app, say
from whitebox.errors import ConfigError

if TYPE_CHECKING:
    from analysis.record import Record
    from whitebox.config import RunConfig


@app.command(tables=False)
def push(
    run: RunPath,
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Of the Hub; made where it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Seen by you and your organisation alone.")] = False,
    to_folder: Annotated[
        Path | None, typer.Option("--to-folder", help="Write the files here instead; nothing leaves the machine.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Of a decoder on a frozen encoder: put the encoder's weights in, too.")
    ] = False,
    records: Annotated[
        list[Path] | None, typer.Option(help="A folder with further records of these weights. Repeatable.")
    ] = None,
    picture: Annotated[list[Path] | None, typer.Option(help="A picture for the page. Repeatable.")] = None,
    licence: Annotated[
        str | None, typer.Option("--license", help="Of the weights, as the Hub names it: mit, cc-by-nc-4.0.")
    ] = None,
) -> None:
    """Put a run on the Hugging Face Hub: weights, configuration, and a page made of what was measured of it.

    Then hf-hub:ORG/NAME is a run wherever one is asked for; hf-hub:ORG/NAME@REVISION is one of its branches, tags or
    commits.

    \b
    whitebox push results/depict-ca-tiny-shapes me/depict-ca-tiny-shapes --to-folder page/
    whitebox push results/depict-sa-tiny-camvid me/depict-sa-tiny-camvid --private
    whitebox eval hf-hub:me/depict-sa-tiny-camvid
    """
    from whitebox.interop import hub

    hub.require_repository(repository)
    if to_folder is None:
        hub.require_login()
    elif to_folder.exists() and (not to_folder.is_dir() or any(to_folder.iterdir())):
        raise ConfigError(f"{to_folder} is there and not empty: choose another folder with --to-folder.")
    if to_folder is not None:
        files = _written(run, repository, to_folder, whole, records or [], picture or [], licence)
        say(f"Written to {to_folder}: {', '.join(files)}. Next: whitebox eval {to_folder}")
        return
    with tempfile.TemporaryDirectory(prefix="whitebox-push-") as temporary:
        folder = Path(temporary)
        files = _written(run, repository, folder, whole, records or [], picture or [], licence)
        address = hub.push(folder, files, repository, private=private, message="Upload a run of whitebox")
    say(f"Pushed: {address}")
    say(f"Next: whitebox predict hf-hub:{repository} PHOTO -o out")


def _written(
    run: Path,
    repository: str,
    folder: Path,
    whole: bool,
    further: list[Path],
    pictures: list[Path],
    licence: str | None,
) -> list[str]:
    """Write all files of the repository to a folder; their names."""
    from analysis.record import describe_weights, laid_out
    from analysis.show.card import Pushed, card
    from whitebox.config import from_dict
    from whitebox.engine.header import WEIGHTS, read_header
    from whitebox.files import copy_file, make_folder, write_text
    from whitebox.interop import hub
    from whitebox.runs import members

    if not run.is_file() and members(run):
        raise ConfigError(f"{run} holds several trainings: push one of them, as {run}/seed-0.")
    weights = hub.weights_of(run)
    if weights.suffix != ".safetensors":
        raise ConfigError(f"{weights} is no run of ours: make it one with `whitebox convert {run} -o results/NAME`.")
    header = read_header(weights)
    config = from_dict(header["config"])
    for each in pictures:
        if not each.is_file():
            raise ConfigError(f"There is no picture {each}.")
    if header.get("encoder") and config.encoder.weights and not whole:
        raise ConfigError(
            f"{run} holds a decoder alone, and its encoder came from {Path(config.encoder.weights).name}, which others "
            "lack: put it in with --whole."
        )
    measured = describe_weights(weights).sha256
    found = _records(run, weights, further, measured)
    make_folder(folder)
    if whole and header.get("encoder"):
        _save_whole(weights, folder / WEIGHTS)
    else:
        copy_file(weights, folder / WEIGHTS)
    hub.write_config(folder, read_header(folder / WEIGHTS), folder / WEIGHTS)
    shown = _pictures(folder, found, pictures)
    pushed = Pushed(
        repository=repository,
        header=header,
        sha256=describe_weights(folder / WEIGHTS).sha256,
        bytes=(folder / WEIGHTS).stat().st_size,
        measured=measured,
        encoder=_about_encoder(config),
        data_licence=_data_licence(config.data.name),
        licence=licence,
        pictures=shown,
    )
    with laid_out(f"The records of {run}"):
        write_text(folder / "README.md", card(pushed, found))
    if not any(record.kind == "eval" for record in found):
        say(f"No evaluation of these weights is recorded, so the page has no scores: whitebox eval {run}", err=True)
    if named := hub.folders_of_this_machine(header["config"]):
        say(f"The header of {WEIGHTS} names folders of this machine: {', '.join(named)}", err=True)
    return [WEIGHTS, hub.CONFIG, "README.md", *shown]


def _records(run: Path, weights: Path, further: list[Path], sha256: str) -> list[Record]:
    """The records of these weights: in the run's folder, and in those named."""
    from analysis.record import RecordError, read_records

    for each in further:
        if not each.is_dir():
            raise RecordError(f"There is no folder of records {each}.")
    folders = [weights.parent / "records", *further]
    found = {record.identity: record for folder in folders for record in read_records(folder)}
    own = [record for record in found.values() if record.weights is not None and record.weights.sha256 == sha256]
    return sorted(own, key=lambda record: record.created)


def _save_whole(weights: Path, target: Path) -> None:
    from dataclasses import replace

    from whitebox.api import load_run
    from whitebox.engine.checkpoint import save_model

    model, config = load_run(weights)
    save_model(target, model, replace(config, train=replace(config.train, whole=True)))


def _pictures(folder: Path, records: list[Record], given: list[Path]) -> dict[str, str]:
    """Pictures in the folder by name, with what they show: those given, and the classes of the last evaluation."""
    from analysis.show.card import single_evaluation
    from analysis.show.evaluation import per_class_bars
    from whitebox.files import copy_file

    shown = {}
    for each in given:
        copy_file(each, folder / each.name)
        shown[each.name] = each.stem
    if (evaluation := single_evaluation(records)) is not None:
        per_class_bars([evaluation], folder / "classes.png")
        (folder / "classes.pdf").unlink()
        shown["classes.png"] = "IoU of each class with its interval"
    return shown


def _about_encoder(config: RunConfig) -> dict[str, str]:
    """Of pretrained weights: licence, what they were trained on, and the repository that holds them; else nothing."""
    from whitebox.catalog import known_of

    encoder: Any = config.encoder
    if not (encoder.pretrained or encoder.weights):
        return {}
    known, found = known_of(encoder.name), {}
    if known is not None:
        found = {"licence": known.licence, "about": known.pretraining}
    from whitebox.models.encoder import hub_repository

    repository = hub_repository(encoder.name) if encoder.pretrained else None
    return {**found, **({} if repository is None else {"repository": repository})}


def _data_licence(name: str) -> str:
    from whitebox.data import GENERATED
    from whitebox.data.published import PUBLISHED

    if name in GENERATED:
        return "generated, none"
    return next((each.licence for each in PUBLISHED.values() if each.dataset == name), "")
