"""Tables and figures of `analysis.measures.pca`, from records and the photos they name."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.maths.agreement import normalised_mutual_information
from analysis.maths.packing import unpack
from analysis.record import Record
from analysis.show.figures import PAGE, figure_style, new_figure, save_figure
from analysis.show.photos import (
    IGNORE,
    Pixels,
    at_pixels,
    caption_below,
    class_legend,
    classes_over,
    figure_path,
    for_figure,
    of_picture,
    photo_dpi,
    photo_name,
    photos_of,
    recorded_photo,
    show,
)
from analysis.show.spread import bootstrap_words, pictured, trainings
from analysis.show.tables import Column, Estimate, Table, estimate
from whitebox.palette import distinct_palette

SHOWN = 3  # components as red, green, blue
WIDTH = 1.6  # inches that a title may take: a panel's and the space beside it
SHUFFLES = 50  # of patches, for what agreement is by chance

_Row = tuple[str, str, str, Mapping[str, Any]]  # model, photo, segmentation, numbers


def _conventions(records: Sequence[Record]) -> str:
    count = "/".join(dict.fromkeys(str(_directions(held)) for held in records))
    return (
        "Z_0: patch tokens that enter the decoder, Z_L: after its last layer; mean subtracted. Components 1, 2, 3 as "
        "red, green, blue, each from its 1st to its 99th percentile. Segments: each patch goes to the end of one of "
        f"{count} principal directions of largest cosine; colours go by size of segment, not by class. NMI: normalised "
        "mutual information over patches with the ground truth, or with the prediction where there is none, both of "
        f"patches; by chance: its mean when the patches are shuffled ({SHUFFLES} times)."
    )


def tables(records: Sequence[Record]) -> dict[str, Table]:
    """Of the photos, and of their means where there are several."""
    found = {"": _table(records, _photo_rows(records), "One photo a row.")}
    if means := _mean_rows(records):
        found["-means"] = _table(
            records,
            means,
            f"Means over photos; brackets: 95 % interval over photos as independent (none of one or two); "
            f"{trainings(records[0])}; {bootstrap_words(records[0])}.",
        )
    return found


def figures(records: Sequence[Record], stem: Path) -> None:
    """One figure a photo, with all runs.

    Raises:
        RecordError: a photo is missing or has changed.
    """
    photos = photos_of(records)
    for number, holders in enumerate(photos):
        _draw(holders, figure_path(stem, photos, number))


def _photo_rows(records: Sequence[Record]) -> list[_Row]:
    rows = []
    for held in records:
        for photo in held.measured["photos"]:
            groups = {state["name"]: state["numbers"] for state in photo["states"]} | {"prediction": photo["numbers"]}
            rows += [(held.model, photo_name(photo), name, numbers) for name, numbers in groups.items()]
    return rows


def _mean_rows(records: Sequence[Record]) -> list[_Row]:
    narrow = ("component_2", "component_3")  # in the table of single photos; these have intervals
    return [
        (held.model, f"mean of {held.n}", name, {key: each for key, each in numbers.items() if key not in narrow})
        for held in records
        for name, numbers in held.measured["means"].items()
    ]


def _table(records: Sequence[Record], rows: Sequence[_Row], what: str) -> Table:
    count = "/".join(dict.fromkeys(str(_directions(held)) for held in records))
    known: tuple[tuple[str, Column, float], ...] = (
        ("component_1", Column("PC 1 (%)"), 100),
        ("component_2", Column("PC 2 (%)"), 100),
        ("component_3", Column("PC 3 (%)"), 100),
        ("all", Column(f"PC 1-{count} (%)"), 100),
        ("segments", Column("Segments"), 1),
        ("nmi_prediction", Column("NMI prediction", 2), 1),
        ("nmi_truth", Column("NMI truth", 2), 1),
    )
    shown = [entry for entry in known if any(_cell(numbers.get(entry[0]), 1) is not None for *_, numbers in rows)]
    return Table(
        columns=(*(Column(name) for name in ("Model", "Photo", "Segmentation")), *(column for _, column, _ in shown)),
        rows=tuple((*row[:3], *(_cell(row[3].get(key), factor) for key, _, factor in shown)) for row in rows),
        caption="Principal components of centred patch tokens: Z_0 before, Z_L after the decoder's layers; shares of "
        f"the variance; segments by the nearest end of {count} directions. NMI: normalised mutual information over "
        f"patches with prediction and ground truth. {what}",
    )


def _directions(held: Record) -> int:
    return int(held.measured.get("directions", held.settings["directions"]))  # early records have it as a setting only


def _cell(stored: Any, factor: float) -> float | Estimate | None:
    """A number of a record, or an estimate."""
    if isinstance(stored, Mapping):
        found = estimate(stored, factor)
        return None if math.isnan(found.value) else found
    return None if stored is None else factor * stored


def _draw(holders: Sequence[tuple[Record, Mapping[str, Any]]], path: Path) -> None:
    """Photo and ground truth; then a line a run: colours and segments of Z_0 and Z_L, and the prediction."""
    image_HW3 = for_figure(recorded_photo(holders[0][1]))
    height, width = image_HW3.shape[:2]
    row = min((PAGE - 0.4) / 5 * height / width, 2.6) + 0.36
    with figure_style():
        figure = new_figure(0.7 + (1 + len(holders)) * row, PAGE)
        grid = figure.subplots(1 + len(holders), 5, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        legend = [(held, unpack(photo["prediction"])) for held, photo in holders]
        show(grid[0][0], image_HW3, "photo")
        first, photo = holders[0]
        if photo["truth"] is not None:
            truth_hw = unpack(photo["truth"])
            show(grid[0][1], classes_over(image_HW3, truth_hw, photo, first), "ground truth of patches")
            legend.append((first, truth_hw))
        for line, (held, stored) in zip(grid[1:], holders, strict=True):
            for state in stored["states"]:
                left = 0 if state["name"] == "Z_0" else 2
                numbers = of_picture(state["numbers"])
                share = sum(numbers[f"component_{index + 1}"] or 0.0 for index in range(SHOWN))
                colours_3hw = np.stack([unpack(lines) for lines in state["colours"]])
                colours_HW3 = at_pixels(colours_3hw, stored, (height, width), "nearest").transpose(1, 2, 0)
                show(line[left], colours_HW3, f"{state['name']}, components 1-3\n{100 * share:.0f} % of variance")
                segments_hw = unpack(state["segments"])
                title = f"{state['name']}: {numbers['segments']} segments\n{_agreement(numbers, segments_hw, stored)}"
                show(line[left + 1], _segments_over(image_HW3, segments_hw, stored), title, WIDTH)
            predicted_hw = unpack(stored["prediction"])
            painted = classes_over(image_HW3, predicted_hw, stored, held)
            agreement = _agreement(of_picture(stored["numbers"]), predicted_hw, stored)
            show(line[4], painted, f"prediction\n{agreement}".strip(), WIDTH)
            line[0].text(
                -0.06,
                0.5,
                "\n".join(textwrap.wrap(pictured(held), 20)),
                rotation=90,
                ha="right",
                va="center",
                fontsize=6.5,
                transform=line[0].transAxes,
            )
        class_legend(figure, legend, columns=3, beside=grid[0][3])
        caption_below(
            figure,
            f"{photo_name(photo)}. {_conventions([held for held, _ in holders])}",
        )
        save_figure(figure, path, dpi=photo_dpi(len(holders)))


def _segments_over(image_HW3: Pixels, segments_hw: NDArray[Any], stored: Mapping[str, Any]) -> Pixels:
    """Segments over the photo; the largest always has the same colour, so have the others by size."""
    _, number, sizes = np.unique(segments_hw, return_inverse=True, return_counts=True)
    rank_hw = np.argsort(np.argsort(-sizes, kind="stable"))[number].reshape(segments_hw.shape)
    rank_HW = at_pixels(rank_hw[None], stored, image_HW3.shape[:2], "nearest")[0]
    colours_HW3 = np.array(distinct_palette(len(sizes)), np.float64)[rank_HW]
    return np.rint(0.6 * colours_HW3 + 0.4 * image_HW3).astype(np.uint8)


def _agreement(numbers: Mapping[str, Any], segments_hw: NDArray[Any], stored: Mapping[str, Any]) -> str:
    """NMI with the ground truth, or with the prediction where there is none, beside what segments as large give."""
    key = "nmi_truth" if numbers.get("nmi_truth") is not None else "nmi_prediction"
    value = numbers.get(key)
    if value is None:
        return ""
    other_hw = unpack(stored[key.removeprefix("nmi_")])
    return f"NMI {value:.2f}, by chance {_by_chance(segments_hw.ravel(), other_hw.ravel()):.2f}"


def _by_chance(segments_N: NDArray[Any], labels_N: NDArray[Any]) -> float:
    """Mean NMI of the segments with the labels, the patches shuffled."""
    known_N = labels_N != IGNORE
    _, first_N = np.unique(segments_N[known_N], return_inverse=True)
    _, second_N = np.unique(labels_N[known_N], return_inverse=True)
    if not len(first_N):
        return math.nan
    random, shape = np.random.default_rng(0), (first_N.max() + 1, second_N.max() + 1)
    counts_SAB = np.zeros((SHUFFLES, *shape))
    for counts_AB in counts_SAB:
        np.add.at(counts_AB, (random.permutation(first_N), second_N), 1)
    return float(normalised_mutual_information(counts_SAB).mean())
