"""What papers say a model costs; their numbers stand in the module of each paper."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.maths.conventions import BLOCKS, MODEL
from experiments import cbsa, depict, segvit
from whitebox.config import RunConfig, architecture, resolve

QUANTITIES = {"decoder GFLOPs": BLOCKS, "model GMACs": MODEL}  # as papers' modules call them, as profiles do
CLASSES = 150  # ADE20K
SIZES = {"tiny": 512, "small": 512, "base": 512, "large": 640, "shrunk": 640}  # px
COSTS = {
    each.model: each
    for each in (*depict.GFLOPS, *cbsa.GFLOPS, *segvit.COSTS)
    if each.data.startswith(("ADE20K", f"{CLASSES} classes"))
}


def published_costs(config: RunConfig, size: int, classes: int) -> Mapping[str, Any]:
    """The published cost of a model for one image of ``size`` px, for ``reported`` of its profile; mostly empty.

    Only where a paper has this very model and setting.
    """
    if config.model not in COSTS or (classes, size) != (CLASSES, SIZES[config.model.split("-")[-1]]):
        return {}
    if architecture(config) != architecture(resolve(config.model)):
        return {}
    each = COSTS[config.model]
    return {QUANTITIES[each.quantity]: {"value": each.value, "source": each.source}}
