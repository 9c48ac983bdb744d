"""Rates, spectra and ranks of the tokens of one stage, by a convention, and their angles to class embeddings.

Shapes: B windows, N tokens, D width, H heads, P subspace dimension, K classes, L layers, M entries kept of a spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.linalg import subspace_angles
from torch import Tensor, nn

from analysis.maths.coding_rate import (
    coding_rate,
    components_for,
    effective_rank,
    eigenvalues,
    float64,
    numerical_rank,
    principal_directions,
    project_moment,
    rate_of_moment,
    rate_reduction,
    second_moment,
    stable_rank,
)
from analysis.maths.conventions import DRAWS, SHARES, Convention
from whitebox.data.images import IGNORE
from whitebox.models.attention import SubspaceLayer

_SPECTRUM = 48  # entries kept of a spectrum, at most
_NORM_EPS = 1e-5  # of the LayerNorm without gain and bias in R(Z)


class Tokens:
    """Tokens of one stage under a convention, float64; what several quantities need of them is computed once.

    Args:
        z_BND: as the model has them.
    """

    def __init__(self, z_BND: Tensor, rule: Convention) -> None:
        self.z_BND = float64(z_BND)
        self.rule = rule

    @cached_property
    def vectors_BND(self) -> Tensor:
        """Those whose R(Z), spectrum and ranks are measured."""
        if self.rule.tokens == "raw":
            return self._scaled(self.z_BND)
        return self._scaled(F.layer_norm(self.z_BND, self.z_BND.shape[-1:], eps=_NORM_EPS))

    @cached_property
    def moment_BDD(self) -> Tensor:
        """Second moment of ``vectors_BND``."""
        if self.rule.tokens == "normed" and self.rule.normalise == "none":
            return self._augmented_BEE[..., :-1, :-1]
        return second_moment(self.vectors_BND)

    def seen(self, layer: SubspaceLayer) -> Tensor:
        """Those that a layer would project."""
        if self.rule.tokens == "raw":
            return self._scaled(self.z_BND)
        weight, bias = self._parameters(layer.norm)
        return self._scaled(F.layer_norm(self.z_BND, self.z_BND.shape[-1:], weight, bias, layer.norm.eps))

    def seen_moment(self, layer: SubspaceLayer) -> Tensor:
        """Second moment of ``seen``.

        A LayerNorm's gain and bias are affine, so one second moment of [LayerNorm without them, 1] serves all layers.
        """
        if self.rule.tokens == "raw":
            return self.moment_BDD
        if self.rule.normalise != "none" or layer.norm.eps != _NORM_EPS:
            return second_moment(self.seen(layer))
        gain_D, bias_D = self._parameters(layer.norm)
        rows_BDE = gain_D[:, None] * self._augmented_BEE[:, :-1] + bias_D[:, None] * self._augmented_BEE[:, -1:]
        return gain_D * rows_BDE[..., :-1] + bias_D * rows_BDE[..., -1:]

    @cached_property
    def _augmented_BEE(self) -> Tensor:
        """Second moment of [``vectors_BND``, 1], E = D + 1."""
        return second_moment(F.pad(self.vectors_BND, (0, 1), value=1))

    def _scaled(self, x_BND: Tensor) -> Tensor:
        return x_BND if self.rule.normalise == "none" else F.normalize(x_BND, dim=-1)

    def _parameters(self, norm: nn.LayerNorm) -> list[Tensor]:
        return [float64(each.detach()).to(self.z_BND.device) for each in (norm.weight, norm.bias)]


def projections(tokens: Tokens, layers: Sequence[SubspaceLayer]) -> tuple[Tensor, Tensor]:
    """R(P_l^T Z) and R(Z) of the tokens that layer l would project, for each layer; both (B, L), float64.

    Raises:
        ConfigError, ModelError: see `analysis.maths.coding_rate.rate_of_moment`.
    """
    rule, (_, N, D) = tokens.rule, tokens.z_BND.shape
    projected, full = [], []
    for layer in layers:
        bases_HPD = float64(layer.bases.detach()).to(tokens.z_BND.device)
        d = D if rule.prefactor == "width" else bases_HPD.shape[1]
        moment_BDD = tokens.seen_moment(layer)
        if rule.normalise == "projected":
            w_BHNP = F.normalize(tokens.seen(layer)[:, None] @ bases_HPD.mT, dim=-1)
            rate_BH = coding_rate(w_BHNP, rule.eps, d)
        else:
            rate_BH = rate_of_moment(project_moment(moment_BDD, bases_HPD), N, d, rule.eps)
        projected.append(rate_BH.sum(-1) if rule.heads == "sum" else rate_BH.mean(-1))
        full.append(rate_of_moment(moment_BDD, N, D, rule.eps))
    return torch.stack(projected, -1), torch.stack(full, -1)


def token_numbers(tokens: Tokens) -> dict[str, Tensor]:
    """R(Z), spectrum (some eigenvalues of Z^T Z / N, see `kept_entries`), ranks and the share of zeros, (B, ...)."""
    _, N, D = tokens.z_BND.shape
    values_BD = eigenvalues(tokens.moment_BDD)
    return {
        "rate": rate_of_moment(tokens.moment_BDD, N, D, tokens.rule.eps),
        "effective_rank": effective_rank(values_BD),
        "stable_rank": stable_rank(values_BD),
        "numerical_rank": numerical_rank(values_BD, N),
        "components": torch.stack([components_for(values_BD, share) for share in SHARES], -1),
        "zeros": (tokens.z_BND == 0).double().mean((1, 2)),
        "spectrum": values_BD[:, torch.from_numpy(kept_entries(D) - 1).to(values_BD.device)] / N,
    }


def kept_entries(width: int) -> NDArray[np.int64]:
    """Which entries of a spectrum records keep, counted from 1: the first ones, then ever fewer, and the last."""
    return np.unique(np.geomspace(1, width, min(_SPECTRUM, width)).round().astype(np.int64))


def reductions(patches: Tokens, labels_BN: Tensor) -> Tensor:
    """Rate reduction of each window's labelled patches, (B,), float64.

    NaN where no patch is labelled, or where tokens are not one a patch (an encoder may drop some).
    """
    found_B = torch.full((len(labels_BN),), torch.nan, dtype=torch.float64)
    if patches.z_BND.shape[1] == labels_BN.shape[1]:
        for index, (x_ND, labels_N) in enumerate(zip(patches.vectors_BND, labels_BN, strict=True)):
            known_N = labels_N != IGNORE
            if known_N.any():
                found_B[index] = rate_reduction(x_ND[known_N.to(x_ND.device)], labels_N[known_N], patches.rule.eps)
    return found_B


def principal_angles(moment_BDD: Tensor, q_BKD: Tensor) -> Tensor:
    """Angles between the K leading eigenvectors of Z^T Z and the span of K vectors, (B, K), in degrees, ascending.

    As in DEPICT nothing is centred. There are at most D angles; those that are missing because the vectors are linearly
    dependent are NaN, at the end.
    """
    K = min(q_BKD.shape[1:])
    found_BK = torch.full((len(q_BKD), K), torch.nan, dtype=torch.float64)
    leading_BDK = principal_directions(moment_BDD, K).cpu().numpy()
    for index, (leading_DK, q_KD) in enumerate(zip(leading_BDK, float64(q_BKD).cpu().numpy(), strict=True)):
        if q_KD.any():
            degrees = np.sort(np.degrees(subspace_angles(leading_DK, q_KD.T)))
            found_BK[index, : len(degrees)] = torch.from_numpy(degrees)
    return found_BK


def overlap(degrees_BK: Tensor) -> Tensor:
    """Mean squared cosine of principal angles, (B,): 1 for the same subspace, 0 for orthogonal, K / D for random."""
    return degrees_BK.deg2rad().cos().square().nanmean(-1)


def random_angles(classes: int, width: int, seed: int, draws: int = DRAWS) -> NDArray[np.float64]:
    """Principal angles of two random subspaces of dimension K in D dimensions, (draws, K), degrees, ascending."""
    generator = np.random.default_rng(seed)
    pairs = generator.standard_normal((draws, 2, width, min(classes, width)))
    return np.stack([np.sort(np.degrees(subspace_angles(*pair))) for pair in pairs])
