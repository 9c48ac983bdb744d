"""Class embeddings of a model, before and after its decoder; see `orthogonality`.

Shapes: K classes, D width, B windows of an image.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import nn

from analysis.consumed import Images
from analysis.maths.intervals import estimates
from analysis.maths.packing import packed
from analysis.maths.subspaces import Array, class_numbers, unit_rows
from analysis.measurement import Progress
from analysis.measures.finite import finite
from whitebox.models.taps import record, tap_names
from whitebox.runs import Run


def tap_after(model: nn.Module) -> str | None:
    """Where class embeddings leave a decoder: as masks compare them, else after the last cross-attention (SegViT)."""
    taps = tap_names(model)
    if "decoder.classes" in taps:
        return "decoder.classes"
    return next((name for name in reversed(taps) if fnmatchcase(name, "decoder.cross_layers.*.tokens")), None)


@torch.inference_mode()
def embeddings_after(run: Run, tap: str, images: Images, seed: int, advance: Progress) -> dict[str, Any]:
    """The class embeddings that ``tap`` gives: numbers of each window, meaned over an image's windows."""
    rows: list[dict[str, float]] = []
    sum_KK = np.zeros((run.model.num_classes, run.model.num_classes))
    for sample in images.each(run, advance):
        with record(run.model, tap) as activations:
            run.model.masks(sample.pixels_B3HW)
        q_BKD = finite(activations[tap].cpu().double().numpy(), f"{tap} of {sample.name}", run)
        windows = [class_numbers(q_KD) for q_KD in q_BKD]
        rows.append({name: float(np.mean([window[name] for window in windows])) for name in windows[0]})
        sum_KK += np.mean([cosines(q_KD) for q_KD in q_BKD], axis=0)
    return {
        "numbers": {
            name: estimates([row[name] for row in rows], seed=seed, unit_N=images.units.of_N) for name in rows[0]
        },
        "cosines": packed(sum_KK / len(images)),
    }


def cosines(q_KD: Array) -> Array:
    """Between each two rows, (K, K)."""
    unit_KD = unit_rows(q_KD)
    return np.asarray(unit_KD @ unit_KD.T)


def overlap_note(heads: int, dim: int, width: int) -> str:
    """What there is to say of subspaces that do not fit beside each other."""
    together = f"{heads} heads of {dim} dimensions are more than the width {width}, so they cannot all be orthogonal"
    shared = 2 * dim - width
    if heads < 2 or shared <= 0:
        return f"{together}."
    return f"{together}; of the {dim} angles between two heads at least {shared} are 0."
