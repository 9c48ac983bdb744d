"""How much noise a model bears: mIoU under noise on its parameters or on photos, and the noise that halves it.

Two sources of error are kept apart. *Draws*: other random numbers would give another curve; the interval is Student's
t over draws (over pairs of draws where they are antithetic), beside the smallest and the largest mIoU. *Images*: other
images would give another mIoU; the interval is the bootstrap's over images, of the mean over draws.

sigma_50 is the noise that halves the clean mIoU: for each draw by bisection in log sigma, begun at the measured levels,
to two levels 5 % apart, and by interpolation between these. The value is the geometric mean over draws, its interval
Student's t of the logarithms. Curves need not fall everywhere: of several crossings it is the one at the lowest levels.

Where only the decoder is perturbed, the encoder runs once (``whitebox.engine.encoded``). What is measured is kept row
by row (``analysis.measures.rows``), so a sweep goes on where it stopped.

Shapes: D draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.maths.perturbation import LARGEST, TARGETS
from analysis.measures.changes import CLEAN, Bench, MeanScores, draw_interval, percentile_interval
from analysis.measures.images import Progress
from analysis.measures.rows import Key
from analysis.record import Record
from whitebox.catalog import nearest
from whitebox.errors import ConfigError
from whitebox.runs import Run

PARAMETERS, PIXELS = "parameter-noise", "input-noise"  # kinds of records
TOLERANCE = 1.05  # quotient of the two levels between which sigma_50 is interpolated
_WIDEN = 10  # halvings or doublings beyond the levels, in search of sigma_50


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A noise sweep.

    Attributes:
        levels: sigma, ascending, above 0.
        target: of ``analysis.maths.perturbation.TARGETS``.
        relative: sigma in units of each tensor's root mean square.
        draws: D.
        antithetic: each draw also with the opposite sign.
        seed: of the noise, and of the bootstrap.
        halving: look for sigma_50.
    """

    levels: tuple[float, ...]
    target: str = "decoder"
    relative: bool = False
    draws: int = 5
    antithetic: bool = False
    seed: int = 0
    halving: bool = True

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            hint = nearest(self.target, list(TARGETS))
            raise ConfigError(f"Unknown --target {self.target!r}{hint} There are {', '.join(TARGETS)}.")
        if self.relative and self.target == "input":
            raise ConfigError("--relative scales noise by the parameters it is added to: leave it out for the input.")

    def keys(self, sigma: float, draw: int) -> list[Key]:
        """The rows of one draw at one level: one, or the two of an antithetic pair."""
        shared = {"target": self.target, "relative": self.relative, "sigma": sigma, "seed": self.seed, "draw": draw}
        return [{**shared, "sign": sign} for sign in ((1, -1) if self.antithetic else (1,))]


def measure_noise(
    run: Run, noise: Noise, folder: Path, *, split: str | None, limit: int | None, memory: int, advance: Progress
) -> Record:
    """A run at each level of a noise sweep, and its sigma_50; rows are kept in ``folder``.

    ``measured``: ``curve``, a list over levels, the clean model (sigma 0) first, of ``sigma``, ``miou`` (mean over
    draws, with its interval), ``smallest``, ``largest``, ``images`` (low and high of the interval over images) and
    ``draws`` (mIoU of each row); ``sigma_50`` with its interval, and that of each draw. Fractions.

    Raises:
        WhiteboxError: see `Samples`, `Rows`, ``whitebox.engine.evaluate``.
    """
    bench = Bench(run, split, limit, memory, noise.target)
    notes, levels = [], noise.levels
    if noise.target != "input" and not bench.parameters:
        notes.append(f"it has no {noise.target}, so the noise changes nothing and is not measured.")
        levels = ()
    with bench.rows(folder) as rows:

        def complete(keys: Sequence[Key]) -> None:
            rows.complete(keys, bench.measure, advance)

        complete([CLEAN, *(key for draw in range(noise.draws) for sigma in levels for key in noise.keys(sigma, draw))])
        miou = MeanScores(rows)
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
    measured["notes"] = notes
    variant = "-".join([noise.target, *(["relative"] if noise.relative else [])])
    settings = {key: value for key, value in asdict(noise).items() if key != "seed"}
    return bench.record(
        PIXELS if noise.target == "input" else PARAMETERS,
        measured,
        noise.seed,
        {**settings, "interval": "t over draws"},
        variant if noise.target != "input" else "",
    )


def curve_point(sigma: float, draws: Sequence[Sequence[Key]], miou: MeanScores, seed: int) -> dict[str, Any]:
    """One point of a curve, see `measure_noise`; ``draws``: the rows of each draw."""
    values_D = [miou(keys) for keys in draws]
    every = [key for keys in draws for key in keys]
    single = [miou([key]) for key in every]
    mean, low, high = draw_interval(values_D)
    edges = percentile_interval(miou.resampled(every, seed))
    return {
        "sigma": sigma,
        "miou": {"value": mean, "low": low, "high": high},
        "smallest": min(single),
        "largest": max(single),
        "images": {"low": edges[0], "high": edges[1]},
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


def search_half(half: float, known: Mapping[float, float]) -> Generator[float, float, float]:
    """Where a falling curve crosses ``half``: yields the sigma to measure next, is sent its mIoU, returns sigma_50.

    Args:
        half: half of the clean mIoU.
        known: mIoU at the levels measured so far, at least one.

    Returns:
        NaN where the curve stays on one side, ``_WIDEN`` halvings or doublings beyond the levels.
    """
    levels = sorted(known)
    first = next((number for number, sigma in enumerate(levels) if known[sigma] <= half), len(levels))
    above = (levels[first - 1], known[levels[first - 1]]) if first else None
    below = (levels[first], known[levels[first]]) if first < len(levels) else None
    for _ in range(_WIDEN):
        if below is None and above is not None and 2 * above[0] <= LARGEST:
            sigma = _rounded(2 * above[0])
        elif above is None and below is not None:
            sigma = _rounded(below[0] / 2)
        else:
            break
        value = yield sigma
        above, below = ((sigma, value), below) if value > half else (above, (sigma, value))
    if above is None or below is None:
        return math.nan
    while below[0] / above[0] > TOLERANCE:
        sigma = _rounded(math.sqrt(above[0] * below[0]))
        value = yield sigma
        above, below = ((sigma, value), below) if value > half else (above, (sigma, value))
    share = (above[1] - half) / (above[1] - below[1])
    return float(above[0] * (below[0] / above[0]) ** share)


def _rounded(sigma: float) -> float:
    """As levels are, so that rows are found again whatever rounding does."""
    return float(f"{sigma:.10g}")
