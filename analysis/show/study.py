"""The page of a study: every record below a folder, as tables and curves, each number with the record it is of."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from analysis.measurement import KINDS, Measurement, Quantity, loaded
from analysis.record import Record, RecordError, laid_out, read_record
from analysis.show.render import groups, plain_name
from analysis.show.tables import Cell, Estimate, Table

_MOST = 12  # curves of one kind and data


def records_below(folder: Path) -> dict[Path, Record]:
    """The records of a folder and of all below it, by their files.

    Raises:
        RecordError: there are none, or one cannot be read.
    """
    paths = sorted({*folder.glob("**/records/*.json"), *(folder.glob("*.json") if folder.name == "records" else ())})
    if not paths:
        raise RecordError(f"There are no records below {folder}: measure something there, or name a photo to look at.")
    return {path: read_record(path) for path in paths}


def study_content(found: Mapping[Path, Record], page: Path) -> dict[str, Any]:
    """What the page of these records holds; ``page``: where it will lie, from which it links them.

    Records that cannot be shown together (too many for a figure, or damaged) are said to be left out, and why.
    """
    records = list(found.values())
    index_of = {id(record): index for index, record in enumerate(records)}
    order = list(KINDS)
    together = [(place, group) for place, inside in _places(found).items() for group in groups(inside)]
    kinds: dict[str, dict[str, Any]] = {}
    for where, group in sorted(together, key=lambda each: order.index(each[1][0].kind)):
        first = group[0].kind
        kind = kinds.setdefault(first, {"id": f"kind-{first}", "title": first, "tables": [], "curves": [], "notes": []})
        shown = import_module(KINDS[first].shown)
        try:
            with laid_out(f"The records of {plain_name(group)}"):
                tables: Mapping[str, Table] = shown.tables(group)
                kind["tables"] += [_table(each, group, suffix, where, index_of) for suffix, each in tables.items()]
                kind["curves"] += _curves(group, where)
        except RecordError as error:  # of one figure's worth of records; the page has others
            kind["notes"].append(f"{_titled(where, plain_name(group))} is not shown: {error}")
    words = [
        f"{len(records)} records of {len({record.model for record in records})} models. Press a number for its record: "
        "command, commit, seeds. Press a heading to sort."
    ]
    if others := sorted({record.kind for record in records} - set(KINDS)):
        words.append(
            f"Records of {', '.join(others)} are listed at the end alone: an experiment has tables of its own."
        )
    return {
        "kind": "study",
        "models": sorted({record.model for record in records}),
        "kinds": list(kinds.values()),
        "records": [_record(path, record, page) for path, record in found.items()],
        "words": words,
    }


def _places(found: Mapping[Path, Record]) -> dict[str, list[Record]]:
    """The records that can be shown, by the folder of their study: of a folder of one model, the one above it."""
    models: dict[Path, set[str]] = {}
    for path, record in found.items():
        models.setdefault(path.parent, set()).add(record.model)
    above = {folder: folder.parent.parent if len(own) == 1 else folder.parent for folder, own in models.items()}
    common = Path(os.path.commonpath([*map(os.path.abspath, above.values())]))
    places: dict[str, list[Record]] = {}
    for path, record in found.items():
        if record.kind in KINDS:
            place = os.path.relpath(os.path.abspath(above[path.parent]), common)
            places.setdefault("" if place == "." else place, []).append(record)
    return places


def _titled(where: str, name: str) -> str:
    return f"{where}: {name}" if where else name


def _table(
    table: Table, group: Sequence[Record], suffix: str, where: str, index_of: Mapping[int, int]
) -> dict[str, Any]:
    models: dict[str, list[int]] = {}
    for record in group:
        models.setdefault(record.model, []).append(index_of[id(record)])
    everything = [index for indices in models.values() for index in indices]
    name = f"{plain_name(group)}{suffix}"
    rows = []
    for cells, texts in zip(table.rows, table.shown(), strict=True):
        model = next((cell for cell in cells if isinstance(cell, str) and cell in models), None)
        own = models[model] if model is not None else everything if len(group) == 1 else []
        rows.append(
            {
                "cells": [{"text": text, "sort": _sort(cell)} for cell, text in zip(cells, texts, strict=True)],
                "records": own,
                "model": model if model is not None or len(models) > 1 else next(iter(models)),
            }
        )
    numeric = table.numeric()
    return {
        "title": _titled(where, name),
        "kind": group[0].kind,
        "caption": table.caption,
        "columns": [{"name": each.name, "numeric": flag} for each, flag in zip(table.columns, numeric, strict=True)],
        "rows": rows,
        "summary": table.summary_rows,
        "csv": table.to_csv(),
        "file": f"{name}.csv",
    }


def _sort(cell: Cell) -> float | str | None:
    value = cell.value if isinstance(cell, Estimate) else cell
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _curves(group: Sequence[Record], where: str) -> list[dict[str, Any]]:
    first = group[0]
    if first.kind in ("parameter-noise", "input-noise"):
        shown: dict[tuple[str, bool], list[Record]] = {}
        for record in group:
            shown.setdefault((record.settings["target"], record.settings["relative"]), []).append(record)
        return [
            {
                "title": _titled(
                    where,
                    f"mIoU under noise on {target}{', relative' * relative}, {first.data.name} {first.data.split}",
                ),
                "x": "sigma",
                "y": "mIoU (%)",
                "factor": 100,
                "log": True,
                "curves": [
                    {
                        "name": record.model,
                        "x": [point["sigma"] for point in record.measured["curve"]],
                        "y": [point["miou"] for point in record.measured["curve"]],
                    }
                    for record in together
                ],
            }
            for (target, relative), together in shown.items()
        ]
    measured = KINDS[first.kind].measured
    if not measured or loaded(measured).quantities is Measurement.quantities:
        return []
    measurement: Measurement = loaded(measured)()
    quantities = [
        (record, [each for each in measurement.quantities(record.measured) if each.position is not None])
        for record in group
    ]
    names = list(dict.fromkeys(each.name for _, own in quantities for each in own))
    return [made for name in names[:_MOST] if (made := _along_layers(name, quantities, first, where)) is not None]


def _along_layers(
    name: str, quantities: Sequence[tuple[Record, Sequence[Quantity]]], first: Record, where: str
) -> dict[str, Any] | None:
    """One quantity against places, all records together; None: no record has it at two places."""
    position = {each.place: each.position for _, own in quantities for each in own if each.name == name}
    places = sorted(position, key=lambda place: (position[place] or 0, place))
    curves = []
    for record, own in quantities:
        here = {each.place: each for each in own if each.name == name}
        at = [index for index, place in enumerate(places) if place in here]
        curves.append({"name": record.model, "x": at, "y": [_scaled(here[places[index]]) for index in at]})
    if len(places) < 2:
        return None
    short = [place.removeprefix("decoder.").removeprefix("encoder.").replace("layers.", "") for place in places]
    return {
        "title": _titled(where, f"{name}, {first.data.name} {first.data.split}".strip()),
        "x": "layer",
        "y": name,
        "factor": 1,
        "names": short,
        "curves": curves,
    }


def _scaled(quantity: Quantity) -> dict[str, Any]:
    return {
        end: None if quantity.stored.get(end) is None else quantity.factor * quantity.stored[end]
        for end in ("value", "low", "high")
    }


def _record(path: Path, record: Record, page: Path) -> dict[str, Any]:
    facts = {
        "Command": record.command,
        "Commit": record.versions.get("git_commit"),
        "Seeds": ", ".join(f"{name} {seed}" for name, seed in record.seeds.items()),
        "Weights": None if record.weights is None else f"{record.weights.path}, sha256 {record.weights.sha256[:16]}",
        "Data": f"{record.data.name} {record.data.split}, {record.data.images} images, {record.data.fingerprint[:16]}",
        "n": str(record.n),
        "Measured": record.created,
        "Reported": json.dumps(record.reported, ensure_ascii=False) if record.reported else None,
    }
    more = {"settings": record.settings, "versions": record.versions, "hardware": record.hardware}
    return {
        "file": path.name,
        "href": Path(os.path.relpath(path, page.parent)).as_posix(),
        "model": record.model,
        "data": f"{record.data.name} {record.data.split}".strip(),
        "n": record.n,
        "created": record.created,
        "facts": [[what, value] for what, value in facts.items() if value],
        "more": json.dumps(more, indent=1, ensure_ascii=False),
    }
