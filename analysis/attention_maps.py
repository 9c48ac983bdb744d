"""Attention maps over a photo: which row of which layer's softmax weights, of which head or averaged how.

A map is one row of a layer's attention: the weights with which one token (a class embedding, a patch, the class token)
takes from the patches. Its values are the layer's own; nothing is normalised again. What is measured of it:

    on patches    sum of the row over patches; the rest lies on class embeddings or class tokens
    entropy       -sum p ln p of the row over patches, p scaled to sum 1; in nats and as a share of ln N. Clark et al.
                  2019, "What Does BERT Look At?", section 3.3
    in region     sum of p over the patches predicted as the class in question, beside these patches' share of the
                  photo, which is what uniform attention would give
    distance      sum of p times the Euclidean distance between patch and query, in patches: the attention distance of
                  Dosovitskiy et al. 2021, appendix D.7

Rollout (Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", eq. 1): heads are averaged, the residual
stream counts as much as the attention, A' = (A + I) / 2, and layers are multiplied, A'_l ... A'_0. The same convention
holds for white-box layers, whatever their step size; MLPs, values and output maps play no part. A token that a layer
does not update keeps a row of I.

Shapes: H heads, M rows and C columns of a map (tokens), Q chosen rows, N patches, T tokens of all layers, K classes,
h w patch grid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.figures import PAGE, figure_style, new_figure, save_figure
from analysis.photos import (
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
    recorded_photo,
    show,
    unpack,
)
from analysis.records import Record, describe_weights, new_record
from analysis.samples import Photo, Progress, open_photo
from analysis.tables import Cell, Column, Table
from whitebox.engine.inference import device_of, evaluating
from whitebox.errors import ConfigError, ModelError
from whitebox.files import write_atomically
from whitebox.models import Segmentor, record, tap_names
from whitebox.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PREDICTED = 3  # classes shown where none are named
KINDS = {"class": "class embeddings", "patch": "patches", "cls": "a class token"}
OPACITY = 0.6  # of a map over its photo
COLOURS = "inferno"
_COLUMNS = 6  # maps side by side, at most
_MARKS = (
    f"Maps lie over the photo in grey at opacity {OPACITY}; the bar is over middle grey. "
    "White outline: patches predicted as the class (before upsampling), or the patch asked about."
)


@dataclass(frozen=True)
class Choice:
    """Which maps, and how they are drawn.

    Attributes:
        part: ``decoder`` or ``encoder``.
        layer: index from 0 among the layers that have such rows; ``"all"``; None: the last.
        head: index from 0, ``"mean"`` or ``"all"``.
        classes: names; empty in a decoder without ``patches``: the classes predicted most in each photo.
        patches: (row, column) from 0.
        cls: the class token of an encoder; also where an encoder has no ``patches`` named.
        interpolation: ``nearest`` or ``bilinear``.
        colours: ``own``: each map from 0 to its maximum; ``shared``: all maps of a figure to the largest.
        overlays: also each map over the photo at the photo's own resolution, to its maximum.
    """

    part: str = "decoder"
    layer: int | str | None = None
    head: int | str = "mean"
    classes: tuple[str, ...] = ()
    patches: tuple[tuple[int, int], ...] = ()
    cls: bool = False
    rollout: bool = False
    interpolation: str = "nearest"
    colours: str = "own"
    overlays: bool = False

    @staticmethod
    def parse(
        part: str,
        layer: str | None,
        head: str | None,
        classes: str | None,
        patches: Sequence[str],
        cls: bool,
        rollout: bool,
        interpolation: str,
        colours: str,
        overlays: bool,
    ) -> Choice:
        """From what stands on a command line.

        Raises:
            ConfigError: something is not of the kind that is needed, or does not go together.
        """
        if part == "encoder" and classes is not None:
            raise ConfigError(
                "--classes goes with --decoder: an encoder has no class embeddings; use --patch or --cls."
            )
        if part == "decoder" and cls:
            raise ConfigError("--cls goes with --encoder: a decoder has class embeddings instead; use --classes.")
        if rollout and head not in (None, "mean"):
            raise ConfigError(f"--head {head} does not go with --rollout, which averages heads: leave it out.")
        for option, value, known in (
            ("interpolation", interpolation, ("nearest", "bilinear")),
            ("colours", colours, ("own", "shared")),
        ):
            if value not in known:
                raise ConfigError(f"--{option} {value!r} is unknown: choose {' or '.join(known)}.")
        names = tuple(name.strip() for name in (classes or "").split(",") if name.strip())
        if classes is not None and not names:
            raise ConfigError("--classes is empty: name classes with commas between them, --classes car,road.")
        return Choice(
            part=part,
            layer=None if layer is None else _index("layer", layer, ("all",)),
            head="mean" if head is None else _index("head", head, ("all", "mean")),
            classes=names,
            patches=tuple(_place(patch) for patch in patches),
            cls=cls,
            rollout=rollout,
            interpolation=interpolation,
            colours=colours,
            overlays=overlays,
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the rows belong to."""
        asked = {"class": bool(self.classes), "patch": bool(self.patches), "cls": self.cls}
        default = "class" if self.part == "decoder" else "cls"
        return tuple(kind for kind, is_asked in asked.items() if is_asked) or (default,)

    @property
    def conventions(self) -> str:
        """All of it in words, for captions."""
        weights = {"mean": "mean over heads", "all": "each head"}.get(str(self.head), f"head {self.head}")
        weights += "; softmax weights as they are"
        if self.rollout:
            weights = "rollout: heads averaged, A' = (A + I)/2, product over layers from the first to the one named"
        colours = "0 to the map's maximum" if self.colours == "own" else "0 to the largest value of all maps"
        return (
            f"{self.part} attention, {weights}; one forward pass over the whole photo; "
            f"{self.interpolation} interpolation from patches to pixels; colours from {colours}."
        )


class Query(NamedTuple):
    """One row of a map.

    Attributes:
        row: negative: from the end.
        region: class whose predicted patches the attention is held against.
        patch: where it lies, (row, column).
    """

    kind: str
    name: str
    row: int
    region: int | None = None
    patch: tuple[int, int] | None = None


def attention_layers(model: Segmentor, part: str) -> dict[str, frozenset[str]]:
    """The attention taps of a part in the order they run, and what their rows belong to, of `KINDS`.

    Only attention to patches counts; layers between other things (CBSA's representatives) belong to nothing. Found by
    what two images of different size give: which rows and columns follow the number of patches.
    """
    taps = [name for name in tap_names(model) if name.startswith(f"{part}.") and name.endswith(".attention")]
    if not taps:
        return {}
    side = math.isqrt(model.num_classes) + 1  # more patches than classes
    seen: list[dict[str, frozenset[str]]] = []
    for h, w in ((side, side), (side, side + 1)):
        patch = model.encoder.patch_size
        pixels_13hw = torch.zeros(1, 3, h * patch, w * patch, device=device_of(model))
        with torch.inference_mode(), evaluating(model), record(model, *taps) as maps:
            model.masks(pixels_13hw)
        seen.append({name: _kinds(model, part, weights.shape, h * w) for name, weights in maps.items()})
    return {name: kinds & seen[1][name] for name, kinds in seen[0].items()}


def _kinds(model: Segmentor, part: str, shape: Sequence[int], patches: int) -> frozenset[str]:
    rows, columns = shape[-2:]
    prefix, classes = model.encoder.prefix_tokens, model.num_classes
    if part == "encoder":
        cls = {"cls"} if prefix and getattr(model.encoder.vit, "cls_token", None) is not None else set()
        return frozenset({"patch", *cls} if rows == columns == prefix + patches else ())
    if rows == columns:
        return frozenset({patches: {"patch"}, patches + classes: {"patch", "class"}}.get(rows, ()))
    return frozenset({"class"} if (rows, columns) == (classes, patches) else ())


@torch.inference_mode()
def attention(model: Segmentor, pixels_13hw: Tensor, name: str) -> Tensor:
    """Softmax weights of one layer for one photo, (H, M, C) on the CPU; the model is left as it was.

    One layer a forward pass: the maps of all heads and layers of a large model together would take gigabytes.

    Raises:
        ModelError: they are not finite.
    """
    with evaluating(model), record(model, name) as maps:
        model.masks(pixels_13hw)
    weights_HMC = maps[name][0].float().cpu()
    if not torch.isfinite(weights_HMC).all():
        raise ModelError(f"The weights of {name} are not finite: the model's parameters hold NaN or infinity.")
    return weights_HMC


def rollout(maps: Sequence[Tensor], first_rows: Sequence[int], tokens: int, queries_Q: Sequence[int]) -> Tensor:
    """Attention rollout of some tokens, (Q, T): how much each token at the input of the first layer is theirs.

    Args:
        maps: of the layers from first to last, averaged over heads, (M, C) each; columns are the first C tokens.
        first_rows: the token to which the first row of each map belongs.
        tokens: T; class tokens of an encoder come first, class embeddings of a decoder last.
        queries_Q: places among the T tokens.
    """
    flow_QT = torch.eye(tokens)[list(queries_Q)]
    for weights_MC, first in zip(reversed(maps), reversed(first_rows), strict=True):
        M, C = weights_MC.shape
        updated_QM = flow_QT[:, first : first + M] / 2
        flow_QT = flow_QT.clone()
        flow_QT[:, first : first + M] = updated_QM
        flow_QT[:, :C] += updated_QM @ weights_MC
    return flow_QT


def map_numbers(
    row_N: Tensor, grid: tuple[int, int], region_hw: Tensor | None, patch: tuple[int, int] | None
) -> dict[str, float]:
    """What is measured of one row over patches; NaN where it does not apply.

    Args:
        row_N: attention to the patches of ``grid``, not negative.
        region_hw: which patches are predicted as the class in question, bool.
        patch: (row, column) of the query.

    Returns:
        ``maximum``, ``on_patches``, ``entropy`` (nats), ``entropy_share`` (of ln N), ``in_region``, ``region``
        (fractions), ``distance`` (patches).
    """
    row_N = row_N.double()
    mass = float(row_N.sum())
    p_hw = (row_N / mass if mass > 0 else torch.full_like(row_N, math.nan)).view(grid)
    entropy = float(torch.special.entr(p_hw).sum())
    has_region = region_hw is not None and bool(region_hw.any())
    numbers = {
        "maximum": float(row_N.max()),
        "on_patches": mass,
        "entropy": entropy,
        "entropy_share": entropy / math.log(row_N.numel()) if row_N.numel() > 1 else math.nan,
        "in_region": float(p_hw[region_hw].sum()) if has_region else math.nan,
        "region": float(region_hw.double().mean()) if region_hw is not None else math.nan,
        "distance": math.nan,
    }
    if patch is not None:
        y_h1, x_1w = torch.arange(grid[0]).view(-1, 1) - patch[0], torch.arange(grid[1]).view(1, -1) - patch[1]
        numbers["distance"] = float((p_hw * torch.hypot(y_h1.double(), x_1w.double())).sum())
    return numbers


def measure(run: Run, paths: Sequence[Path], choice: Choice, advance: Progress | None = None) -> Record:
    """The record of the chosen maps of a run over photos; kind ``attention``.

    Raises:
        ConfigError: an unknown layer, head, class or patch.
        DataError: a photo cannot be read.
        ModelError: attention weights are not finite.
    """
    layers = attention_layers(run.model, choice.part)
    if choice.rollout and not all(layers.values()):
        layers = {}  # a layer between other things cannot be multiplied
    chosen: dict[str, list[str]] = {}
    notes = []
    for kind in choice.kinds:
        having = [name for name, kinds in layers.items() if kind in kinds]
        if having:
            chosen[kind] = _chosen_layers(run, choice, kind, having)
        else:
            what = f"{'rollout' if choice.rollout else 'attention'} from {KINDS[kind]} to patches"
            notes.append(f"the {choice.part} has no {what}: these maps do not apply.")
    classes = [_class_index(run, name) for name in choice.classes]
    photos = []
    for done, path in enumerate(paths, start=1):
        photo = open_photo(path, run)
        labels_hw = predicted_patches(run, photo)
        queries = [query for query in _queries(run, photo, choice, classes, labels_hw) if query.kind in chosen]
        maps = _maps(run, photo, choice, layers, chosen, queries, labels_hw)
        photos.append({**describe_photo(photo), "prediction": pack(labels_hw), "maps": maps})
        if advance is not None:
            advance(done, len(paths))
    return new_record(
        "attention",
        model=run.name,
        data=photo_data(photos),
        measured={
            "photos": photos,
            "classes": list(run.model.classes),
            "palette": [list(colour) for colour in run.model.palette],
            "notes": notes,
        },
        n=1,  # each number is of one photo
        weights=describe_weights(run.weights),
        variant=f"{choice.part}-rollout" if choice.rollout else choice.part,
        settings={**asdict(choice), "resize": run.config.data.resize, "conventions": choice.conventions},
    )


def _chosen_layers(run: Run, choice: Choice, kind: str, having: Sequence[str]) -> list[str]:
    if choice.layer == "all":
        return list(having)
    index = len(having) - 1 if choice.layer is None else int(choice.layer)
    if index >= len(having):
        raise ConfigError(
            f"--layer {index} is not in {run.name}: its {choice.part} has {_range(len(having))} with attention from "
            f"{KINDS[kind]}."
        )
    return [having[index]]


def _class_index(run: Run, name: str) -> int:
    known = [each.casefold() for each in run.model.classes]
    if name.casefold() not in known:
        raise ConfigError(f"{run.name} has no class {name!r}; it has: {', '.join(run.model.classes)}.")
    return known.index(name.casefold())


def _queries(run: Run, photo: Photo, choice: Choice, classes: Sequence[int], labels_hw: Tensor) -> list[Query]:
    """In the order of `Choice.kinds`; class embeddings are the last rows of every map that has them."""
    (h, w), names, K = photo.grid, run.model.classes, run.model.num_classes
    if not classes and "class" in choice.kinds:
        count_K = labels_hw.flatten().bincount(minlength=K)
        most = count_K.argsort(descending=True, stable=True)[:PREDICTED].tolist()
        classes = sorted(index for index in most if count_K[index] > 0)
    queries = [Query("class", names[index], index - K, index) for index in classes]
    first = run.model.encoder.prefix_tokens if choice.part == "encoder" else 0
    for y, x in choice.patches:
        if y >= h or x >= w:
            raise ConfigError(
                f"--patch {y},{x} is outside {photo.path.name}, which {run.name} sees as {h} x {w} patches: "
                f"rows 0 to {h - 1}, columns 0 to {w - 1}."
            )
        queries.append(Query("patch", f"patch {y},{x}", first + y * w + x, int(labels_hw[y, x]), (y, x)))
    return queries + ([Query("cls", "class token", 0)] if "cls" in choice.kinds else [])


def _maps(
    run: Run,
    photo: Photo,
    choice: Choice,
    layers: Mapping[str, frozenset[str]],
    chosen: Mapping[str, Sequence[str]],
    queries: Sequence[Query],
    labels_hw: Tensor,
) -> list[dict[str, Any]]:
    """The maps of one photo, as a record holds them: query by query, layer by layer, head by head."""
    patches = math.prod(photo.grid)
    first = run.model.encoder.prefix_tokens if choice.part == "encoder" else 0
    tokens = first + patches if choice.part == "encoder" else patches + run.model.num_classes
    asked = [name for name in layers if any(name in names for names in chosen.values())]
    needed = list(layers)[: list(layers).index(asked[-1]) + 1] if choice.rollout and asked else asked

    # rows of class embeddings alone come after the patches
    firsts = [patches if layers[name] == {"class"} else 0 for name in needed]
    earlier: list[Tensor] = []  # averaged over heads, for the rollout
    found: dict[tuple[Query, str], list[tuple[str, Tensor]]] = {}  # (head, row)
    for name in needed:
        weights_HMC = attention(run.model, photo.pixels_13hw, name)
        here = [query for query in queries if name in chosen[query.kind]]
        if choice.rollout:
            earlier.append(weights_HMC.mean(0))
            places = [query.row % tokens for query in here]
            flow_QT = rollout(earlier, firsts[: len(earlier)], tokens, places)
            rows = [[("mean", row_T)] for row_T in flow_QT]
        else:
            rows = [_head_rows(run, name, choice.head, weights_HMC[:, query.row]) for query in here]
        found |= {(query, name): heads for query, heads in zip(here, rows, strict=True)}

    maps = []
    for query in queries:
        for name in chosen[query.kind]:
            region_hw = None if query.region is None else labels_hw == query.region
            for head, row_C in found[query, name]:
                row_N = row_C[first : first + patches]
                maps.append(
                    {
                        "layer": name.removesuffix(".attention"),
                        "head": head,
                        "query": query.name,
                        "region": query.region,
                        "patch": query.patch,
                        "numbers": map_numbers(row_N, photo.grid, region_hw, query.patch),
                        "values": pack(row_N.view(photo.grid)),
                    }
                )
    return maps


def _head_rows(run: Run, name: str, head: int | str, rows_HC: Tensor) -> list[tuple[str, Tensor]]:
    if head == "mean":
        return [("mean", rows_HC.mean(0))]
    if head == "all":
        return [(str(index), row_C) for index, row_C in enumerate(rows_HC)]
    if int(head) >= len(rows_HC):
        raise ConfigError(f"--head {head} is not in {run.name}: {name} has {_range(len(rows_HC), 'head')}.")
    return [(str(head), rows_HC[int(head)])]


def render(records: Sequence[Record], stem: Path) -> dict[str, Table]:
    """One figure a photo, with the maps of all runs, and one table.

    Raises:
        RecordError: a photo is missing or has changed.
    """
    photos = photos_of(records)
    for number, holders in enumerate(photos):
        _draw(holders, figure_path(stem, photos, number))
    for held in records:
        if held.settings["overlays"]:
            _overlays(held, stem.with_name(held.file_name.removesuffix(".json") + "-overlays"))
    return {"": _table(records)}


def _table(records: Sequence[Record]) -> Table:
    known: tuple[tuple[str, Column, float], ...] = (
        ("maximum", Column("Maximum (%)", 2), 100),
        ("on_patches", Column("On patches (%)"), 100),
        ("entropy", Column("Entropy (nats)", 2), 1),
        ("entropy_share", Column("of ln N (%)"), 100),
        ("in_region", Column("In region (%)"), 100),
        ("region", Column("Region (%)"), 100),
        ("distance", Column("Distance", 2), 1),
    )
    maps = [(held, stored, each) for held in records for stored in held.measured["photos"] for each in stored["maps"]]
    columns = [entry for entry in known if any(each["numbers"][entry[0]] is not None for *_, each in maps)]
    rows: list[tuple[Cell, ...]] = [
        (
            held.model,
            photo_name(stored),
            each["query"],
            each["layer"].partition(".")[2],
            each["head"],
            *(_times(each["numbers"][key], factor) for key, _, factor in columns),
        )
        for held, stored, each in maps
    ]
    return Table(
        columns=(
            *(Column(name) for name in ("Model", "Photo", "Query", "Layer", "Head")),
            *(column for _, column, _ in columns),
        ),
        rows=tuple(rows),
        caption=f"{_caption(records)} Each row is one map of one photo (n = 1, no interval); maximum and on patches in "
        "percent of the row; entropy, region and distance (in patches) of the row over patches scaled to sum 1; "
        "region: patches predicted as the class, or as the class of the patch.",
    )


def _caption(records: Sequence[Record]) -> str:
    words = " ".join(dict.fromkeys(held.settings["conventions"] for held in records))
    return words[0].upper() + words[1:]


def _draw(holders: Sequence[tuple[Record, Mapping[str, Any]]], path: Path) -> None:
    """One line of panels after another: a run's prediction, then its maps."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    image_HW3 = for_figure(recorded_photo(holders[0][1]))
    height, width = image_HW3.shape[:2]
    lines = [(held, stored, line) for held, stored in holders for line in _lines(stored["maps"])]
    columns = 1 + max(1, *(len(line) for *_, line in lines))
    panel = min((PAGE - 0.2) / columns, 2.2)
    own = holders[0][0].settings["colours"] == "own"
    largest = max((each["numbers"]["maximum"] for *_, line in lines for each in line), default=0.0)
    with figure_style():
        figure = new_figure(1.2 + len(lines) * (min(panel * height / width, 2.6) + 0.4), PAGE)
        grid = figure.subplots(len(lines), columns, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        drawn = None
        for row, (held, stored, line) in zip(grid, lines, strict=True):
            if stored is not drawn:
                labels_hw = unpack(stored["prediction"])
                show(row[0], classes_over(image_HW3, labels_hw, stored, held), f"{held.model}\nprediction", panel)
                drawn = stored
            if not line:
                row[1].text(0.5, 0.5, "no such attention", ha="center", va="center", fontsize=7, color="0.4")
            for axes, each in zip(row[1:], line, strict=False):
                maximum = each["numbers"]["maximum"]
                painted = _painted(image_HW3, each, stored, held, maximum if own else largest)
                show(axes, painted, f"{each['query']}\n{_place_of(each, held)}\nmax {maximum:.3g}", panel)
                _mark(axes, image_HW3, each, stored)
        mixed_256x3 = OPACITY * _colours() + (1 - OPACITY) * 0.5
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1 if own else largest), ListedColormap(mixed_256x3.tolist())),
            ax=grid,
            location="bottom",
            shrink=0.4,
            aspect=40,
            pad=0.03,
        )
        bar.set_label("attention / maximum of its map" if own else "attention", fontsize=7)
        class_legend(figure, [(held, unpack(stored["prediction"])) for held, stored in holders])
        caption_below(figure, f"{photo_name(holders[0][1])}. {_caption([held for held, _ in holders])} {_MARKS}")
        save_figure(figure, path)


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


def _place_of(each: Mapping[str, Any], held: Record) -> str:
    layer = each["layer"].partition(".")[2]
    if held.settings["rollout"]:
        return f"to {layer}"
    return f"{layer}, {'mean' if each['head'] == 'mean' else 'head ' + each['head']}"


def _painted(image_HW3: Pixels, each: Mapping[str, Any], stored: Mapping[str, Any], held: Record, top: float) -> Pixels:
    """A map over its photo in grey; black to bright from 0 to ``top``."""
    mode = held.settings["interpolation"]
    values_HW = at_pixels(unpack(each["values"])[None], stored, image_HW3.shape[:2], mode)[0]
    index_HW = np.clip(values_HW / (top or 1.0) * 255, 0, 255).round().astype(np.uint8)
    grey_HW1 = cv2.cvtColor(image_HW3, cv2.COLOR_RGB2GRAY)[..., None]
    return np.asarray(np.rint(OPACITY * 255 * _colours()[index_HW] + (1 - OPACITY) * grey_HW1), np.uint8)


def _mark(axes: Axes, image_HW3: Pixels, each: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Outline what the query is: the patches predicted as its class, or its patch."""
    labels_hw = unpack(stored["prediction"])
    marked_hw = torch.zeros_like(labels_hw)
    if each["patch"] is not None:
        marked_hw[tuple(each["patch"])] = 1
    elif each["region"] is not None:
        marked_hw = (labels_hw == each["region"]).double()
    marked_HW = at_pixels(marked_hw[None], stored, image_HW3.shape[:2], "nearest")[0]
    if 0 < marked_HW.sum() < marked_HW.size:
        axes.contour(marked_HW, levels=[0.5], colors="white", linewidths=0.7)


def _colours() -> NDArray[np.float64]:
    """(256, 3) in [0, 1]."""
    import matplotlib as mpl

    return np.asarray(mpl.colormaps[COLOURS](np.arange(256))[:, :3], np.float64)


def _overlays(held: Record, folder: Path) -> None:
    """Each map of a record over its photo at the photo's own resolution, one JPEG each."""
    from PIL import Image

    for stored in held.measured["photos"]:
        image_HW3 = recorded_photo(stored)
        for each in stored["maps"]:
            picture = Image.fromarray(_painted(image_HW3, each, stored, held, each["numbers"]["maximum"]))
            words = (held.model, photo_name(stored), each["query"], each["layer"], each["head"])
            name = re.sub(r"[^\w.-]+", "_", "-".join(words)) + ".jpg"
            write_atomically(folder / name, partial(picture.save, format="jpeg", quality=92, subsampling=0))


def _index(option: str, text: str, words: Sequence[str]) -> int | str:
    if text in words:
        return text
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"--{option} {text!r} is impossible: give a number from 0, or {' or '.join(words)}.")
    return int(text)


def _place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", text, re.ASCII)
    if match is None:
        raise ConfigError(f"--patch {text!r} is impossible: give row and column of a patch from 0, --patch 3,21.")
    return int(match[1]), int(match[2])


def _range(count: int, what: str = "layer") -> str:
    return f"{what} 0 only" if count == 1 else f"{what}s 0 to {count - 1}"


def _times(value: float | None, factor: float) -> float:
    return math.nan if value is None else factor * value
