"""Attention maps over a photo: which row of which layer's softmax weights, of which head or averaged how.

A map is one row of a layer's attention: the weights with which one token (a class embedding, a patch, the class token)
takes from the patches. Its values are the layer's own; nothing is normalised again. Of a layer in which representatives
look at all tokens with weights A, (R, T) a head, and hand back along A^T (CBSA), it is a row of A^T A, tokens by tokens
as the official code gives it (``return_attn``); only the rows asked for are computed. What is measured of it:

    on patches    share of the row that lies on patches; the rest lies on class embeddings or class tokens
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

What is no attention is drawn in the same way, and measured by maximum, mean, and in region:

    masks         of a decoder whose attention is its masks (SegViT): sigmoid of the logits before softmax, averaged
                  over heads, of the last layer of each stage, and of their sum, which is the decoder's mask
    memberships   of a decoder without attention (ToST): softmax over heads, a map a head

Shapes: H heads, M rows and C columns of a map (tokens), Q chosen rows, N patches, R representatives, T tokens of all
layers, K classes, h w patch grid.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from analysis.measures.images import Photo, Progress, open_photo, photo_settings
from analysis.record import Record, describe_weights, new_record
from analysis.show.photos import (
    describe_photo,
    pack,
    photo_data,
    predicted_patches,
)
from whitebox.engine.inference import device_of, evaluating
from whitebox.errors import ConfigError, ModelError
from whitebox.models import Segmentor, record, tap_names
from whitebox.runs import Run

if TYPE_CHECKING:
    pass

PREDICTED = 3  # classes shown where none are named
KINDS = {"class": "class embeddings", "patch": "patches", "cls": "a class token"}
THROUGH = frozenset({"representative"})  # rows of a layer that serves class embeddings and patches by A^T A
MASKS = "decoder.cross_layers.*.masks"  # taps


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
        masks: the masks of attention-to-mask instead of attention; ``layer`` counts stages, and last their sum.
        interpolation: ``nearest`` or ``bilinear``.
        colours: from 0 to each map's maximum (``own``), to the largest of all maps of a figure (``shared``), to 1
            (``unit``).
        overlays: also each map over the photo at the photo's own resolution, to its maximum (``unit``: to 1).
    """

    part: str = "decoder"
    layer: int | str | None = None
    head: int | str = "mean"
    classes: tuple[str, ...] = ()
    patches: tuple[tuple[int, int], ...] = ()
    cls: bool = False
    rollout: bool = False
    masks: bool = False
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
        masks: bool,
        interpolation: str,
        colours: str | None,
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
        for option, given in (
            ("encoder", part == "encoder"),
            ("patch", patches),
            ("head", head is not None),
            ("rollout", rollout),
        ):
            if masks and given:
                raise ConfigError(
                    f"--{option} does not go with --masks, which a decoder has of classes, averaged over heads."
                )
        colours = colours or ("unit" if masks else "own")
        for option, value, known in (
            ("interpolation", interpolation, ("nearest", "bilinear")),
            ("colours", colours, ("own", "shared", "unit")),
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
            masks=masks,
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

    def conventions(self, shows: str) -> str:
        """All of it in words, for captions; ``shows`` is ``attention``, ``mask`` or ``membership``."""
        weights = {"mean": "mean over heads", "all": "each head"}.get(str(self.head), f"head {self.head}")
        weights = f"attention, {weights}; softmax weights as they are"
        if self.rollout:
            weights = (
                "attention, rollout: heads averaged, A' = (A + I)/2, product over layers from the first to the "
                "one named"
            )
        if shows == "mask":
            weights = (
                "masks of attention-to-mask: sigmoid of the attention logits averaged over heads, of a stage's "
                "last layer; sum of stages: their logits added up, which is the decoder's mask"
            )
        if shows == "membership":
            weights = "memberships, a map a head: softmax over heads of each patch, as it is"
        colours = {
            "own": "0 to the map's maximum",
            "shared": "0 to the largest value of all maps",
            "unit": "0 to 1",
        }[self.colours]
        return (
            f"{self.part} {weights}; one forward pass over the whole photo; "
            f"{self.interpolation} interpolation from patches to pixels; colours from {colours}."
        )


class Query(NamedTuple):
    """What a map belongs to.

    Attributes:
        row: among the tokens; negative: from the end.
        region: class whose predicted patches the attention is held against.
        patch: where it lies, (row, column).
    """

    kind: str
    name: str
    row: int
    region: int | None = None
    patch: tuple[int, int] | None = None


class Row(NamedTuple):
    """Values of one map on the patches.

    Attributes:
        whole: what the row sums up to over all its tokens.
    """

    query: Query
    layer: str
    head: str
    row_N: Tensor
    whole: float = 1.0


def attention_layers(model: Segmentor, part: str) -> dict[str, frozenset[str]]:
    """The attention taps of a part in the order they run, and what their rows belong to, of `KINDS` or `THROUGH`.

    Only attention to patches counts; rows of layers between other things belong to nothing. Found by what two images of
    different size give: which rows and columns follow the number of patches.
    """
    taps = _taps(model, f"{part}.*.attention")
    if not taps:
        return {}
    side = math.isqrt(model.num_classes) + 1  # more patches than classes
    seen: dict[str, list[tuple[int, int, int]]] = {}
    for h, w in ((side, side), (side, side + 1)):
        patch = model.encoder.patch_size
        pixels_13hw = torch.zeros(1, 3, h * patch, w * patch, device=device_of(model))
        with torch.inference_mode(), evaluating(model), record(model, *taps) as maps:
            model.masks(pixels_13hw)
        for name, weights in maps.items():
            seen.setdefault(name, []).append((*weights.shape[-2:], h * w))
    return {name: _kinds(model, part, sizes) for name, sizes in seen.items()}


def _kinds(model: Segmentor, part: str, seen: Sequence[tuple[int, int, int]]) -> frozenset[str]:
    """What rows belong to, from rows, columns and patches of several images."""
    prefix, K = model.encoder.prefix_tokens, model.num_classes
    shapes, patches = [(rows, columns) for rows, columns, _ in seen], [N for *_, N in seen]
    if part == "encoder":
        cls = {"cls"} if prefix and getattr(model.encoder.vit, "cls_token", None) is not None else set()
        return frozenset({"patch", *cls} if shapes == [(prefix + N, prefix + N) for N in patches] else ())
    known = {
        frozenset({"patch", "class"}): [(N + K, N + K) for N in patches],
        frozenset({"patch"}): [(N, N) for N in patches],
        frozenset({"class"}): [(K, N) for N in patches],
        THROUGH: [(shapes[0][0], N + K) for N in patches],  # as many rows in any image
    }
    return next((kinds for kinds, expected in known.items() if shapes == expected), frozenset())


def _serves(kinds: frozenset[str], kind: str) -> bool:
    return kind in kinds or (kinds == THROUGH and kind in ("class", "patch"))


def _taps(model: Segmentor, pattern: str) -> list[str]:
    return [name for name in tap_names(model) if fnmatchcase(name, pattern)]


@torch.inference_mode()
def attention(model: Segmentor, pixels_13hw: Tensor, name: str) -> Tensor:
    """Softmax weights of one layer for one photo, (H, M, C) on the CPU; the model is left as it was.

    One layer a forward pass: the maps of all heads and layers of a large model together would take gigabytes.

    Raises:
        ModelError: they are not finite.
    """
    with evaluating(model), record(model, name) as maps:
        model.masks(pixels_13hw)
    return _finite(name, maps[name][0])


def token_rows(weights_HMC: Tensor, row: int, through: bool) -> Tensor:
    """The row of one token in all heads, (H, C).

    Args:
        weights_HMC: of a layer; rows are tokens, or representatives which look at all tokens.
        through: the latter; the row is that of A^T A, (A^T A)_n = sum_r A_rn A_r, which is never formed.
    """
    if not through:
        return weights_HMC[:, row]
    return torch.einsum("hr,hrc->hc", weights_HMC[:, :, row], weights_HMC)


@torch.inference_mode()
def stage_masks(model: Segmentor, pixels_13hw: Tensor) -> dict[str, Tensor]:
    """Mask logits (K, N) of one photo by layer, on the CPU: of the last layer of each stage, and ``decoder.sum``.

    A stage is what leads to one prediction. Those on another grid than the decoder's masks are part of the sum only; a
    sum that is the last stage's mask itself (of one stage, or of stages that do not add up) is left out.

    Raises:
        ModelError: they are not finite.
    """
    taps = _taps(model, MASKS)
    with evaluating(model), record(model, *taps) as heard:
        prediction = model.predict(pixels_13hw)
    layers = len(taps) // (1 + len(prediction.earlier))
    total_KN = prediction.masks_BKhw[0].flatten(1)
    ends = {name: heard[name][0] for name in taps[layers - 1 :: layers]}
    found = {name: masks_KN for name, masks_KN in ends.items() if masks_KN.shape == total_KN.shape}
    if not torch.equal(ends[taps[-1]], total_KN):
        found["decoder.sum"] = total_KN
    return {name: _finite(name, masks_KN) for name, masks_KN in found.items()}


def _finite(name: str, values: Tensor) -> Tensor:
    values = values.float().cpu()
    if not torch.isfinite(values).all():
        raise ModelError(f"The weights of {name} are not finite: the model's parameters hold NaN or infinity.")
    return values


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
    row_N: Tensor,
    grid: tuple[int, int],
    region_hw: Tensor | None,
    patch: tuple[int, int] | None,
    whole: float = 1.0,
) -> dict[str, float]:
    """What is measured of one row over patches; NaN where it does not apply.

    Args:
        row_N: attention to the patches of ``grid``, not negative.
        region_hw: which patches are predicted as the class in question, bool.
        patch: (row, column) of the query.
        whole: what the row sums up to over all its tokens.

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
        "on_patches": mass / whole if whole > 0 else math.nan,
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


def level_numbers(row_N: Tensor, grid: tuple[int, int], region_hw: Tensor | None) -> dict[str, float]:
    """What is measured of a map whose values are no shares: ``maximum``, ``mean``, ``in_region``, ``region``."""
    shares = map_numbers(row_N, grid, region_hw, None)
    return {"mean": float(row_N.double().mean()), **{key: shares[key] for key in ("maximum", "in_region", "region")}}


def measure(run: Run, paths: Sequence[Path], choice: Choice, advance: Progress | None = None) -> Record:
    """The record of the chosen maps of a run over photos; kind ``attention``.

    Raises:
        ConfigError: an unknown layer, head, class or patch.
        DataError: a photo cannot be read.
        ModelError: what is drawn is not finite.
    """
    shows, rows_of, notes = _source(run, choice)
    classes = [_class_index(run, name) for name in choice.classes]
    photos = []
    for done, path in enumerate(paths, start=1):
        photo = open_photo(path, run)
        labels_hw = predicted_patches(run, photo)
        rows = rows_of(run, photo, choice, _queries(run, photo, choice, classes, labels_hw))
        maps = [_map(row, photo, labels_hw, shows) for row in rows]
        photos.append({**describe_photo(photo), "prediction": pack(labels_hw), "maps": maps})
        if advance is not None:
            advance(done, len(paths))
    return new_record(
        "attention",
        model=run.name,
        data=photo_data(photos),
        measured={
            "shows": shows,
            "photos": photos,
            "classes": list(run.model.classes),
            "palette": [list(colour) for colour in run.model.palette],
            "notes": notes,
        },
        n=1,  # each number is of one photo
        weights=describe_weights(run.weights),
        variant="-".join([choice.part, *(["rollout"] if choice.rollout else [] if shows == "attention" else [shows])]),
        settings={**asdict(choice), **photo_settings(run), "conventions": choice.conventions(shows)},
    )


Source = Callable[[Run, Photo, Choice, Sequence[Query]], Iterable[Row]]  # the maps of one photo


def _source(run: Run, choice: Choice) -> tuple[str, Source, list[str]]:
    """What is shown (see `Choice.conventions`), what gives it, and what there is to say of it."""
    if choice.masks:
        if _taps(run.model, MASKS):
            return "mask", _mask_rows, []
        return "mask", _no_rows, ["the decoder has no masks made by attention (attention-to-mask)."]
    layers = attention_layers(run.model, choice.part)
    if choice.rollout and not all(kinds and kinds != THROUGH for kinds in layers.values()):
        layers = {}  # a layer between other things cannot be multiplied
    chosen: dict[str, list[str]] = {}
    notes = []
    for kind in choice.kinds:
        having = [name for name, kinds in layers.items() if _serves(kinds, kind)]
        if having:
            chosen[kind] = _chosen_layers(run, choice, having, f"attention from {KINDS[kind]}")
        else:
            what = f"{'rollout' if choice.rollout else 'attention'} from {KINDS[kind]} to patches"
            notes.append(f"the {choice.part} has no {what}: these maps do not apply.")
    if not layers and not choice.rollout and _taps(run.model, f"{choice.part}.*.membership"):
        return "membership", _membership_rows, [f"the {choice.part} has no attention; its memberships are drawn."]
    if any(layers[name] == THROUGH for names in chosen.values() for name in names):
        notes.append(
            "representatives look at all tokens, with weights A; drawn are rows of A^T A, which do not sum up to 1."
        )
    return "attention", partial(_attention_rows, layers=layers, chosen=chosen), notes


def _chosen_layers(run: Run, choice: Choice, having: Sequence[str], what: str) -> list[str]:
    if choice.layer == "all":
        return list(having)
    index = len(having) - 1 if choice.layer is None else int(choice.layer)
    if index >= len(having):
        raise ConfigError(
            f"--layer {index} is not in {run.name}: its {choice.part} has {_range(len(having))} with {what}."
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


def _attention_rows(
    run: Run,
    photo: Photo,
    choice: Choice,
    queries: Sequence[Query],
    layers: Mapping[str, frozenset[str]],
    chosen: Mapping[str, Sequence[str]],
) -> list[Row]:
    """Query by query, layer by layer, head by head."""
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
        here = [query for query in queries if name in chosen.get(query.kind, ())]
        if choice.rollout:
            earlier.append(weights_HMC.mean(0))
            places = [query.row % tokens for query in here]
            flow_QT = rollout(earlier, firsts[: len(earlier)], tokens, places)
            rows = [[("mean", row_T)] for row_T in flow_QT]
        else:
            through = layers[name] == THROUGH
            rows = [_head_rows(run, name, choice.head, token_rows(weights_HMC, query.row, through)) for query in here]
        found |= {(query, name): heads for query, heads in zip(here, rows, strict=True)}
    return [
        Row(query, name, head, row_C[first : first + patches], float(row_C.sum()))
        for query in queries
        for name in chosen.get(query.kind, ())
        for head, row_C in found[query, name]
    ]


def _mask_rows(run: Run, photo: Photo, choice: Choice, queries: Sequence[Query]) -> list[Row]:
    """Class by class, stage by stage."""
    found = stage_masks(run.model, photo.pixels_13hw)
    names = _chosen_layers(run, choice, list(found), "masks (the last: the decoder's own)")
    return [Row(query, name, "mean", found[name][query.row].sigmoid()) for query in queries for name in names]


def _membership_rows(run: Run, photo: Photo, choice: Choice, queries: Sequence[Query]) -> list[Row]:
    """Layer by layer, head by head; their mean over heads would be 1 / H."""
    names = _chosen_layers(run, choice, _taps(run.model, f"{choice.part}.*.membership"), "memberships")
    patches, head = math.prod(photo.grid), "all" if choice.head == "mean" else choice.head
    query = Query("membership", "membership", 0)
    return [
        Row(query, name, index, row_T[:patches])
        for name in names
        for index, row_T in _head_rows(run, name, head, attention(run.model, photo.pixels_13hw, name))
    ]


def _no_rows(run: Run, photo: Photo, choice: Choice, queries: Sequence[Query]) -> list[Row]:
    return []


def _map(row: Row, photo: Photo, labels_hw: Tensor, shows: str) -> dict[str, Any]:
    """One map as a record holds it."""
    query, grid = row.query, photo.grid
    region_hw = None if query.region is None else labels_hw == query.region
    shares = shows == "attention"
    return {
        "layer": row.layer.removesuffix(".attention").removesuffix(".masks").removesuffix(".membership"),
        "head": row.head,
        "query": query.name,
        "region": query.region,
        "patch": query.patch,
        "numbers": map_numbers(row.row_N, grid, region_hw, query.patch, row.whole)
        if shares
        else level_numbers(row.row_N, grid, region_hw),
        "values": pack(row.row_N.view(grid)),
    }


def _head_rows(run: Run, name: str, head: int | str, rows_HC: Tensor) -> list[tuple[str, Tensor]]:
    if head == "mean":
        return [("mean", rows_HC.mean(0))]
    if head == "all":
        return [(str(index), row_C) for index, row_C in enumerate(rows_HC)]
    if int(head) >= len(rows_HC):
        raise ConfigError(f"--head {head} is not in {run.name}: {name} has {_range(len(rows_HC), 'head')}.")
    return [(str(head), rows_HC[int(head)])]


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
