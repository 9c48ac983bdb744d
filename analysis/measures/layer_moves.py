"""The moves of a decoder's layers in one window, judged, and their numbers over all images; see `alignment`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from analysis.maths.coding_rate import coding_rate
from analysis.maths.conventions import DISTORTIONS, MULTIPLES
from analysis.maths.intervals import estimates
from analysis.maths.moves import (
    Array,
    Move,
    captured,
    compression,
    contraction,
    judge,
    normed,
    over_distortions,
    refinement,
    sparsification,
    variational,
)
from analysis.maths.objectives import given_representatives, projected, rates
from whitebox.models.attention import CBSA, TSSA, SubspaceAttention, SubspaceLayer
from whitebox.models.decoders.crate import CrateLayer

CROSS = ".cross_layers."
COMPRESSION, DIRECTIONS, BOUND, CONTRACTION, SPARSE = (
    "compression",
    "principal directions",
    "variational bound",
    "contraction",
    "sparse rate",
)


class Judged(NamedTuple):
    """A layer, and one objective that it is judged by."""

    name: str
    layer: SubspaceLayer
    objective: str


def judged(layers: Mapping[str, SubspaceLayer]) -> list[Judged]:
    """Every layer by R^c (cross-attention: by principal directions), and by its own objective where that is another."""
    found = []
    for name, layer in layers.items():
        found.append(Judged(name, layer, DIRECTIONS if CROSS in name else COMPRESSION))
        own = {TSSA: BOUND, CBSA: CONTRACTION, CrateLayer: SPARSE}.get(type(layer))
        if own is not None:
            found.append(Judged(name, layer, own))
    return found


def taps(layers: Mapping[str, SubspaceLayer]) -> list[str]:
    """What has to be heard."""
    wanted = [f"{name}.{tap}" for name in layers for tap in ("update", "tokens")]
    for name, layer in layers.items():
        for kind, more in _HEARD.items():
            if isinstance(layer, kind):
                wanted += [f"{name}.{tap}" for tap in more]
    return [*wanted, "decoder.patches"] if any(CROSS in name for name in layers) else wanted


_HEARD: dict[type, tuple[str, ...]] = {
    SubspaceAttention: ("projected",),
    TSSA: ("projected", "membership"),
    CBSA: ("projected", "attention"),
    CrateLayer: ("compressed", "sparse"),
}


class Way(NamedTuple):
    """How a window is judged.

    Attributes:
        eps, at: of the objectives. draws: random updates. steps: of the path along the gradient.
        grid: h x w patches.
    """

    eps: float
    at: str
    draws: int
    steps: int
    grid: tuple[int, int]
    generator: torch.Generator


def judge_window(each: Judged, known: Mapping[str, Tensor], way: Way) -> dict[str, Array]:
    """What one layer did in one window; ``known``: what was heard, float64. See `analysis.maths.moves.judge`."""
    name, layer, objective = each
    after = known[f"{name}.tokens"]
    before = after - known[f"{name}.update"]
    if isinstance(layer, CrateLayer):  # ISTA follows, which is not there to compress
        after = known[f"{name}.compressed"]
    numbers = judge(move_of(each, known, way.grid, way.eps, way.at), way.generator, way.draws, way.steps)
    if objective == DIRECTIONS:
        for when, q_KD in (("before", before), ("after", after)):
            numbers[f"captured_{when}"] = 100 * captured(q_KD, known["decoder.patches"]).cpu().numpy()
        return numbers
    numbers |= over_distortions([move_of(each, known, way.grid, eps, way.at) for eps in DISTORTIONS])
    if objective == CONTRACTION:
        numbers["given_change"] = _given(cast(CBSA, layer), before, after, known[f"{name}.attention"], way.eps)
    if objective == SPARSE:
        numbers |= _sparse_rate_parts(cast(CrateLayer, layer), before, after, known[f"{name}.sparse"], way.eps)
    return numbers


def move_of(each: Judged, known: Mapping[str, Tensor], grid: tuple[int, int], eps: float, at: str = "tokens") -> Move:
    """What one layer did to the tokens of one window; ``known``: what was heard of it (`taps`), float64."""
    name, layer, objective = each
    after, update = known[f"{name}.tokens"], known[f"{name}.update"]
    if objective == DIRECTIONS:
        heard_HNP = known[f"{name}.projected"]
        return refinement(cast(SubspaceAttention, layer), after, update, heard_HNP, known["decoder.patches"])
    if isinstance(layer, CrateLayer):
        before, after = after - update, known[f"{name}.compressed"]
        update = after - before
    if objective == BOUND:
        heard = known[f"{name}.projected"], known[f"{name}.membership"]
        return variational(cast(TSSA, layer), after, update, *heard, eps, at)
    if objective == CONTRACTION:
        heard = known[f"{name}.projected"], known[f"{name}.attention"]
        return contraction(cast(CBSA, layer), after, update, *heard, grid, eps, at)
    if objective == SPARSE:
        crate = cast(CrateLayer, layer)
        return sparsification(normed(crate.sparse_norm, after), known[f"{name}.sparse"], crate.sparsity, eps)
    return compression(layer, after, update, known.get(f"{name}.projected"), eps, at)


def _given(layer: CBSA, before_ND: Tensor, after_ND: Tensor, weights_HRN: Tensor, eps: float) -> Array:
    """Change in percent of the rate of tokens given their representatives, seen through the layer's LayerNorm."""

    def rate(z_ND: Tensor) -> Tensor:
        w_HNP = projected(normed(layer.norm, z_ND), layer.bases.detach())
        return rates(given_representatives(w_HNP, weights_HRN), eps).sum()

    start = rate(before_ND)
    return cast(Array, (100 * (rate(after_ND) - start) / start).cpu().numpy())


def _sparse_rate_parts(
    layer: CrateLayer, before_ND: Tensor, compressed_ND: Tensor, sparse_ND: Tensor, eps: float
) -> dict[str, Array]:
    """R, R^c and lambda |Z|_1 of the tokens that enter a layer, leave its MSSA, and leave its ISTA, (3,) each.

    All as ISTA sees them: the first two after its LayerNorm.
    """
    stages = [*(normed(layer.sparse_norm, z_ND) for z_ND in (before_ND, compressed_ND)), sparse_ND]
    bases_HPD = layer.bases.detach()
    parts = {
        "parts_rate": [coding_rate(z_ND, eps) for z_ND in stages],
        "parts_compression": [rates(projected(z_ND, bases_HPD), eps).sum() for z_ND in stages],
        "parts_sparsity": [layer.sparsity * z_ND.abs().sum(-1).mean() for z_ND in stages],
    }
    return {name: torch.stack(values).cpu().numpy() for name, values in parts.items()}


def summary(each: Judged, rows: Sequence[Mapping[str, Array]], seed: int, unit_N: Sequence[str]) -> dict[str, Any]:
    """One layer over all images: means over an image's windows, then over images."""

    def over_images(key: str) -> Any:
        return estimates([row[key].mean(0) for row in rows], seed=seed, unit_N=unit_N) if key in rows[0] else None

    def over_draws(key: str) -> dict[str, Any]:
        single = np.percentile(np.concatenate([row[key].ravel() for row in rows]), (2.5, 97.5))
        return {**estimates([row[key].mean() for row in rows], seed=seed, unit_N=unit_N), "single": single.tolist()}

    numbers = ("before", "cosine", "derived", "change", "gradient", "path", "multiple", "best")
    ends = np.concatenate([np.isin(row["multiple"], (MULTIPLES[0], MULTIPLES[-1])) for row in rows])
    step = getattr(each.layer, "step_size", None)
    found = {
        "name": each.name,
        "objective": each.objective,
        "step": step.item() if step is not None and step.numel() == 1 else None,
        **{key: over_images(key) for key in numbers},
        "at_end": float(ends.mean()),
        "curve": over_images("curve"),
        "random": {key: over_draws(f"random_{key}") for key in ("cosine", "change")},
        "heads": _heads(each.objective, over_images),
    }
    if each.objective == DIRECTIONS:
        return {**found, "captured": {when: over_images(f"captured_{when}") for when in ("before", "after")}}
    found["range"] = {key: over_images(f"range_{key}") for key in ("cosine", "derived", "change")}
    if each.objective == CONTRACTION:
        found["given"] = over_images("given_change")
    if each.objective == SPARSE:
        found["parts"] = _parts(rows, seed, unit_N)
    return found


def _heads(objective: str, over_images: Callable[[str], Any]) -> list[dict[str, Any]]:
    """Of each head the cosine and the change of its own term."""
    cosines, changes = over_images("head_cosine"), over_images("head_change")
    if objective == SPARSE:  # its terms are no heads
        return []
    if objective == DIRECTIONS:
        return [{"cosine": each, "change": None} for each in cosines]
    known = cosines or [None] * len(changes)
    return [{"cosine": c, "change": each} for c, each in zip(known, changes, strict=True)]


def _parts(rows: Sequence[Mapping[str, Array]], seed: int, unit_N: Sequence[str]) -> dict[str, Any]:
    """The sparse rate reduction R - R^c - lambda |Z|_1 and its parts: before a layer, and changes by MSSA and ISTA."""
    terms = {name: np.stack([row[f"parts_{name}"].mean(0) for row in rows]) for name in _PARTS}
    terms = {"total": terms["rate"] - terms["compression"] - terms["sparsity"], **terms}
    return {
        name: dict(
            zip(
                ("before", "by_mssa", "by_ista"),
                estimates(np.concatenate([values_N3[:, :1], np.diff(values_N3)], axis=1), seed=seed, unit_N=unit_N),
                strict=True,
            )
        )
        for name, values_N3 in terms.items()
    }


_PARTS = ("rate", "compression", "sparsity")
