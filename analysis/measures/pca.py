"""Principal components of patch tokens before and after the decoder's layers, and what their directions segment.

DEPICT (Wen and Li, arXiv 2411.03033, figures 2 to 4) segments a photo by PCA of Z_0, the encoder's patch tokens, and of
Z_L, those after the self-attention layers: the layers are to build a principal subspace in which the directions are the
classes. The paper shows pictures; how they were made is not published. Here:

    tokens        Z_0 is ``decoder.input``, Z_L the ``tokens`` of the last decoder layer, before its LayerNorm; patches
                  only, of one photo, their mean subtracted
    components    right singular vectors of the (N, D) tokens, float64; the entry of largest magnitude is positive
    colours       scores of components 1, 2, 3 as red, green, blue, each from its 1st to its 99th percentile
    segmentation  a patch goes to the direction of the largest |cosine| with its token, and there to the end it points
                  to: opposite tokens are as different as cosines can tell. As many directions as classes, unless asked
                  otherwise, so at most twice as many segments; signs of directions play no part
    agreement     normalised mutual information 2 I(A; B) / (H(A) + H(B)) over patches (Vinh et al. 2010, JMLR 11, table
                  2, NMI_sum), blind to which number a segment has: 1 the same segments, about 0 unrelated ones. Many
                  small segments share some information with anything

Shapes: N patches, D model width, P components, h w patch grid, H W pixels.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from analysis.maths.intervals import RESAMPLES, estimates
from analysis.measures.images import Photo, Progress, open_photo, patch_labels, photo_settings
from analysis.record import Record, describe_weights, new_record
from analysis.show.figures import PAGE, figure_style, new_figure, save_figure
from analysis.show.photos import (
    Pixels,
    at_pixels,
    caption_below,
    class_legend,
    classes_over,
    describe_photo,
    figure_path,
    for_figure,
    pack,
    photo_data,
    photo_name,
    photos_of,
    predicted_patches,
    read_truth,
    recorded_photo,
    show,
    unpack,
)
from analysis.show.tables import Column, Estimate, Table
from whitebox.data.images import IGNORE
from whitebox.errors import ConfigError, ModelError
from whitebox.models import record, tap_names
from whitebox.palette import distinct_palette
from whitebox.runs import Run

_Row = tuple[str, str, str, Mapping[str, Any]]  # model, photo, segmentation, numbers

SHOWN = 3  # components as red, green, blue
PERCENTILES = (0.01, 0.99)  # of a component's scores: 0 and full colour
SEED = 0  # of the bootstrap over photos

_CONVENTIONS = (
    "Z_0: patch tokens that enter the decoder, Z_L: after its last layer; mean subtracted. Components 1, 2, 3 as red, "
    "green, blue, each from its 1st to its 99th percentile. Directions: each patch goes to the end of a principal "
    "direction of largest cosine; colours go by size of segment, not by class. NMI: normalised mutual information over "
    "patches with the ground truth, or with the prediction where there is none, both of patches."
)


class Components(NamedTuple):
    """Principal components of N tokens.

    Attributes:
        directions_PD: unit vectors, by falling variance.
        scores_NP: coordinates of the centred tokens.
        shares_P: of the variance; NaN where all tokens are the same.
    """

    directions_PD: Tensor
    scores_NP: Tensor
    shares_P: Tensor


def principal_components(z_ND: Tensor, count: int) -> Components:
    """The first ``count`` components, fewer where there are fewer tokens or dimensions; float64.

    Raises:
        ModelError: tokens are not finite.
    """
    if not torch.isfinite(z_ND).all():
        raise ModelError("Patch tokens are not finite: the model's parameters hold NaN or infinity.")
    centred_ND = z_ND.double() - z_ND.double().mean(0)
    _, singular_P, directions_PD = torch.linalg.svd(centred_ND, full_matrices=False)
    largest_P1 = directions_PD.abs().argmax(1, keepdim=True)
    directions_PD = (directions_PD * directions_PD.gather(1, largest_P1).sign())[:count]
    variance_P = singular_P.square()
    return Components(directions_PD, centred_ND @ directions_PD.T, (variance_P / variance_P.sum())[:count])


def nearest_direction(scores_NP: Tensor) -> Tensor:
    """The end of a component with the largest cosine with each token, (N,): 2 p or, where negative, 2 p + 1."""
    nearest_N = scores_NP.abs().argmax(1)
    return 2 * nearest_N + (scores_NP.gather(1, nearest_N[:, None])[:, 0] < 0)


def as_colours(scores_N3: Tensor) -> Tensor:
    """Scores as red, green and blue in [0, 1], (N, 3); a missing component, or one without spread, is grey."""
    colours_N3 = torch.full((len(scores_N3), SHOWN), 0.5, dtype=torch.float64)
    for index, score_N in enumerate(scores_N3.T[:SHOWN]):
        low, high = torch.quantile(score_N, torch.tensor(PERCENTILES, dtype=score_N.dtype)).tolist()
        if high > low:
            colours_N3[:, index] = ((score_N - low) / (high - low)).clamp(0, 1)
    return colours_N3


def mutual_information(segments_N: Tensor, labels_N: Tensor) -> float:
    """Normalised mutual information of two labellings of the same patches, in [0, 1]; label 255 does not count.

    NaN where both are one segment, or nothing counts.
    """
    counts_N = labels_N != IGNORE
    a_N, b_N = segments_N[counts_N].long(), labels_N[counts_N].long()
    if not a_N.numel():
        return math.nan
    joint_AB = torch.zeros(int(a_N.max()) + 1, int(b_N.max()) + 1, dtype=torch.float64)
    joint_AB.index_put_((a_N, b_N), torch.tensor(1 / a_N.numel(), dtype=torch.float64), accumulate=True)
    entropy_a, entropy_b, joint = (
        float(torch.special.entr(p).sum()) for p in (joint_AB.sum(1), joint_AB.sum(0), joint_AB)
    )
    total = entropy_a + entropy_b
    return max(0.0, 2 * (total - joint) / total) if total > 0 else math.nan


def measure(
    run: Run,
    paths: Sequence[Path],
    truths: Sequence[Path] = (),
    directions: int | None = None,
    advance: Progress | None = None,
) -> Record:
    """The record of the components of a run's tokens over photos; kind ``pca``.

    Args:
        truths: label images in the order of the photos, or one folder of PNGs with the photos' names; may be empty.
        directions: to segment by; None: the number of classes.

    Raises:
        ConfigError: another number of labels than of photos, or more directions than tokens have dimensions.
        DataError: a photo or label cannot be read, or they do not fit.
        ModelError: tokens are not finite.
    """
    width = run.model.decoder.width
    if directions is not None and not 1 <= directions <= width:
        raise ConfigError(f"--directions {directions} is impossible: the tokens of {run.name} have 1 to {width}.")
    count = directions or min(run.model.num_classes, width)
    photos = []
    for done, (path, label) in enumerate(zip(paths, _label_files(paths, truths), strict=True), start=1):
        photos.append(_measure_photo(run, open_photo(path, run), label, count))
        if advance is not None:
            advance(done, len(paths))
    found = [state["name"] for state in photos[0]["states"]]
    where = {"Z_0": "enter the decoder", "Z_L": "leave decoder layers"}
    return new_record(
        "pca",
        model=run.name,
        data=photo_data(photos),
        measured={
            "photos": photos,
            "means": _means(photos) if len(photos) > 1 else {},
            "classes": list(run.model.classes),
            "palette": [list(colour) for colour in run.model.palette],
            "notes": [
                f"no patch tokens {what}: {name} does not apply." for name, what in where.items() if name not in found
            ],
        },
        n=len(photos),
        weights=describe_weights(run.weights),
        seeds={"bootstrap": SEED},
        settings={"directions": count, **photo_settings(run), "resamples": RESAMPLES},
    )


def _label_files(paths: Sequence[Path], truths: Sequence[Path]) -> list[Path | None]:
    if not truths:
        return [None] * len(paths)
    if len(truths) == 1 and truths[0].is_dir():
        return [truths[0] / f"{path.stem}.png" for path in paths]
    if len(truths) != len(paths):
        raise ConfigError(
            f"There are {len(paths)} photos and {len(truths)} labels: repeat --truth once for each photo in their "
            "order, or give one folder of PNGs with the photos' names."
        )
    return list(truths)


def _measure_photo(run: Run, photo: Photo, label: Path | None, count: int) -> dict[str, Any]:
    """What a record holds of one photo."""
    taps = tap_names(run.model)
    names = {"Z_0": [name for name in taps if name == "decoder.input"]}
    names["Z_L"] = [name for name in taps if fnmatchcase(name, "decoder.layers.*.tokens")][-1:]
    patches = math.prod(photo.grid)
    with record(run.model, *(name for found in names.values() for name in found)) as activations:
        labels_hw = predicted_patches(run, photo)
    truth_hw = None
    if label is not None:
        size = (photo.pixels_13hw.shape[-1], photo.pixels_13hw.shape[-2])
        resized_hw = cv2.resize(read_truth(label, photo, run), size, interpolation=cv2.INTER_NEAREST)
        truth_hw = patch_labels(np.asarray(resized_hw, np.uint8), photo.patch)

    def agreement(segments_N: Tensor, other_hw: Tensor | None) -> float:
        return math.nan if other_hw is None else mutual_information(segments_N, other_hw.flatten())

    states = []
    for state, found in names.items():
        for name in found:
            tokens_TD = activations[name][0].cpu()
            if len(tokens_TD) not in (patches, patches + run.model.num_classes):
                continue  # not tokens of patches
            components = principal_components(tokens_TD[:patches], max(count, SHOWN))
            segments_N = nearest_direction(components.scores_NP[:, :count])
            shares = components.shares_P.tolist() + [math.nan] * SHOWN
            states.append(
                {
                    "name": state,
                    "activation": name,
                    "numbers": {
                        **{f"component_{index + 1}": shares[index] for index in range(SHOWN)},
                        "all": float(components.shares_P[:count].sum()),
                        "segments": len(segments_N.unique()),
                        "nmi_prediction": agreement(segments_N, labels_hw),
                        "nmi_truth": agreement(segments_N, truth_hw),
                    },
                    "colours": [pack(each_N.view(photo.grid)) for each_N in as_colours(components.scores_NP).T],
                    "segments": pack(segments_N.view(photo.grid)),
                }
            )
    return {
        **describe_photo(photo, label),
        "prediction": pack(labels_hw),
        "truth": None if truth_hw is None else pack(truth_hw),
        "states": states,
        "numbers": {"segments": len(labels_hw.unique()), "nmi_truth": agreement(labels_hw.flatten(), truth_hw)},
    }


def _means(photos: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each number of each state, and of the prediction, with its interval over photos."""
    groups = {
        state["name"]: [
            each["numbers"] for photo in photos for each in photo["states"] if each["name"] == state["name"]
        ]
        for state in photos[0]["states"]
    }
    groups["prediction"] = [photo["numbers"] for photo in photos]
    return {
        name: {key: estimates([numbers[key] for numbers in group], seed=SEED) for key in group[0]}
        for name, group in groups.items()
    }


def render(records: Sequence[Record], stem: Path) -> dict[str, Table]:
    """One figure a photo, with all runs; a table of the photos, and one of their means where there are several.

    Raises:
        RecordError: a photo is missing or has changed.
    """
    photos = photos_of(records)
    for number, holders in enumerate(photos):
        _draw(holders, figure_path(stem, photos, number))
    tables = {"": _table(records, _photo_rows(records), "One photo a row.")}
    if means := _mean_rows(records):
        tables["-means"] = _table(
            records,
            means,
            f"Means over photos; brackets: 95 % interval over photos, {RESAMPLES} bootstrap resamples, seed {SEED}.",
        )
    return tables


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
    count = "/".join(dict.fromkeys(str(held.settings["directions"]) for held in records))
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


def _cell(stored: Any, factor: float) -> float | Estimate | None:
    """A number of a record, or an estimate."""
    if isinstance(stored, Mapping):
        value, low, high = (math.nan if stored[key] is None else stored[key] for key in ("value", "low", "high"))
        return None if math.isnan(value) else Estimate(factor * value, factor * low, factor * high)
    return None if stored is None else factor * stored


def _draw(holders: Sequence[tuple[Record, Mapping[str, Any]]], path: Path) -> None:
    """Photo and ground truth; then a line a run: colours and segments of Z_0 and Z_L, and the prediction."""
    image_HW3 = for_figure(recorded_photo(holders[0][1]))
    height, width = image_HW3.shape[:2]
    row = min((PAGE - 0.4) / 5 * height / width, 2.6) + 0.36
    with figure_style():
        figure = new_figure(0.9 + (1 + len(holders)) * row, PAGE)
        grid = figure.subplots(1 + len(holders), 5, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        legend = [(held, unpack(photo["prediction"])) for held, photo in holders]
        show(grid[0][0], image_HW3, "photo")
        first, photo = holders[0]
        if photo["truth"] is not None:
            truth_hw = unpack(photo["truth"])
            show(grid[0][4], classes_over(image_HW3, truth_hw, photo, first), "ground truth of patches")
            legend.append((first, truth_hw))
        for line, (held, stored) in zip(grid[1:], holders, strict=True):
            for state in stored["states"]:
                left = 0 if state["name"] == "Z_0" else 2
                numbers = state["numbers"]
                share = sum(numbers[f"component_{index + 1}"] or 0.0 for index in range(SHOWN))
                colours_3hw = torch.stack([unpack(lines) for lines in state["colours"]])
                colours_HW3 = at_pixels(colours_3hw, stored, (height, width), "nearest").transpose(1, 2, 0)
                show(line[left], colours_HW3, f"{state['name']}, components 1-3\n{100 * share:.0f} % of variance")
                title = f"{state['name']}, {held.settings['directions']} directions\n{numbers['segments']} segments"
                segments_hw = unpack(state["segments"])
                show(line[left + 1], _segments_over(image_HW3, segments_hw, stored), f"{title}, {_agreement(numbers)}")
            painted = classes_over(image_HW3, unpack(stored["prediction"]), stored, held)
            show(line[4], painted, f"prediction\n{_agreement(stored['numbers'])}".strip())
            line[0].text(
                -0.06,
                0.5,
                "\n".join(textwrap.wrap(held.model, 20)),
                rotation=90,
                ha="right",
                va="center",
                fontsize=6.5,
                transform=line[0].transAxes,
            )
        class_legend(figure, legend)
        caption_below(
            figure,
            f"{photo_name(photo)}. {_CONVENTIONS}",
        )
        save_figure(figure, path)


def _segments_over(image_HW3: Pixels, segments_hw: Tensor, stored: Mapping[str, Any]) -> Pixels:
    """Segments over the photo; the largest always has the same colour, so have the others by size."""
    _, number_hw, sizes = segments_hw.unique(return_inverse=True, return_counts=True)
    rank_hw = sizes.argsort(descending=True, stable=True).argsort()[number_hw]
    rank_HW = at_pixels(rank_hw[None], stored, image_HW3.shape[:2], "nearest")[0].astype(np.int64)
    colours_HW3 = np.array(distinct_palette(len(sizes)), np.float64)[rank_HW]
    return np.rint(0.6 * colours_HW3 + 0.4 * image_HW3).astype(np.uint8)


def _agreement(numbers: Mapping[str, Any]) -> str:
    value = numbers.get("nmi_truth")
    value = numbers.get("nmi_prediction") if value is None else value
    return "" if value is None else f"NMI {value:.2f}"
