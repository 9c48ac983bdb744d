"""Maps over the patches of one photo: rows of attention, masks made by attention, memberships; see `attention`.

Shapes: H heads, M rows and C columns of a map (tokens), Q chosen rows, N patches, R representatives, T tokens of all
layers, K classes, h w patch grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from analysis.maths.attention import level_numbers, map_numbers, rollout, token_rows
from analysis.maths.packing import pack
from analysis.measurement import Progress
from analysis.measures.attention import Choice
from analysis.measures.finite import finite
from analysis.measures.samples import Photo, describe_photo, open_photo, predicted_patches
from whitebox.engine.inference import device_of, evaluating, rejecting
from whitebox.errors import ConfigError
from whitebox.models import Segmentor, record, tap_names
from whitebox.runs import Run

PREDICTED = 3  # classes shown where none are named
KINDS = {"class": "class embeddings", "patch": "patches", "cls": "a class token"}
THROUGH = frozenset({"representative"})  # rows of a layer that serves class embeddings and patches by A^T A
MASKS = "decoder.cross_layers.*.masks"  # taps
REFINED = "decoder.layers.*.masks"  # taps of a decoder that refines a map of each class (SED)


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
    # patches are counted in the masks: where images are squashed to a square there are always as many
    for h, w in ((side, side), (side, side + 1)):
        patch = model.encoder.patch_size
        pixels_13hw = torch.zeros(1, 3, h * patch, w * patch, device=device_of(model))
        with torch.inference_mode(), evaluating(model), record(model, *taps) as maps:
            patches = math.prod(model.masks(pixels_13hw).shape[-2:])
        for name, weights in maps.items():
            seen.setdefault(name, []).append((*weights.shape[-2:], patches))
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
    """
    with evaluating(model), record(model, name) as maps:
        model.masks(pixels_13hw)
    return maps[name][0].float().cpu()


@torch.inference_mode()
def stage_masks(model: Segmentor, pixels_13hw: Tensor) -> dict[str, Tensor]:
    """Mask logits (K, N) of one photo by layer, on the CPU: of the last layer of each stage, and ``decoder.sum``.

    A stage is what leads to one prediction. Those on another grid than the decoder's masks are part of the sum only; a
    sum that is the last stage's mask itself (of one stage, or of stages that do not add up) is left out.
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
    return {name: masks_KN.float().cpu() for name, masks_KN in found.items()}


@torch.inference_mode()
def class_maps(model: Segmentor, pixels_13hw: Tensor, topk: int | None = None) -> dict[str, Tensor]:
    """Maps (K, N) of one photo through a decoder that refines them, on the CPU, all on the grid of its masks.

    First the cosine of places and names, mean over templates, 0 where it is below; then the sigmoid of what is said
    before each layer, and of the masks. Places of coarser maps are repeated. With early rejection (``topk``) classes
    that are rejected are 0 from there on.
    """
    taps = _taps(model, REFINED)
    with evaluating(model), rejecting(model, topk), record(model, "decoder.cost", *taps) as heard:
        masks_1Khw = model.masks(pixels_13hw)
    found = {
        "decoder.cost": heard["decoder.cost"].mean(2).clamp(min=0),
        **{name.removesuffix(".masks"): heard[name].sigmoid() for name in taps},
        "decoder.last": masks_1Khw.sigmoid(),
    }
    size = masks_1Khw.shape[-2:]
    return {name: torch.nn.functional.interpolate(maps, size)[0].flatten(1).cpu() for name, maps in found.items()}


def maps_of_photos(
    run: Run, paths: Sequence[Path], choice: Choice, advance: Progress
) -> tuple[str, list[dict[str, Any]], list[str]]:
    """What is shown (attention, mask, class map or membership), what a record holds of each photo, and notes."""
    shows, rows_of, notes = _source(run, choice)
    classes = [_class_index(run, name) for name in choice.classes]
    photos = []
    for done, path in enumerate(paths, start=1):
        photo = open_photo(path, run)
        labels_hw = predicted_patches(run, photo)
        rows = rows_of(run, photo, choice, _queries(run, photo, choice, classes, labels_hw))
        maps = [_map(row, photo, labels_hw, shows) for row in rows]
        photos.append({**describe_photo(photo), "prediction": pack(labels_hw), "maps": maps})
        advance(done, len(paths))
    return shows, photos, notes


Source = Callable[[Run, Photo, Choice, Sequence[Query]], Iterable[Row]]  # the maps of one photo


def _source(run: Run, choice: Choice) -> tuple[str, Source, list[str]]:
    """What is shown (see `Choice.conventions`), what gives it, and what there is to say of it."""
    if choice.masks:
        if _taps(run.model, MASKS):
            return "mask", _mask_rows, []
        if _taps(run.model, REFINED):
            return "class map", _class_map_rows, []
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
            refined = choice.part == "decoder" and _taps(run.model, REFINED)
            other = " --masks shows its maps of classes." if refined else ""
            notes.append(f"the {choice.part} has no {what}: these maps do not apply.{other}")
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
        weights_HMC = finite(attention(run.model, photo.pixels_13hw, name), name, run)
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
    found = {name: finite(masks_KN, name, run) for name, masks_KN in stage_masks(run.model, photo.pixels_13hw).items()}
    names = _chosen_layers(run, choice, list(found), "masks (the last: the decoder's own)")
    return [Row(query, name, "mean", found[name][query.row].sigmoid()) for query in queries for name in names]


def _class_map_rows(run: Run, photo: Photo, choice: Choice, queries: Sequence[Query]) -> list[Row]:
    """Class by class, from the cost to the masks."""
    maps = class_maps(run.model, photo.pixels_13hw, run.inference.topk)
    found = {name: finite(maps_KN, name, run) for name, maps_KN in maps.items()}
    names = _chosen_layers(run, choice, list(found), "maps of classes (the first: the cost, the last: the masks)")
    return [Row(query, name, "mean", found[name][query.row]) for query in queries for name in names]


def _membership_rows(run: Run, photo: Photo, choice: Choice, queries: Sequence[Query]) -> list[Row]:
    """Layer by layer, head by head; their mean over heads would be 1 / H."""
    names = _chosen_layers(run, choice, _taps(run.model, f"{choice.part}.*.membership"), "memberships")
    patches, head = math.prod(photo.grid), "all" if choice.head == "mean" else choice.head
    query = Query("membership", "membership", 0)
    rows = []
    for name in names:
        shares_HT = finite(attention(run.model, photo.pixels_13hw, name), name, run)
        rows += [Row(query, name, index, row_T[:patches]) for index, row_T in _head_rows(run, name, head, shares_HT)]
    return rows


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


def _range(count: int, what: str = "layer") -> str:
    return f"{what} 0 only" if count == 1 else f"{what}s 0 to {count - 1}"
