"""The moves of a decoder's layers in one window, judged, and their numbers over all images; see `alignment`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from analysis.maths.conventions import MULTIPLES
from analysis.maths.intervals import estimates
from analysis.maths.moves import Array, captured, compression, judge, refinement
from whitebox.models.attention import SubspaceAttention, SubspaceLayer

CROSS = ".cross_layers."


def taps(layers: Mapping[str, SubspaceLayer]) -> list[str]:
    """What has to be heard."""
    wanted = [f"{name}.{tap}" for name in layers for tap in ("update", "tokens")]
    wanted += [f"{name}.projected" for name, layer in layers.items() if isinstance(layer, SubspaceAttention)]
    wanted += [f"{name}.compressed" for name, layer in layers.items() if hasattr(layer, "compressed")]
    return [*wanted, "decoder.patches"] if any(CROSS in name for name in layers) else wanted


def judge_window(
    name: str,
    layer: SubspaceLayer,
    known: Mapping[str, Tensor],
    eps: float,
    at: str,
    draws: int,
    generator: torch.Generator,
) -> dict[str, Array]:
    """What one layer did in one window; ``known``: what was heard, float64. See `analysis.maths.moves.judge`."""
    after, update = known[f"{name}.tokens"], known[f"{name}.update"]
    if f"{name}.compressed" in known:  # of CRATE: ISTA follows, which is not there to compress
        after, update = known[f"{name}.compressed"], known[f"{name}.compressed"] - (after - update)
    if CROSS not in name:
        return judge(compression(layer, after, update, known.get(f"{name}.projected"), eps, at), generator, draws)
    patches_ND = known["decoder.patches"]
    move = refinement(cast(SubspaceAttention, layer), after, update, known[f"{name}.projected"], patches_ND)
    numbers = judge(move, generator, draws)
    for when, q_KD in (("before", after - update), ("after", after)):
        numbers[f"captured_{when}"] = 100 * captured(q_KD, patches_ND).cpu().numpy()
    return numbers


def summary(
    name: str, layer: SubspaceLayer, rows: Sequence[Mapping[str, Array]], seed: int, unit_N: Sequence[str]
) -> dict[str, Any]:
    """One layer over all images: means over an image's windows, then over images."""

    def over_images(key: str) -> Any:
        return estimates([row[key].mean(0) for row in rows], seed=seed, unit_N=unit_N) if key in rows[0] else None

    def over_draws(key: str) -> dict[str, Any]:
        single = np.percentile(np.concatenate([row[key].ravel() for row in rows]), (2.5, 97.5))
        return {**estimates([row[key].mean() for row in rows], seed=seed, unit_N=unit_N), "single": single.tolist()}

    ends = np.concatenate([np.isin(row["multiple"], (MULTIPLES[0], MULTIPLES[-1])) for row in rows])
    step = getattr(layer, "step_size", None)
    summary = {
        "name": name,
        "objective": "principal directions" if CROSS in name else "compression",
        "step": step.item() if step is not None and step.numel() == 1 else None,
        **{key: over_images(key) for key in ("before", "cosine", "derived", "change", "gradient", "multiple", "best")},
        "at_end": float(ends.mean()),
        "curve": over_images("curve"),
        "random": {key: over_draws(f"random_{key}") for key in ("cosine", "change")},
    }
    cosines, changes = over_images("head_cosine"), over_images("head_change")
    if CROSS in name:
        summary["heads"] = [{"cosine": each, "change": None} for each in cosines]
        summary["captured"] = {when: over_images(f"captured_{when}") for when in ("before", "after")}
    else:
        known = cosines or [None] * len(changes)
        summary["heads"] = [{"cosine": c, "change": each} for c, each in zip(known, changes, strict=True)]
    return summary
