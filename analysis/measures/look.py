"""What there is to see of one photo in one run, from one forward pass, and the decoder alone some times more.

The pass hears queries and keys of each layer with attention (`queries`), tokens along the layers, and masks. Then the
decoder goes over the encoder's tokens again: without its last layers (what is there already, at which depth), without
each layer and each head (`ablate` has what that does to mIoU), and with noise on its parameters (`robustness`). Numbers
of the layers are those of `rank-analysis` and `alignment`, of this photo, beside the same of an untrained decoder.

Everything is plain: names, numbers, and arrays for `analysis.show.explorer` to pack. Probabilities and shares, 0 to 1,
are uint8 in steps of 1 / 255.

Shapes: H heads, N patches, T tokens of a layer (patches, then class embeddings), K classes, C of them chosen, D width,
P dimension of a head, M side of a pooled matrix, h w patch grid, H W pixels as the model sees the photo.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from analysis.maths.coding_rate import float64, in_heads
from analysis.maths.conventions import EPS, Convention
from analysis.maths.moves import cosine, steepest
from analysis.maths.perturbation import perturbed, target_parameters
from analysis.maths.subspaces import gram, overlaps, unit_rows
from analysis.measures.baselines import untrained
from analysis.measures.finite import finite
from analysis.measures.layer_moves import judged, move_of
from analysis.measures.layer_moves import taps as taps_of_moves
from analysis.measures.maps import MASKS, class_maps, stage_masks
from analysis.measures.queries import factors, hearing
from analysis.measures.samples import Photo, open_photo, read_truth
from analysis.measures.stages import StageNumbers, stages_of
from analysis.measures.variants import heads as droppable
from analysis.measures.variants import layers_of, without_heads
from whitebox.data.images import IGNORE, UInt8
from whitebox.engine.inference import evaluating, rejecting
from whitebox.errors import ConfigError
from whitebox.models import OpenSegmentor, Segmentor, record, tap_names
from whitebox.models import replace as changed
from whitebox.models.attention import CBSA, subspace_layers
from whitebox.models.changes import zero
from whitebox.models.decoders.base import Prediction, class_scores
from whitebox.models.segmentor import Encoded
from whitebox.runs import Run

PATCHES = 4096  # of a photo, at most: a larger one is shown smaller
PICTURE = 640  # px, long side of the photo in a page
LABELS = 512  # px, long side of label maps in a page
CLASSES = 24  # whose maps are kept: those of the photo, largest first
CASES = 64  # predictions without a layer or head, at most
SIDE = 96  # of a pooled matrix of subspaces
LEVELS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)  # of noise where no curve was measured, in units of each tensor's rms


@dataclass(frozen=True)
class Noise:
    """At which noise predictions are made.

    Attributes:
        sigmas: levels, ascending. target, relative, seed: see `analysis.measures.noise`.
    """

    sigmas: tuple[float, ...] = LEVELS
    target: str = "decoder"
    relative: bool = True
    seed: int = 0


def about(run: Run) -> dict[str, Any]:
    """What a run is, whatever the photo: names, subspaces and class embeddings."""
    model, decoder = run.model, run.model.decoder
    spaces = []
    for name, layer in subspace_layers(model).items():
        bases_HPD = finite(layer.bases.detach().cpu().double().numpy(), name, run)
        spaces.append({"name": name, **_pooled(gram(bases_HPD), len(bases_HPD)), "overlaps": overlaps(bases_HPD)})
    learned = getattr(decoder, "class_embeddings", None)
    cosines = None
    if isinstance(learned, Tensor):
        unit_KD = unit_rows(finite(learned.detach()[0].cpu().double().numpy(), "the class embeddings", run))
        cosines = (unit_KD @ unit_KD.T).astype(np.float16)
    encoder = run.config.encoder
    return {
        "name": run.name,
        "decoder": run.config.decoder.name,
        "encoder": encoder.name,
        "dataset": run.data.name,
        "classes": list(model.classes),
        "palette": [list(colour) for colour in model.palette],
        "subspaces": spaces,
        "cosines": cosines,
    }


def _pooled(gram_MM: NDArray[np.float64], heads: int) -> dict[str, Any]:
    """|U U^T| in units of its mean diagonal, root mean squares over cells that lie within heads; 1 is full scale."""
    dim = len(gram_MM) // heads
    cells = min(dim, max(1, SIDE // heads))
    starts = [head * dim + (np.arange(cells) * dim) // cells for head in range(heads)]
    edges = np.concatenate(starts)
    unit = float(np.trace(gram_MM)) / len(gram_MM)
    squares = np.add.reduceat(np.add.reduceat(np.square(gram_MM / (unit or 1.0)), edges, 0), edges, 1)
    sizes = np.diff(np.append(edges, len(gram_MM)))
    pooled_MM = np.sqrt(squares / np.outer(sizes, sizes))
    peak = float(pooled_MM.max()) or 1.0
    return {"heads": heads, "dim": dim, "cells": cells, "peak": peak, "pooled": _shares(pooled_MM / peak)}


def _shares(values: Any) -> NDArray[np.uint8]:
    """Values in [0, 1] in steps of 1 / 255."""
    return np.asarray(np.rint(255 * np.clip(np.asarray(values, np.float64), 0, 1)), np.uint8)


@torch.no_grad()  # gradients are asked for of some tokens
def look(run: Run, path: Path, label: Path | None, table_256: UInt8 | None, noise: Noise) -> dict[str, Any]:
    """One photo.

    Args:
        label: its truth; None: there is none. table_256: see `read_truth`.

    Raises:
        DataError: a file cannot be read, or they do not fit.
        ModelError: what the model makes of it is not finite.
    """
    photo, notes = _opened(path, run)
    model, (h, w) = run.model, photo.grid
    heard = _Heard(run, photo)
    with evaluating(model), rejecting(model, run.inference.topk):
        encoded, said = heard.once()
        notes += heard.notes
        scores_KN = _scores(said)
        labels_hw = scores_KN.argmax(0).view(h, w)
        size = (photo.pixels_13hw.shape[-2], photo.pixels_13hw.shape[-1])
        predicted_HW = finite(_maps(model, said, size), "the prediction", run).argmax(0).cpu().numpy()
        truth_HW = truth_hw = None
        if label is not None and table_256 is not None:
            stored_HW = read_truth(label, photo, run, table_256)
            truth_hw = photo.labels(stored_HW)
            truth_HW = _resized(stored_HW, size)
        chosen = _chosen(labels_hw, truth_hw, model.num_classes)
        if len(chosen) < len(set(labels_hw.flatten().tolist())):
            notes.append(f"maps of the {len(chosen)} largest classes are kept.")
        depths = _depths(run, encoded, chosen)
        cases, more = _cases(run, encoded)
        noises = _noises(run, encoded, noise)
        layers, more_notes = heard.layers(labels_hw if truth_hw is None else truth_hw)
        other = _untrained(run, photo, encoded, labels_hw if truth_hw is None else truth_hw, layers)
    top_N, probability_N = labels_hw.flatten(), _probabilities(said, scores_KN).amax(0)
    small = _shrink(size, LABELS)
    return {
        "photo": photo.path.stem,
        "grid": [h, w],
        "cover": [h * photo.patch / size[0], w * photo.patch / size[1]],
        "shown": list(size),
        "prediction": _of_labels(_resized(predicted_HW.astype(np.uint16), small), model.num_classes),
        "label": None if truth_HW is None else _of_labels(_resized(truth_HW, small), model.num_classes),
        "patches": _of_labels(top_N.view(h, w).numpy(), model.num_classes),
        "labels": None if truth_hw is None else _of_labels(truth_hw.numpy(), model.num_classes),
        "probability": _shares(probability_N.view(h, w)),
        "chosen": chosen,
        "attention": heard.attention(),
        "energies": heard.energies(),
        "cosines": heard.cosines(),
        "layers": layers,
        "untrained": other,
        "scatter": heard.scatter(),
        "depths": depths,
        "stages": _stages(run, photo, chosen),
        "cases": cases,
        "noise": noises,
        "notes": list(dict.fromkeys([*notes, *more, *more_notes])),
    }


def picture(path: Path, run: Run) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The photo for a page, RGB, and its own size (height, width).

    Raises:
        DataError: it cannot be read.
    """
    import cv2

    image_HW3 = open_photo(path, run).image_HW3
    height, width = image_HW3.shape[:2]
    small = _shrink((height, width), PICTURE)
    shown_HW3 = cv2.resize(image_HW3, small[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(shown_HW3, np.uint8), (height, width)


def _opened(path: Path, run: Run) -> tuple[Photo, list[str]]:
    photo = open_photo(path, run)
    patches = math.prod(photo.grid)
    if patches <= PATCHES or isinstance(run.model, OpenSegmentor):
        return photo, []
    factor = math.sqrt(PATCHES / patches)
    whole = photo.whole
    height, width = (max(1, int(side * factor) // whole) * whole for side in photo.pixels_13hw.shape[-2:])
    small = F.interpolate(photo.pixels_13hw, (height, width), mode="area")
    return replace(photo, pixels_13hw=small), [
        f"{path.name} has {patches} patches: it is shown to the model at {width} x {height} px, in at most {PATCHES}."
    ]


def _shrink(size: tuple[int, int], longest: int) -> tuple[int, int]:
    factor = min(1.0, longest / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _resized(label_HW: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    import cv2

    return np.asarray(cv2.resize(label_HW, size[::-1], interpolation=cv2.INTER_NEAREST))


def _of_labels(labels: NDArray[Any], classes: int) -> NDArray[Any]:
    """In one byte each; of 255 classes and more in two, where 255 would be both a class and no label."""
    if classes <= IGNORE:
        return labels.astype(np.uint8)
    return np.where(labels == IGNORE, 65535, labels).astype(np.uint16)


def _maps(model: Segmentor, said: Prediction, size: tuple[int, int]) -> Tensor:
    """Scores of the classes at each pixel of the photo as the model sees it, (K, H, W)."""
    if isinstance(model, OpenSegmentor):
        return model.probabilities(said, size)[0]
    maps_KHW = model.upsample(said.masks_BKhw)[0, :, : size[0], : size[1]]
    if said.shares_BKK is None:
        return maps_KHW
    scores_xK = class_scores(maps_KHW.flatten(1).T, said.shares_BKK[0])
    return scores_xK.T.unflatten(1, size)


def _scores(said: Prediction) -> Tensor:
    """Scores of the classes at each patch, (K, N), on the CPU."""
    masks_KN = said.masks_BKhw[0].flatten(1).float()
    if said.shares_BKK is not None:
        masks_KN = class_scores(masks_KN.T, said.shares_BKK[0]).T
    return masks_KN.cpu()


def _probabilities(said: Prediction, scores_KN: Tensor) -> Tensor:
    """Of the classes at each patch, (K, N): softmax of logits, or each score's share of their sum."""
    if said.shares_BKK is None:
        return scores_KN.softmax(0)
    return scores_KN / scores_KN.sum(0, keepdim=True).clamp_min(1e-12)


def _chosen(labels_hw: Tensor, truth_hw: Tensor | None, classes: int) -> list[int]:
    """Classes of the photo, largest first; where there are few, all."""
    seen = [labels_hw.flatten(), *([] if truth_hw is None else [truth_hw.flatten()])]
    count_K = torch.cat(seen).long().bincount(minlength=IGNORE + 1)[:classes]
    order = count_K.argsort(descending=True, stable=True).tolist()
    return [index for index in order if count_K[index] > 0 or classes <= CLASSES][:CLASSES]


# --- the decoder, again ----------------------------------------------------------------------------------------------


def _decoded(run: Run, encoded: Any, change: AbstractContextManager[Any]) -> Prediction:
    with change, rejecting(run.model, run.inference.topk):
        return run.model.predict(encoded)


def _depths(run: Run, encoded: Encoded, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """What is predicted with the first layers alone, none to all: the others add nothing."""
    names = list(layers_of(run.model))
    found = []
    for depth in range(len(names) + 1) if 0 < len(names) <= CASES else ():
        off = {f"{name}.update": zero() for name in names[depth:]}
        said = _decoded(run, encoded, changed(run.model, off))
        shares_KN = _probabilities(said, _scores(said))
        found.append({"layers": depth, "labels": _patch_labels(said, run.model), "classes": _shares(shares_KN[chosen])})
    return found


def _cases(run: Run, encoded: Encoded) -> tuple[list[dict[str, Any]], list[str]]:
    """Predictions without each layer and each head; what is left out."""
    model, layers = run.model, layers_of(run.model)
    off: list[tuple[str, int | None, AbstractContextManager[Any]]] = [
        (name, None, changed(model, {f"{name}.update": zero()})) for name in list(layers)[:CASES]
    ]
    single, notes = droppable(layers), []
    if len(single) + len(layers) <= CASES:
        off += [(dropped[0], dropped[2], without_heads(model, [dropped])) for dropped in single]
    else:
        notes.append(f"{len(single)} heads are too many for a prediction without each: only layers are switched off.")
    return [
        {"layer": name, "head": head, "labels": _patch_labels(_decoded(run, encoded, change), model)}
        for name, head, change in off
    ], notes


def _patch_labels(said: Prediction, model: Segmentor) -> NDArray[Any]:
    scores_KN = _scores(said)
    return _of_labels(scores_KN.argmax(0).view(said.masks_BKhw.shape[-2:]).numpy(), model.num_classes)


def _noises(run: Run, encoded: Encoded, noise: Noise) -> dict[str, Any] | None:
    """Predictions under noise on the decoder's parameters, one draw; None: on something else, or there are none."""
    try:
        parameters = target_parameters(run.model, noise.target)
    except ConfigError:
        return None
    if not parameters or not all(name.startswith("decoder.") for name in parameters):
        return None
    found = []
    for sigma in noise.sigmas:
        with perturbed(parameters, sigma, seed=noise.seed, draw=0, relative=noise.relative):
            found.append(_patch_labels(_decoded(run, encoded, nullcontext()), run.model))
    return {
        "sigmas": list(noise.sigmas),
        "labels": np.stack(found),
        "target": noise.target,
        "relative": noise.relative,
        "seed": noise.seed,
    }


def _stages(run: Run, photo: Photo, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """Masks of attention-to-mask, stage by stage, and maps that a decoder refines; none where it has neither."""
    names = tap_names(run.model)
    if any(fnmatchcase(name, MASKS) for name in names):
        found = {name: masks_KN.sigmoid() for name, masks_KN in stage_masks(run.model, photo.pixels_13hw).items()}
        what = "sigmoid of the mask logits"
    elif "decoder.cost" in names:
        found = class_maps(run.model, photo.pixels_13hw, run.inference.topk)
        what = "cosine with the names, then sigmoid of what is said before each layer"
    else:
        return []
    return [
        {"name": name.removesuffix(".masks"), "what": what, "classes": _shares(maps_KN[list(chosen)])}
        for name, maps_KN in found.items()
        if maps_KN.shape[1] == math.prod(photo.grid)
    ]


# --- what is heard ---------------------------------------------------------------------------------------------------


@dataclass
class _Heard:
    """One forward pass, and what follows from it."""

    run: Run
    photo: Photo
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = self.run.model
        names = tap_names(model)
        self.names = names
        self.spaces = {name: each for name, each in subspace_layers(model).items() if name.startswith("decoder.")}
        try:
            self.stages: StageNumbers | None = StageNumbers(self.run, Convention(), stages_of(self.run, False, []))
        except ConfigError as error:  # a decoder that has maps in place of tokens
            self.stages = None
            self.notes.append(str(error).split(": ", 1)[0])
        self.moves = judged(self.spaces) if self.spaces else []
        wanted = [*(self.stages.taps if self.stages else ()), *(taps_of_moves(self.spaces) if self.moves else ())]
        wanted += [name for name in names if fnmatchcase(name, "decoder.*.membership")]
        wanted += [f"{name}.{tap}" for name in self.spaces for tap in ("projected",) if f"{name}.{tap}" in names]
        wanted += [name for name in ("decoder.patches", "decoder.classes") if name in names]
        self.wanted = list(dict.fromkeys(wanted))
        self.layers_heard: list[dict[str, Any]] = []
        self.encoder_layers = [name for name in names if fnmatchcase(name, "encoder.layers.*.attention")]
        self.classes_in_front = model.encoder.prefix_tokens

    def once(self) -> tuple[Encoded, Prediction]:
        """The pass; what the decoder takes, and what it says."""
        model = self.run.model
        with hearing(model, self._hear), record(model, *self.wanted) as heard:
            encoded = model.encode(self.photo.pixels_13hw)
            said = model.predict(encoded)
        self.heard = {name: finite(value, name, self.run) for name, value in heard.items()}
        return encoded, said

    def _hear(self, name: str, q_HMP: Tensor, k_HCP: Tensor) -> None:
        N, K, front = math.prod(self.photo.grid), self.run.model.num_classes, self.classes_in_front
        finite(q_HMP, f"queries of {name}", self.run)
        finite(k_HCP, f"keys of {name}", self.run)
        M, C = q_HMP.shape[1], k_HCP.shape[1]
        short = name.removesuffix(".attention")
        if name.startswith("encoder."):
            if (N + front, N + front) != (M, C):
                return
            if front and getattr(getattr(self.run.model.encoder, "vit", None), "cls_token", None) is not None:
                row_HN = (q_HMP[:, :1] @ k_HCP.mT).softmax(-1)[:, 0, front:].cpu().float()
                self.layers_heard.append(
                    {"name": f"{short} class token", "of": "class token", "values": row_HN.half().numpy()}
                )
            if name == self.encoder_layers[-1]:
                self._add(short, "patches", front, q_HMP, k_HCP)
            return
        layer = self.run.model.get_submodule(short)
        if isinstance(layer, CBSA):
            self._add(short, "representatives", 0, q_HMP, k_HCP)
        elif (M, C) == (N + K, N + K):
            self._add(short, "tokens", 0, q_HMP, k_HCP)
        elif (M, C) == (N, N):
            self._add(short, "patches", 0, q_HMP, k_HCP)
        elif M == K and C in (N, N + front):
            self._add(short, "classes", C - N, q_HMP, k_HCP)

    def _add(self, name: str, rows: str, front: int, q_HMP: Tensor, k_HCP: Tensor) -> None:
        found = factors(q_HMP, k_HCP)
        self.layers_heard.append(
            {
                "name": name,
                "of": rows,
                "front": front,
                "dim": k_HCP.shape[-1],
                "error": found.error,
                "keys": found.k_HrC,
                "queries": None if found.q_HrM is found.k_HrC else found.q_HrM,
                "steps": found.step_H,
                "bias": found.b_HC,
            }
        )

    def attention(self) -> list[dict[str, Any]]:
        """Of each layer, decoder first: queries and keys, or maps where there are no rows to choose from."""
        N = math.prod(self.photo.grid)
        found = list(self.layers_heard)
        for name, value in self.heard.items():
            if fnmatchcase(name, "decoder.*.membership") and value.shape[-1] >= N:
                shares_HN = value[0, :, :N].cpu().float().half().numpy()
                found.append({"name": name.removesuffix(".membership"), "of": "membership", "values": shares_HN})
        return sorted(found, key=lambda each: not each["name"].startswith("decoder."))

    def _projected(self, name: str) -> Tensor | None:
        """Coordinates of the patches in a layer's subspaces, (H, N, P)."""
        N, layer = math.prod(self.photo.grid), self.spaces[name]
        if f"{name}.projected" in self.heard:
            w_HTP = self.heard[f"{name}.projected"][0]
        elif f"{name}.tokens" in self.heard and f"{name}.update" in self.heard:
            before_1TD = self.heard[f"{name}.tokens"] - self.heard[f"{name}.update"]
            w_HTP = in_heads(layer.norm(before_1TD), layer.bases.detach())[0]
        else:
            return None
        return w_HTP[:, :N] if w_HTP.shape[1] >= N else None

    def energies(self) -> list[dict[str, Any]]:
        """Of each layer the share that each head has in the energy of a patch's coordinates, (H, N)."""
        found = []
        for name in self.spaces:
            w_HNP = self._projected(name)
            if w_HNP is not None:
                energy_HN = float64(w_HNP).square().sum(-1)
                shares_HN = energy_HN / energy_HN.sum(0, keepdim=True).clamp_min(1e-30)
                found.append({"name": name, "shares": _shares(shares_HN.cpu())})
        return found

    def cosines(self) -> NDArray[np.float16] | None:
        """Of class embeddings after the decoder, (K, K)."""
        if "decoder.classes" not in self.heard:
            return None
        unit_KD = self.heard["decoder.classes"][0].cpu().double()
        return (unit_KD @ unit_KD.T).half().numpy()

    def layers(self, labels_hw: Tensor) -> tuple[list[dict[str, Any]], list[str]]:
        """Numbers of the photo's tokens along the layers."""
        rows: dict[str, dict[str, Any]] = {}
        notes: list[str] = []
        if self.stages is not None:
            numbers = self.stages.windows(self.heard, labels_hw.flatten()[None])
            for stage in self.stages.stages:
                if not stage.classes:
                    own = {key: numbers[stage.name, key] for key in ("rate", "reduction", "effective_rank", "zeros")}
                    values = {key: float(value.flatten()[0]) for key, value in own.items()}
                    rows[stage.name] = {"name": stage.name, "position": stage.position, **values}
        known = {name: float64(value[0]) for name, value in self.heard.items()} if self.moves else {}
        for each in self.moves:
            try:
                move = move_of(each, known, self.photo.grid, EPS)
                found = float(cosine(move.update_MD, steepest(move, move.x_MD)))
            except KeyError:  # what it needs was not heard: an untrained model has the same taps, another may not
                continue
            row = rows.setdefault(each.name, {"name": each.name, "position": _position(self.run, each.name)})
            row.setdefault("cosine", {})[each.objective] = found
        return sorted(rows.values(), key=lambda row: row["position"]), notes

    def scatter(self) -> dict[str, Any] | None:
        """Patch tokens of all stages in the first three principal components of them together, (stage, N, 3).

        Each stage is normalised as layers see it (LayerNorm without gain and bias) and centred, so that stages share
        one space and none outweighs the others.
        """
        if self.stages is None:
            return None
        N = math.prod(self.photo.grid)
        names, parts = [], []
        for stage in self.stages.stages:
            if stage.classes or stage.tap not in self.heard:
                continue
            tokens_TD = self.heard[stage.tap][0]
            front = self.classes_in_front if tokens_TD.shape[0] == N + self.classes_in_front else 0
            if tokens_TD.shape[0] < N + front:
                continue
            x_ND = float64(tokens_TD[front : front + N])
            x_ND = F.layer_norm(x_ND, x_ND.shape[-1:])
            names.append(stage.name)
            parts.append((x_ND - x_ND.mean(0)).cpu())
        if not parts or len({part.shape[1] for part in parts}) > 1:
            return None
        together = torch.cat(parts)
        directions_3D = _leading(together)
        scores_SN3 = torch.stack([part @ directions_3D.T for part in parts])
        shares = [
            float(scores.square().sum() / part.square().sum().clamp_min(1e-30))
            for scores, part in zip(scores_SN3, parts, strict=True)
        ]
        return {"names": names, "scores": scores_SN3.half().numpy(), "shares": shares}


def _leading(x_ND: Tensor) -> Tensor:
    """The three leading right singular vectors, the entry of largest magnitude positive; (3, D)."""
    directions_D3 = torch.linalg.eigh(x_ND.T @ x_ND)[1][:, -3:].flip(-1)
    largest = directions_D3.gather(0, directions_D3.abs().argmax(0, keepdim=True))
    return (directions_D3 * largest.sign()).T


def _position(run: Run, name: str) -> int:
    own = len(getattr(run.model.decoder, "layers", ()))
    return int(name.rpartition(".")[2]) + 1 + (own if ".cross_layers." in name else 0)


def _untrained(
    run: Run, photo: Photo, encoded: Encoded, labels_hw: Tensor, layers: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The same numbers of a model that was drawn anew (seed 0), behind the same encoder where that is frozen."""
    if not layers:
        return []
    with torch.random.fork_rng(devices=[]):
        other = untrained(run, 0)
    heard = _Heard(other, photo)
    heard.layers_heard = []
    with evaluating(other.model), record(other.model, *heard.wanted) as known:
        other.model.predict(
            encoded if other.model.encoder is run.model.encoder else other.model.encode(photo.pixels_13hw)
        )
    heard.heard = dict(known)
    return heard.layers(labels_hw)[0]
