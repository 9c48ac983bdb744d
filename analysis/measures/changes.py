"""A run to be measured under changes of its parameters or of the photos, and the statistics of such measurements.

Shapes: N images, K classes, D draws, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.consumed import EvaluatedImages
from analysis.maths.conventions import LEVEL
from analysis.maths.corruptions import Corruption
from analysis.maths.intervals import half_width
from analysis.maths.perturbation import Change, ChangedImages, PixelNoise, perturbed, target_parameters
from analysis.maths.resampling import LEAST, sampled
from analysis.measures.rows import Counts, Key, Rows
from analysis.record import describe_weights
from whitebox.engine.encoded import EncodedImages
from whitebox.engine.evaluate import LabelledImages, evaluate
from whitebox.engine.kept import tokens_kept
from whitebox.engine.metrics import score_vectors, scores
from whitebox.runs import Run, SavedRun

CLEAN: Key = {"target": "clean"}

Values = NDArray[np.float64]


class ChangedRun:
    """A run on some images, to be measured under changes.

    Args:
        memory: bytes of the encoder's tokens and of labels kept in memory; what is more goes to a temporary file.
        target: what will be changed; where that is the decoder alone, the encoder runs once.
    """

    def __init__(self, run: Run, images: EvaluatedImages, memory: int, target: str) -> None:
        self.run, self.images, self.memory = run, images, memory
        photos = target in ("input", "corruption")
        self.parameters = {} if photos else target_parameters(run.model, target)
        self.encode_once = not photos and all(name.startswith("decoder.") for name in self.parameters)

    def rows(self, folder: Path) -> Rows:
        """See `rows_of`."""
        return rows_of(self.run, self.images, folder)

    @cached_property
    def encoded(self) -> EncodedImages:
        """The images behind the encoder."""
        run, limit = self.run, self.images.limit
        with tokens_kept(run.model, run.config.store):
            return EncodedImages(
                run.model, self.images.dataset, run.inference, run.data, limit=limit, memory=self.memory
            )

    def measure(self, key: Key) -> Counts:
        """Counts of a row, (N, 3, K)."""
        name = self.images.data.name
        if key == CLEAN:
            return self._as_it_is()
        if key["target"] == "input":
            return self._on(PixelNoise(key["sigma"], name, key["seed"], key["draw"], key["sign"]))
        if key["target"] == "corruption":
            return self._on(Corruption(key["kind"], key["severity"], name, key["seed"]))
        noise = {part: key[part] for part in ("seed", "draw", "sign", "relative")}
        with perturbed(self.parameters, key["sigma"], **noise):
            return self._as_it_is()

    def _as_it_is(self) -> Counts:
        return self.encoded.evaluate().counts_N3K if self.encode_once else self._evaluate(self.images.dataset)

    def _on(self, change: Change) -> Counts:
        return self._evaluate(ChangedImages(self.images.dataset, change))

    def _evaluate(self, dataset: LabelledImages) -> Counts:
        run = self.run
        return evaluate(run.model, dataset, run.inference, run.data, limit=self.images.limit).counts_N3K


def rows_of(run: SavedRun | Run, images: EvaluatedImages, folder: Path) -> Rows:
    """The file of a run's rows on these images, evaluated in this way."""
    belongs_to = {
        "weights": describe_weights(run.weights).sha256,
        "data": asdict(images.data),
        "settings": {key: value for key, value in images.settings.items() if key != "unit"},  # not of counts
    }
    name = f"{run.name}-{images.data.name}-{images.split}"
    return Rows(folder, name, belongs_to, (len(images), 3, len(run.classes)))


class MeanScores:
    """mIoU of rows, and of their resampled units.

    Args:
        unit_N: equal for images that belong together.
    """

    def __init__(self, rows: Rows, unit_N: Sequence[str]) -> None:
        self.rows, self.unit_N = rows, unit_N
        self._known: dict[str, float] = {}

    def __call__(self, keys: Sequence[Key]) -> float:
        """Mean mIoU of some rows."""
        for key in keys:
            if str(key) not in self._known:
                self._known[str(key)] = scores(self.rows.counts(key)).miou
        return float(np.mean([self._known[str(key)] for key in keys]))

    def resampled(self, keys: Sequence[Key], seed: int) -> Values:
        """Their mean mIoU on units drawn with replacement, (R,); the same units for the same seed."""
        drawn_DR = [
            sampled(self.rows.counts(key).reshape(len(self.unit_N), -1), miou_of_sums, self.unit_N, seed=seed).draws_RM[
                :, 0
            ]
            for key in keys
        ]
        return np.asarray(np.mean(drawn_DR, axis=0))


def miou_of_sums(sums: Values) -> Values:
    """The mIoU alone, of counts summed over images."""
    return score_vectors(sums)[..., :1]


def draw_interval(
    values_D: ArrayLike, level: float = LEVEL, within: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float, float]:
    """Mean, and Student's t interval of it, cut where no value can be (``within``); NaN for that of one or two values.

    The interval of two values is 13 times as wide as they are apart, and says nothing.
    """
    values = np.asarray(values_D, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 3:
        return mean, math.nan, math.nan
    half = half_width(float(values.std(ddof=1)), len(values), level)
    return mean, max(mean - half, within[0]), min(mean + half, within[1])


def percentile_interval(values_R: Values, level: float = LEVEL) -> tuple[float, float]:
    """Low and high percentile of resampled values, without NaN; NaN where all are."""
    known = values_R[~np.isnan(values_R)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def unit_interval(value: float, values_R: Values, units: int, most: float = math.inf) -> tuple[float, float]:
    """Percentiles of resampled values, as far out as Student's t is.

    Draws of few units are too near what was measured; fewer units than say anything have NaN.

    Args:
        value: what was measured.
        units: how many were drawn from.
        most: where no value can be above it; none is below 0.
    """
    from scipy.stats import norm
    from scipy.stats import t as student

    low, high = percentile_interval(values_R)
    if units < LEAST:
        return math.nan, math.nan
    wider = student.ppf((1 + LEVEL) / 2, units - 1) / norm.ppf((1 + LEVEL) / 2) * math.sqrt(units / (units - 1))
    return max(value - wider * (value - low), 0.0), min(value + wider * (high - value), most)
