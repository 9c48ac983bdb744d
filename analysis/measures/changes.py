"""A run to be measured under changes of its parameters or of the photos, and the statistics of such measurements.

Shapes: N images, K classes, D draws, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from analysis.maths.corruptions import Corruption
from analysis.maths.intervals import LEVEL, RESAMPLES
from analysis.maths.perturbation import Change, ChangedImages, PixelNoise, perturbed, target_parameters
from analysis.measures.images import Samples
from analysis.measures.rows import Counts, Key, Rows
from analysis.record import Record, describe_weights, new_record
from whitebox.engine.encoded import EncodedImages
from whitebox.engine.evaluate import LabelledImages, evaluate
from whitebox.engine.kept import tokens_kept
from whitebox.engine.metrics import resampled_scores, scores
from whitebox.errors import DataError
from whitebox.runs import Run

CLEAN: Key = {"target": "clean"}

Values = NDArray[np.float64]


class Bench:
    """A run on some images, to be measured under changes.

    Args:
        memory: bytes of the encoder's tokens and of labels kept in memory; what is more goes to a temporary file.
        target: what will be changed; where that is the decoder alone, the encoder runs once.
    """

    def __init__(self, run: Run, split: str | None, limit: int | None, memory: int, target: str) -> None:
        self.run, self.limit, self.memory = run, limit, memory
        self.samples = Samples(run, split, limit)
        self.weights = describe_weights(run.weights)
        photos = target in ("input", "corruption")
        self.parameters = {} if photos else target_parameters(run.model, target)
        self.encode_once = not photos and all(name.startswith("decoder.") for name in self.parameters)

    def rows(self, folder: Path) -> Rows:
        """The file of this run's rows on these images, evaluated in this way."""
        data, inference = self.run.config.data, asdict(self.run.config.inference)
        inference.pop("batch")
        read = ("kind", "reduce_zero_label", "resize", "max_ratio", "shapes_seed", "size")
        pairs = getattr(self.samples.dataset.source, "pairs", ())[: len(self.samples)]
        belongs_to = {
            "weights": self.weights.sha256,
            "data": asdict(self.samples.data),
            "bytes": [[_size(file) for file in (pair.image, pair.label)] for pair in pairs],
            "settings": {**{key: getattr(data, key) for key in read}, **inference},
        }
        name = f"{self.run.name}-{self.samples.data.name}-{self.samples.split}"
        return Rows(folder, name, belongs_to, (len(self.samples), 3, self.run.model.num_classes))

    @cached_property
    def encoded(self) -> EncodedImages:
        """The images behind the encoder."""
        config, dataset = self.run.config, self.samples.dataset
        with tokens_kept(self.run.model, config.store):
            return EncodedImages(
                self.run.model, dataset, config.inference, config.data, limit=self.limit, memory=self.memory
            )

    def measure(self, key: Key) -> Counts:
        """Counts of a row, (N, 3, K)."""
        name = self.samples.data.name
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
        return self.encoded.evaluate().counts_N3K if self.encode_once else self._evaluate(self.samples.dataset)

    def _on(self, change: Change) -> Counts:
        return self._evaluate(ChangedImages(self.samples.dataset, change))

    def _evaluate(self, dataset: LabelledImages) -> Counts:
        config = self.run.config
        return evaluate(self.run.model, dataset, config.inference, config.data, limit=self.limit).counts_N3K

    def record(
        self, kind: str, measured: Mapping[str, Any], seed: int, settings: Mapping[str, Any], variant: str
    ) -> Record:
        """The record of what was measured."""
        config = self.run.config
        return new_record(
            kind,
            model=self.run.name,
            data=self.samples.data,
            measured={**measured, "classes": list(self.samples.dataset.classes)},
            n=len(self.samples),
            weights=self.weights,
            variant=variant,
            seeds={"noise": seed, "bootstrap": seed},
            settings={
                **settings,
                "resamples": RESAMPLES,
                "resize": config.data.resize,
                "max_ratio": config.data.max_ratio,
                **{key: value for key, value in asdict(config.inference).items() if key != "batch"},
            },
        )


def _size(file: str) -> int:
    """Bytes of a file: whether it is still the one that was measured."""
    try:
        return Path(file).stat().st_size
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.") from error


class MeanScores:
    """mIoU of rows, and of their resampled images."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._known: dict[str, float] = {}

    def __call__(self, keys: Sequence[Key]) -> float:
        """Mean mIoU of some rows."""
        for key in keys:
            if str(key) not in self._known:
                self._known[str(key)] = scores(self.rows.counts(key)).miou
        return float(np.mean([self._known[str(key)] for key in keys]))

    def resampled(self, keys: Sequence[Key], seed: int) -> Values:
        """Their mean mIoU on images drawn with replacement, (R,); the same images for the same seed."""
        return np.mean([resampled_scores(self.rows.counts(key), RESAMPLES, seed)[:, 0] for key in keys], axis=0)


def draw_interval(values_D: ArrayLike, level: float = LEVEL) -> tuple[float, float, float]:
    """Mean, and Student's t interval of it; NaN for the interval of a single value."""
    values = np.asarray(values_D, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def percentile_interval(values_R: Values, level: float = LEVEL) -> tuple[float, float]:
    """Low and high percentile of resampled values, without NaN; NaN where all are."""
    known = values_R[~np.isnan(values_R)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
