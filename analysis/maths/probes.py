"""What a simple reader makes of tokens: linear probes, nearest class means, and clusters that know no class.

    linear probe   softmax regression (Alain and Bengio, arXiv 1610.01644): the minimum of
                   mean_i -log softmax(W^T x_i + b)_{y_i} + strength / 2 |W|^2, x the tokens with mean 0 and standard
                   deviation 1 in each dimension.
                   scikit-learn's ``LogisticRegression`` of C = 1 / (strength N) has the same minimum. Of
                   `STRENGTHS`, from the greatest until one is worse, the one is taken whose probe of some tokens has
                   the least cross-entropy on the others; at most 300 steps of L-BFGS each
    class means    a token goes to the class whose mean is nearest (Mensink et al., PAMI 2013, with the identity metric)
    clusters       k-means (Lloyd 1982) from k-means++ (Arthur and Vassilvitskii, SODA 2007), the best of some starts

Shapes: N tokens, D width, C classes that occur, S clusters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from whitebox.errors import DataError

Float = NDArray[np.float64]
Int = NDArray[np.int64]

STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_STEPS = 300  # of L-BFGS, at most
_STARTS, _ROUNDS, _STILL = 4, 100, 1e-4  # of k-means: it ends when a round saves less than this share


@dataclass(frozen=True)
class Reader:
    """Scores of tokens that are affine in them: the largest one names the class.

    Attributes:
        classes_C: what the columns stand for.
        strength: of a linear probe; None: it has none.
    """

    classes_C: Int
    weight_DC: Float
    bias_C: Float
    strength: float | None = None

    def scores(self, z_ND: Float) -> Float:
        """One a class, (N, C)."""
        return np.asarray(z_ND @ self.weight_DC + self.bias_C)

    def read(self, z_ND: Float) -> Int:
        """The class of each token, (N,)."""
        return np.asarray(self.classes_C[self.scores(z_ND).argmax(1)])


def linear_probe(z_ND: Float, label_N: Int, held_N: NDArray[np.bool_]) -> Reader:
    """A linear probe, its strength chosen on held-out tokens, then fitted on all.

    Args:
        held_N: tokens on which strengths are compared.

    Raises:
        DataError: there are fewer than two classes, or nothing is held out or left.
    """
    classes_C, index_N = np.unique(label_N, return_inverse=True)
    if len(classes_C) < 2:
        raise DataError(f"A probe tells classes apart, and the labelled patches have {len(classes_C)}.")
    if held_N.all() or not held_N.any():
        raise DataError("A probe needs tokens to choose its regularisation on: give more images.")
    mean_D, scale_D = z_ND.mean(0), z_ND.std(0)
    scale_D = np.where(scale_D > 1e-12 * scale_D.max(), scale_D, 1.0)  # a dimension without spread says nothing
    x_ND = (z_ND - mean_D) / scale_D
    solution = np.zeros((z_ND.shape[1] + 1) * len(classes_C))
    known_C = np.isin(np.arange(len(classes_C)), index_N[~held_N])
    judged_N = held_N & known_C[index_N]
    best, least, found = STRENGTHS[0], np.inf, solution
    for strength in STRENGTHS:  # each from where the one before ended
        solution = _minimised(x_ND[~held_N], index_N[~held_N], len(classes_C), strength, solution)
        loss = _loss(solution, x_ND[judged_N], index_N[judged_N], len(classes_C)) if judged_N.any() else 0.0
        if loss >= least:
            break
        best, least, found = strength, loss, solution
    standard = fitted(x_ND, label_N, best, found)
    weight_DC = standard.weight_DC / scale_D[:, None]
    return Reader(classes_C, weight_DC, standard.bias_C - mean_D @ weight_DC, best)


def fitted(z_ND: Float, label_N: Int, strength: float, start: Float | None = None) -> Reader:
    """The minimum of one strength, on tokens as they are; from a solution of another strength, where there is one."""
    classes_C, index_N = np.unique(label_N, return_inverse=True)
    if start is None:
        start = np.zeros((z_ND.shape[1] + 1) * len(classes_C))
    weight_DC, bias_C = _unpacked(_minimised(z_ND, index_N, len(classes_C), strength, start), z_ND.shape[1])
    return Reader(classes_C, weight_DC, bias_C, strength)


def sums_of(z_ND: Float, index_N: Int, count: int) -> tuple[Float, Float]:
    """Sum of the tokens of each of ``count`` sets, (S, D), and how many each has, (S,)."""
    member_NS = np.zeros((len(z_ND), count))
    member_NS[np.arange(len(z_ND)), index_N] = 1
    return np.asarray(member_NS.T @ z_ND), member_NS.sum(0)


def _unpacked(solution: Float, width: int) -> tuple[Float, Float]:
    both_EC = solution.reshape(width + 1, -1)
    return both_EC[:-1], both_EC[-1]


def _log_shares(solution: Float, x_ND: Float) -> Float:
    weight_DC, bias_C = _unpacked(solution, x_ND.shape[1])
    logits_NC = x_ND @ weight_DC + bias_C
    logits_NC -= logits_NC.max(1, keepdims=True)
    return np.asarray(logits_NC - np.log(np.exp(logits_NC).sum(1, keepdims=True)))


def _loss(solution: Float, x_ND: Float, index_N: Int, classes: int) -> float:
    return float(-_log_shares(solution, x_ND)[np.arange(len(index_N)), index_N].mean())


def _minimised(x_ND: Float, index_N: Int, classes: int, strength: float, start: Float) -> Float:
    from scipy.optimize import minimize

    N, D = x_ND.shape
    rows_N = np.arange(N)

    def objective(solution: Float) -> tuple[float, Float]:
        logs_NC = _log_shares(solution, x_ND)
        weight_DC, _ = _unpacked(solution, D)
        value = -logs_NC[rows_N, index_N].mean() + strength / 2 * np.square(weight_DC).sum()
        rest_NC = np.exp(logs_NC)
        rest_NC[rows_N, index_N] -= 1
        slope_EC = np.concatenate([x_ND.T @ rest_NC / N + strength * weight_DC, rest_NC.mean(0, keepdims=True)])
        return float(value), slope_EC.ravel()

    options = {"maxiter": _STEPS, "ftol": 1e-8, "gtol": 1e-6}
    return np.asarray(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x)


def class_means(z_ND: Float, label_N: Int) -> Reader:
    """The nearest class mean: of |z - m_c|^2 the part that differs between classes, turned."""
    classes_C, index_N = np.unique(label_N, return_inverse=True)
    means_CD = sums_of(z_ND, index_N, len(classes_C))[0] / np.bincount(index_N)[:, None]
    return Reader(classes_C, 2 * means_CD.T, -np.square(means_CD).sum(1))


def clusters(z_ND: Float, count: int, seed: int) -> Reader:
    """The clusters of k-means, as many as ``count`` or as there are different tokens."""
    generator = np.random.default_rng(seed)
    best, least = None, np.inf
    for _ in range(_STARTS):
        centres_SD, spread = lloyd(z_ND, _plus_plus(z_ND, count, generator))
        if spread < least:
            best, least = centres_SD, spread
    assert best is not None
    return Reader(np.arange(len(best)), 2 * best.T, -np.square(best).sum(1))


def lloyd(z_ND: Float, centres_SD: Float) -> tuple[Float, float]:
    """k-means from these centres until it stands still; the centres, and the sum of squared distances to them.

    A cluster that is left without tokens keeps its centre.
    """
    squares, spread = float(np.square(z_ND).sum()), np.inf
    for _ in range(_ROUNDS):
        scores_NS = 2 * z_ND @ centres_SD.T - np.square(centres_SD).sum(1)
        before, nearest_N = spread, scores_NS.argmax(1)
        spread = squares - float(scores_NS.max(1).sum())
        if before - spread <= _STILL * spread:
            break
        sums_SD, count_S = sums_of(z_ND, nearest_N, len(centres_SD))
        means_SD = sums_SD / np.maximum(count_S, 1)[:, None]
        centres_SD = np.where(count_S[:, None] > 0, means_SD, centres_SD)
    return centres_SD, max(0.0, spread)


def _plus_plus(z_ND: Float, count: int, generator: np.random.Generator) -> Float:
    """First centres: each one drawn with a probability that grows with its squared distance to those before."""
    square_N = np.square(z_ND).sum(1)
    chosen = [int(generator.integers(len(z_ND)))]
    distance_N = np.full(len(z_ND), np.inf)
    while len(chosen) < count:
        last_D = z_ND[chosen[-1]]
        distance_N = np.minimum(distance_N, np.maximum(square_N - 2 * z_ND @ last_D + last_D @ last_D, 0.0))
        distance_N[chosen] = 0.0
        if distance_N.sum() <= 1e-12 * square_N.sum():
            break
        chosen.append(int(generator.choice(len(z_ND), p=distance_N / distance_N.sum())))
    return z_ND[chosen]
