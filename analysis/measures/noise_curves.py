"""The curve of a run under noise, and the noise that halves its mIoU; see `noise`.

Shapes: D draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.consumed import EvaluatedImages
from analysis.maths.halving import search_half
from analysis.measurement import Progress
from analysis.measures.changes import CLEAN, ChangedRun, MeanScores, draw_interval, unit_interval
from analysis.measures.noise import Noise
from analysis.measures.rows import Key
from whitebox.runs import Run


def measured_noise(run: Run, noise: Noise, images: EvaluatedImages, folder: Path, advance: Progress) -> dict[str, Any]:
    """A run at each level of a noise sweep, and its sigma_50; rows are kept in ``folder``.

    Raises:
        WhiteboxError: see `Rows`, ``whitebox.engine.evaluate``.
    """
    changed = ChangedRun(run, images, noise.memory, noise.target)
    notes, levels = [], noise.levels
    if noise.target != "input" and not changed.parameters:
        notes.append(f"it has no {noise.target}, so the noise changes nothing and is not measured.")
        levels = ()
    with changed.rows(folder) as rows:

        def complete(keys: Sequence[Key]) -> None:
            rows.complete(keys, changed.measure, advance)

        complete([CLEAN, *(key for draw in range(noise.draws) for sigma in levels for key in noise.keys(sigma, draw))])
        miou = MeanScores(rows, images.units.of_N)
        curve = [curve_point(0.0, [[CLEAN]], miou, noise.seed)]
        curve += [
            curve_point(sigma, [noise.keys(sigma, draw) for draw in range(noise.draws)], miou, noise.seed)
            for sigma in levels
        ]
        measured: dict[str, Any] = {"curve": curve}
        if noise.halving and levels and miou([CLEAN]) > 0:
            measured["sigma_50"] = halving_noise(noise, miou, complete)
            if measured["sigma_50"]["value"] is None:
                notes.append("no noise between the levels, or some doublings beyond, halves its mIoU in every draw.")
        rows.merge()
    return {**measured, "notes": notes, "classes": list(images.classes)}


def curve_point(sigma: float, draws: Sequence[Sequence[Key]], miou: MeanScores, seed: int) -> dict[str, Any]:
    """One point of a curve, see `noise`; ``draws``: the rows of each draw."""
    values_D = [miou(keys) for keys in draws]
    every = [key for keys in draws for key in keys]
    single = [miou([key]) for key in every]
    mean, low, high = draw_interval(values_D, within=(0.0, 1.0))
    edges = unit_interval(mean, miou.resampled(every, seed), len(set(miou.unit_N)), most=1.0)
    return {
        "sigma": sigma,
        "miou": {"value": mean, "low": low, "high": high},
        "smallest": min(single),
        "largest": max(single),
        "images": {"value": mean, "low": edges[0], "high": edges[1]},
        "draws": single,
    }


def halving_noise(noise: Noise, miou: MeanScores, complete: Callable[[Sequence[Key]], None]) -> dict[str, Any]:
    """sigma_50 of each draw, their geometric mean and its interval; None where a draw has none.

    Args:
        complete: measures rows that are missing.
    """
    half = miou([CLEAN]) / 2
    searches = [
        search_half(half, {sigma: miou(noise.keys(sigma, draw)) for sigma in noise.levels})
        for draw in range(noise.draws)
    ]
    found: dict[int, float] = {}
    wanted: dict[int, float] = {}

    def go_on(draw: int, value: float | None) -> None:
        try:
            wanted[draw] = next(searches[draw]) if value is None else searches[draw].send(value)
        except StopIteration as end:
            wanted.pop(draw, None)
            found[draw] = end.value

    for draw in range(noise.draws):
        go_on(draw, None)
    while wanted:  # all draws take a step together, so that processes share it
        complete([key for draw, sigma in wanted.items() for key in noise.keys(sigma, draw)])
        for draw, sigma in list(wanted.items()):
            go_on(draw, miou(noise.keys(sigma, draw)))
    sigmas_D = [found[draw] for draw in range(noise.draws)]
    logarithms = draw_interval(np.log(sigmas_D))
    value, low, high = (None if math.isnan(edge) else math.exp(edge) for edge in logarithms)
    return {"value": value, "low": low, "high": high, "draws": sigmas_D}
