"""Tables and figures of `analysis.measures.attention`, from records and the photos they name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from analysis.maths.packing import unpack
from analysis.record import Record, notes
from analysis.show.figures import PAGE, dots_of_rows, figure_style, new_figure, save_figure
from analysis.show.photos import (
    Pixels,
    at_pixels,
    caption_below,
    class_legend,
    classes_over,
    conventions,
    figure_path,
    for_figure,
    of_picture,
    photo_dpi,
    photo_name,
    photos_of,
    recorded_photo,
    show,
)
from analysis.show.spread import behind_words, pictured, seeds_of
from analysis.show.tables import Cell, Column, Table, estimate, number
from whitebox.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OPACITY = 0.6  # of a map over its photo
COLOURS = "inferno"
_FAINTEST = 0.01  # of the largest value of all maps: no map has a brighter scale
_COLUMNS = 6  # maps side by side, at most
_MARKS = f"Maps lie over the photo in grey at opacity {OPACITY}; the bar is over middle grey."
_OUTLINES = "White outline: patches predicted as the class (before upsampling), or the patch asked about."


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """One table; none where there are no maps."""
    maps = [each for held in records for stored in held.measured["photos"] for each in stored["maps"]]
    return {"": _table(records)} if maps else {}


def figures(records: Sequence[Record], stem: Path) -> None:
    """One figure a photo, with the maps of all runs, none where there are no maps; of several trainings their numbers.

    Raises:
        RecordError: a photo is missing or has changed.
    """
    photos = [holders for holders in photos_of(records) if any(stored["maps"] for _, stored in holders)]
    for index, holders in enumerate(photos):
        _draw(holders, figure_path(stem, photos, index))
    if any(len(seeds_of(held)) > 1 for held in records):
        _draw_numbers(records, stem.with_name(f"{stem.name}-numbers"))
    for held in records:
        if held.settings["overlays"]:
            _overlays(held, stem.with_name(held.file_name.removesuffix(".json") + "-overlays"))


def _draw_numbers(records: Sequence[Record], stem: Path) -> None:
    """A row a map, with single trainings behind their mean."""
    panels = {"entropy_share": "entropy (% of ln N)", "on_patches": "on patches (%)", "in_region": "in region (%)"}
    maps = [(held, stored, each) for held in records for stored in held.measured["photos"] for each in stored["maps"]]
    shown = {
        label: [estimate(each["numbers"].get(key), 100) for *_, each in maps]
        for key, label in panels.items()
        if any(each["numbers"].get(key) is not None for *_, each in maps)
    }
    if shown:
        names = [
            f"{held.model}  {photo_name(stored)}  {each['query']}  {_place_of(each, held)}"
            for held, stored, each in maps
        ]
        dots_of_rows(
            names, shown, stem, f"Of single maps; definitions are in the table.{behind_words(records, 'ticks')}"
        )


def _table(records: Sequence[Record]) -> Table:
    weighted = "of the row over patches scaled to sum 1"
    known: tuple[tuple[str, Column, float, str], ...] = (
        ("maximum", Column("Maximum (%)", 2), 100, ""),
        ("mean", Column("Mean (%)", 2), 100, "Mean: over patches."),
        ("on_patches", Column("On patches (%)"), 100, "On patches: share of the row."),
        ("entropy", Column("Entropy (nats)", 2), 1, f"Entropy: {weighted}."),
        ("entropy_share", Column("of ln N (%)"), 100, ""),
        ("in_region", Column("In region (%)"), 100, f"In region: share {weighted}."),
        ("region", Column("Region (%)"), 100, "Region: patches predicted as the class, or as the class of the patch."),
        ("distance", Column("Distance", 2), 1, f"Distance: in patches, {weighted}."),
    )
    maps = [(held, stored, each) for held in records for stored in held.measured["photos"] for each in stored["maps"]]
    having = [held for held in records if any(stored["maps"] for stored in held.measured["photos"])]
    columns = [entry for entry in known if any(each["numbers"].get(entry[0]) is not None for *_, each in maps)]
    rows: list[tuple[Cell, ...]] = [
        (
            held.model,
            photo_name(stored),
            each["query"],
            each["layer"].partition(".")[2],
            each["head"],
            *(_cell(each["numbers"].get(key), factor) for key, _, factor, _ in columns),
        )
        for held, stored, each in maps
    ]
    return Table(
        columns=(
            *(Column(name) for name in ("Model", "Photo", "Query", "Layer", "Head")),
            *(column for _, column, *_ in columns),
        ),
        rows=tuple(rows),
        caption=f"{_caption(having)} Each row is one map of one photo (n = 1, no interval{_several(having)}). "
        f"{' '.join(words for *_, words in columns if words)}",
    )


def _cell(stored: Any, factor: float) -> Cell:
    return estimate(stored, factor) if isinstance(stored, Mapping) else factor * number(stored)


def _several(records: Sequence[Record]) -> str:
    return (
        "; of several trainings mean ± sd of the maps that all have"
        if any(len(seeds_of(held)) > 1 for held in records)
        else ""
    )


def _caption(records: Sequence[Record]) -> str:
    words = " ".join(dict.fromkeys(conventions(held) for held in records))
    return " ".join([words[0].upper() + words[1:], *notes(records)])


def _shows(held: Record) -> str:
    return str(held.measured.get("shows", "attention"))  # early records hold attention only, and do not say so


def _draw(holders: Sequence[tuple[Record, Mapping[str, Any]]], path: Path) -> None:
    """One line of panels after another: a run's prediction, then its maps."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    image_HW3 = for_figure(recorded_photo(holders[0][1]))
    height, width = image_HW3.shape[:2]
    lines = [(held, stored, line) for held, stored in holders for line in _lines(stored["maps"])]
    columns = 1 + max(1, *(len(line) for *_, line in lines))
    panel = min((PAGE - 0.2) / columns, 2.2)
    first = holders[0][0]
    shared = first.settings["colours"] == "shared"
    brightest = max((_maximum(each) for *_, line in lines for each in line), default=0.0)
    largest = brightest if shared else None
    with figure_style():
        figure = new_figure(1.2 + len(lines) * (min(panel * height / width, 2.6) + 0.4), PAGE)
        grid = figure.subplots(len(lines), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        drawn = None
        for row, (held, stored, line) in zip(grid, lines, strict=True):
            if stored is not drawn:
                labels_hw = unpack(stored["prediction"])
                show(row[0], classes_over(image_HW3, labels_hw, stored, held), f"{pictured(held)}\nprediction", panel)
                drawn = stored
            if not line:
                row[1].text(0.5, 0.5, f"no such {_shows(held)}", ha="center", va="center", fontsize=7, color="0.4")
            for axes, each in zip(row[1:], line, strict=False):
                painted = _painted(image_HW3, each, stored, held, largest or _top(each, held, brightest))
                show(axes, painted, f"{each['query']}\n{_place_of(each, held)}\nmax {_maximum(each):.3g}", panel)
                _mark(axes, image_HW3, each, stored)
        mixed_256x3 = OPACITY * _colours() + (1 - OPACITY) * 0.5
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, largest or 1), ListedColormap(mixed_256x3.tolist())),
            ax=grid,
            location="bottom",
            shrink=0.4,
            aspect=40,
            pad=0.03,
        )
        own = first.settings["colours"] == "own"
        scale = f" / maximum of its map, or {_FAINTEST:.0%} of the largest" if own else ""
        bar.set_label(f"{_shows(first)}{scale}", fontsize=7)
        class_legend(figure, [(held, unpack(stored["prediction"])) for held, stored in holders])
        outlined = any(each["region"] is not None or each["patch"] is not None for *_, line in lines for each in line)
        words = (photo_name(holders[0][1]) + ".", _caption([held for held, _ in holders]), _MARKS)
        caption_below(figure, " ".join((*words, _OUTLINES) if outlined else words))
        save_figure(figure, path, dpi=photo_dpi(len(lines)))


def _lines(maps: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Maps that belong side by side: the heads of one layer, else the layers of one query, else all; wrapped."""
    if len({each["head"] for each in maps}) > 1:
        keys = [(each["query"], each["layer"]) for each in maps]
    elif len({each["layer"] for each in maps}) > 1:
        keys = [(each["query"], "") for each in maps]
    else:
        keys = [("", "")] * len(maps)
    together: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for key, each in zip(keys, maps, strict=True):
        together.setdefault(key, []).append(each)
    lines = []
    for line in together.values():
        width = math.ceil(len(line) / math.ceil(len(line) / _COLUMNS))  # 12 layers: 6 and 6
        lines += [line[at : at + width] for at in range(0, len(line), width)]
    return lines or [[]]


def _top(each: Mapping[str, Any], held: Record, brightest: float) -> float:
    """The value of the brightest colour, where maps do not share it: next to nothing does not look like much."""
    return 1.0 if held.settings["colours"] == "unit" else max(_maximum(each), _FAINTEST * brightest)


def _maximum(each: Mapping[str, Any]) -> float:
    """Of a map as it is drawn."""
    return float(of_picture(each["numbers"])["maximum"])


def _place_of(each: Mapping[str, Any], held: Record) -> str:
    layer = str(each["layer"]).partition(".")[2]
    if held.settings["rollout"]:
        return f"to {layer}"
    if _shows(held) == "mask":
        return "sum of stages" if layer == "sum" else layer
    if _shows(held) == "class map":
        return layer
    return f"{layer}, {'mean' if each['head'] == 'mean' else 'head ' + each['head']}"


def _painted(image_HW3: Pixels, each: Mapping[str, Any], stored: Mapping[str, Any], held: Record, top: float) -> Pixels:
    """A map over its photo in grey; black to bright from 0 to ``top``."""
    mode = held.settings["interpolation"]
    values_HW = at_pixels(unpack(each["values"])[None], stored, image_HW3.shape[:2], mode)[0]
    index_HW = np.clip(values_HW / (top or 1.0) * 255, 0, 255).round().astype(np.uint8)
    grey_HW1 = np.asarray(Image.fromarray(image_HW3).convert("L"))[..., None]
    return np.asarray(np.rint(OPACITY * 255 * _colours()[index_HW] + (1 - OPACITY) * grey_HW1), np.uint8)


def _mark(axes: Axes, image_HW3: Pixels, each: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Outline what the query is: the patches predicted as its class, or its patch."""
    labels_hw = unpack(stored["prediction"])
    marked_hw = np.zeros_like(labels_hw)
    if each["patch"] is not None:
        marked_hw[tuple(each["patch"])] = 1
    elif each["region"] is not None:
        marked_hw = (labels_hw == each["region"]).astype(np.float64)
    marked_HW = at_pixels(marked_hw[None], stored, image_HW3.shape[:2], "nearest")[0]
    if 0 < marked_HW.sum() < marked_HW.size:
        axes.contour(marked_HW, levels=[0.5], colors="white", linewidths=0.7)


def _colours() -> NDArray[np.float64]:
    """(256, 3) in [0, 1]."""
    import matplotlib as mpl

    return np.asarray(mpl.colormaps[COLOURS](np.arange(256))[:, :3], np.float64)


def _overlays(held: Record, folder: Path) -> None:
    """Each map of a record over its photo at the photo's own resolution, one JPEG each."""
    for stored in held.measured["photos"]:
        image_HW3 = recorded_photo(stored)
        brightest = max(map(_maximum, stored["maps"]), default=0.0)
        for each in stored["maps"]:
            picture = Image.fromarray(_painted(image_HW3, each, stored, held, _top(each, held, brightest)))
            words = (pictured(held), photo_name(stored), each["query"], each["layer"], each["head"])
            name = re.sub(r"[^\w.-]+", "_", "-".join(words)) + ".jpg"
            write_atomically(folder / name, partial(picture.save, format="jpeg", quality=92, subsampling=0))
