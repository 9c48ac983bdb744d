"""Scores and R^c of a run's decoder, evaluated as often as it is changed; the encoder has run once. See `ablate`.

Shapes: N images, K classes, B windows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.consumed import EvaluatedImages
from analysis.maths.coding_rate import in_heads
from analysis.maths.conventions import RESAMPLES
from analysis.maths.intervals import estimates
from analysis.maths.objectives import rates
from analysis.maths.resampling import Sampled, interval
from analysis.measures.evaluation import sampled_scores
from analysis.measures.extras import stored_interval
from analysis.measures.finite import finite
from whitebox.engine.encoded import EncodedImages
from whitebox.engine.kept import tokens_kept
from whitebox.engine.metrics import score_vectors
from whitebox.models import record
from whitebox.models.attention import subspace_layers
from whitebox.runs import Run


@dataclass(frozen=True)
class Seen:
    """What a decoder made of each image.

    Attributes:
        counts_N3K: see `whitebox.engine.evaluate.Evaluation`.
        rate_N: R^c, a mean over the image's windows; None: the decoder has no subspaces.
    """

    counts_N3K: NDArray[np.int64]
    rate_N: NDArray[np.float64] | None

    def where(self, chosen_N: NDArray[np.bool_], other: Seen) -> Seen:
        """These images of it, the others of ``other``."""
        counts_N3K = np.where(chosen_N[:, None, None], self.counts_N3K, other.counts_N3K)
        if self.rate_N is None or other.rate_N is None:
            return Seen(counts_N3K, None)
        return Seen(counts_N3K, np.where(chosen_N, self.rate_N, other.rate_N))


class DecoderScores:
    """Images behind the encoder of a run.

    Raises:
        WhiteboxError: an image cannot be read, or does not fit.
    """

    def __init__(self, run: Run, consumed: EvaluatedImages, eps: float, seed: int) -> None:
        self.run, self.eps, self.seed, self.unit_N = run, eps, seed, consumed.units.of_N
        with tokens_kept(run.model, run.config.store):
            self.images = EncodedImages(run.model, consumed.dataset, run.inference, run.data, limit=consumed.limit)
        self.bases = {  # as trained
            name: (layer.norm, layer.bases.detach().clone())
            for name, layer in subspace_layers(run.model).items()
            if name.startswith("decoder.layers.")
        }

    def seen(self, changed: AbstractContextManager[Any]) -> Seen:
        """Evaluate the decoder as it is inside ``changed``.

        Raises:
            ModelError: weights that are NaN or infinite.
        """
        sums_N, windows_N = np.zeros(len(self.images.names)), np.zeros(len(self.images.names))
        with changed, record(self.run.model, *(f"{name}.tokens" for name in self.bases)) as heard:

            def add(images: list[int]) -> None:
                for name, (norm, bases_HPD) in self.bases.items():
                    tokens_BND = finite(heard[f"{name}.tokens"], f"{name}.tokens", self.run)
                    w_BHNP = in_heads(norm(tokens_BND), bases_HPD)  # as exact as the tokens are
                    np.add.at(sums_N, images, rates(w_BHNP, self.eps).sum(-1).cpu().numpy())
                np.add.at(windows_N, images, 1)

            evaluation = self.images.evaluate(add)
        return Seen(evaluation.counts_N3K, sums_N / windows_N if self.bases else None)

    def miou(self, seen: Seen, chosen_N: NDArray[np.bool_]) -> float:
        """Of some images together."""
        sums_3K = seen.counts_N3K[chosen_N].sum(0).reshape(-1).astype(np.float64)
        return float(score_vectors(sums_3K, self.run.data.mean_over)[0])

    def levels(self, seen: Seen) -> dict[str, Any]:
        """The mIoU and R^c with their intervals, as records store them."""
        return {
            "miou": stored_interval(interval(self._scores(seen), within=(0.0, 1.0)), 0),
            "rate": None if seen.rate_N is None else self._estimates(seen.rate_N),
        }

    def changes(self, seen: Seen, before: Seen) -> dict[str, Any]:
        """Of mIoU (a fraction) and of R^c (percent), paired over units."""
        found = interval(self._scores(seen).minus(self._scores(before), matched=True), within=(-1.0, 1.0))
        rate = None
        if seen.rate_N is not None and before.rate_N is not None:
            with np.errstate(divide="ignore", invalid="ignore"):  # tokens that are all zero have no rate
                rate = self._estimates(100 * (seen.rate_N - before.rate_N) / before.rate_N)
        return {"miou": stored_interval(found, 0), "rate": rate}

    def _scores(self, seen: Seen) -> Sampled:
        return sampled_scores(seen.counts_N3K, self.unit_N, RESAMPLES, self.seed, self.run.data.mean_over)

    def _estimates(self, values_N: NDArray[np.float64]) -> Any:
        return estimates(values_N, self.seed, self.unit_N)


def folds(unit_N: Sequence[object]) -> NDArray[np.int64]:
    """Units shared out in turn over two folds, (N,); all are in the first where there is one unit."""
    units = list(dict.fromkeys(unit_N))
    return np.array([units.index(unit) % 2 for unit in unit_N])
