"""Scores and R^c of a run's decoder, evaluated as often as it is changed; the encoder has run once. See `ablate`.

Shapes: N images, L layers, K classes, B windows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        rates_LN: R^c after each layer, of one window of the image; None: the decoder has no subspaces.
    """

    counts_N3K: NDArray[np.int64]
    rates_LN: NDArray[np.float64] | None

    @property
    def rate_N(self) -> NDArray[np.float64] | None:
        """R^c of all layers."""
        return None if self.rates_LN is None else self.rates_LN.sum(0)

    def where(self, chosen_N: NDArray[np.bool_], other: Seen) -> Seen:
        """These images of it, the others of ``other``."""
        counts_N3K = np.where(chosen_N[:, None, None], self.counts_N3K, other.counts_N3K)
        if self.rates_LN is None or other.rates_LN is None:
            return Seen(counts_N3K, None)
        return Seen(counts_N3K, np.where(chosen_N, self.rates_LN, other.rates_LN))


class DecoderScores:
    """Images behind the encoder of a run.

    Raises:
        WhiteboxError: an image cannot be read, or does not fit.
    """

    def __init__(self, run: Run, consumed: EvaluatedImages, eps: float, seed: int) -> None:
        self.run, self.eps, self.seed, self.unit_N = run, eps, seed, consumed.units.of_N
        with tokens_kept(run.model, run.config.store):
            self.images = EncodedImages(run.model, consumed.dataset, run.inference, run.data, limit=consumed.limit)
        generator = np.random.default_rng(seed)
        self.window_N = [int(generator.integers(windows)) for windows in self.images.windows]  # whose R^c is measured
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
        rates_LN = np.zeros((len(self.bases), len(self.images.names)))
        passed_N = np.zeros(len(self.images.names), dtype=np.int64)  # windows of each image
        with changed, record(self.run.model, *(f"{name}.tokens" for name in self.bases)) as heard:

            def add(images: list[int]) -> None:
                chosen = []
                for row, image in enumerate(images):
                    if passed_N[image] == self.window_N[image]:
                        chosen.append(row)
                    passed_N[image] += 1
                of_n = [images[row] for row in chosen]
                for index, (name, (norm, bases_HPD)) in enumerate(self.bases.items()):
                    tokens_BND = finite(heard[f"{name}.tokens"], f"{name}.tokens", self.run)
                    if chosen:
                        w_BHNP = in_heads(norm(tokens_BND[chosen]), bases_HPD)  # as exact as the tokens are
                        rates_LN[index, of_n] = rates(w_BHNP, self.eps).sum(-1).cpu().numpy()

            evaluation = self.images.evaluate(add)
        return Seen(evaluation.counts_N3K, rates_LN if self.bases else None)

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

    def changes_from(self, before: Seen) -> Callable[[Seen], dict[str, Any]]:
        """What tells the change of mIoU (a fraction) and of R^c (percent), paired over units."""
        scores = self._scores(before)

        def changes(seen: Seen) -> dict[str, Any]:
            found = interval(self._scores(seen).minus(scores, matched=True), within=(-1.0, 1.0))
            rate = None
            if seen.rate_N is not None and before.rate_N is not None:
                with np.errstate(divide="ignore", invalid="ignore"):  # tokens that are all zero have no rate
                    rate = self._estimates(100 * (seen.rate_N - before.rate_N) / before.rate_N)
            return {"miou": stored_interval(found, 0), "rate": rate}

        return changes

    def _scores(self, seen: Seen) -> Sampled:
        return sampled_scores(seen.counts_N3K, self.unit_N, RESAMPLES, self.seed, self.run.data.mean_over)

    def _estimates(self, values_N: NDArray[np.float64]) -> Any:
        return estimates(values_N, self.seed, self.unit_N)


def folds(unit_N: Sequence[object]) -> NDArray[np.int64]:
    """Units shared out in turn over two folds, (N,); all are in the first where there is one unit."""
    units = list(dict.fromkeys(unit_N))
    return np.array([units.index(unit) % 2 for unit in unit_N])
