"""Where the variance of the mIoU under noise comes from: seed, unit, draw, and the rest (`analysis.maths.variance`).

Everything is in the rows of the sweep. The draws of a seed of the noise are the same for all trainings, and all have
seen the same units, so the three are crossed.

Layout of ``measured`` (standard deviations, fractions; null where it is unknown, as the seed of one training)::

    {"seeds": 3, "units": 10, "draws": 5, "levels": [{"sigma": 0.1, "value": 0.31, "seed": 0.01, "unit": 0.05,
     "draw": 0.03, "residual": 0.02, "shares": {"seed": 0.05, "unit": 0.4, "draw": 0.5, "residual": 0.05}}, ...]}

``shares`` are those of the variance of the mean over the seeds, units and draws there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.ask import ask
from analysis.maths.variance import parts_with_draws
from analysis.measures.changes import miou_of_sums, rows_of
from analysis.measures.extras import SEED
from analysis.record import Answer, Question, Record, RecordError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from analysis.consumed import Chosen
    from analysis.measures.noise import Noise
    from whitebox.runs import Run, SavedRun

KIND = "noise-variance"


def noise_variance(
    record: Record, runs: Sequence[SavedRun | Run], noise: Noise, chosen: Chosen, folder: Path, *, again: bool = False
) -> Record:
    """The variance behind a sweep, stored below ``folder``.

    Args:
        record: the sweep of a run, or of a family.
        runs: its trainings, by seed.

    Raises:
        RecordError: rows of the sweep are no longer there.
    """
    question = Question(
        kind=KIND,
        model=record.model,
        data=record.data,
        weights=record.weights,
        variant=record.variant or "input",
        seeds=record.seeds,
        settings=record.settings,
    )

    def answer() -> Answer:
        levels = [point["sigma"] for point in record.measured["curve"] if point["sigma"] > 0]
        tables_L = list(zip(*(_cells(run, noise, chosen, levels) for run in runs), strict=True)) if levels else []
        found = [{"sigma": sigma, **_level(np.stack(cells))} for sigma, cells in zip(levels, tables_L, strict=True)]
        units = record.settings["unit"]["count"]
        return Answer(measured={"seeds": len(runs), "units": units, "draws": noise.draws, "levels": found}, n=record.n)

    return ask(question, answer, folder / "records", again=again)


def _cells(run: SavedRun | Run, noise: Noise, chosen: Chosen, levels: Sequence[float]) -> list[NDArray[np.float64]]:
    """Pseudo-values of the mIoU of one training at each level, (U, D)."""
    from analysis.maths.resampling import sampled

    images = noise.consumes(run, chosen)
    with rows_of(run, images, (noise.output or run.folder) / "sweeps") as rows:
        found = []
        for sigma in levels:
            keys = [noise.keys(sigma, draw) for draw in range(noise.draws)]
            if any(key not in rows for pair in keys for key in pair):
                raise RecordError(
                    f"{rows.path} lacks rows of the sweep: --again measures them anew; or leave out --variance."
                )
            counts_XNC = np.stack([rows.counts(key).reshape(len(images), -1) for pair in keys for key in pair])
            cells_XU = sampled(counts_XNC, miou_of_sums, images.units.of_N, resamples=1, seed=SEED).cells_SUM[..., 0]
            found.append(cells_XU.reshape(noise.draws, -1, cells_XU.shape[1]).mean(1).T)
    return found


def _level(cells_SUD: NDArray[np.float64]) -> dict[str, Any]:
    return {"value": float(cells_SUD.mean()), **asdict(parts_with_draws(cells_SUD))}
