"""Coding rates, rate reduction, spectra and ranks of tokens: the quantities white-box layers are derived from.

    R(Z) = 1/2 log det(I + d / (N eps^2) Z^T Z)               coding rate; d = D; natural logarithm
    R(U_h^T Z) = 1/2 log det(I + d / (N eps^2) U_h Z^T Z U_h^T)   projected on one subspace; d = P
    R^c(Z | U) = sum_h R(U_h^T Z)                             what MSSA descends
    Delta R = R(Z) - sum_k N_k / N R(Z_k)                     rate reduction, Z_k: the tokens of class k

Sources: Ma et al., "Segmentation of Multivariate Mixed Data via Lossy Data Coding and Compression", PAMI 2007 (R);
Yu et al., "Learning Diverse and Discriminative Representations via the Principle of Maximal Coding Rate Reduction",
arXiv 2006.08558 (Delta R); Yu et al., "White-Box Transformers via Sparse Rate Reduction", arXiv 2306.01129 (R^c).
Tokens are rows here, columns there.

Numerics: log det(I + a Z Z^T) = log det(I + a Z^T Z), so the matrix of the smaller side is formed, in float64, and its
Cholesky factor gives the determinant. The N x N determinant in float32 of published scripts is slower by one to two
orders of magnitude, and wrong where tokens have collapsed to few directions. Everything is differentiable.

Shapes: ... any leading axes (layers, windows), N tokens, D dimension of the tokens, H heads, P dimension of a subspace.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from whitebox.errors import ConfigError, DataError, ModelError, require

# Of a d / (N eps^2) Z^T Z. Rounding moves its eigenvalues, so also those that are zero, by up to 2e-16 of its trace:
# above this limit the ones beside them would no longer hide that.
_LARGEST_TRACE = 1e12


@contextmanager
def _one_thread() -> Iterator[None]:
    """For factorisations of some hundred rows: MKL's threads wait for each other, two take up to ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def float64(values: Tensor) -> Tensor:
    """In double precision, on the same device unless that has none (mps)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def second_moment(z_ND: Tensor) -> Tensor:
    """Z^T Z in float64, not divided by N, not centred; (..., N, D) -> (..., D, D)."""
    z_ND = float64(z_ND)
    return z_ND.mT @ z_ND


def in_heads(z_ND: Tensor, bases_HPD: Tensor) -> Tensor:
    """Coordinates in each subspace, in the tokens' own precision, (..., N, D) -> (..., H, N, P)."""
    return (z_ND @ bases_HPD.flatten(0, 1).mT).unflatten(-1, bases_HPD.shape[:2]).transpose(-3, -2)


def from_heads(w_HNP: Tensor, bases_HPD: Tensor) -> Tensor:
    """Sum over heads of coordinates times bases, (..., H, N, P) -> (..., N, D)."""
    return w_HNP.transpose(-3, -2).flatten(-2) @ bases_HPD.flatten(0, 1)


def project_moment(m_DD: Tensor, bases_HPD: Tensor) -> Tensor:
    """The second moment of the tokens' coordinates in each subspace, (..., D, D) -> (..., H, P, P)."""
    H, P, _ = bases_HPD.shape
    bases_HPD = float64(bases_HPD).to(m_DD.device)
    left_HPD = (bases_HPD.flatten(0, 1) @ m_DD).unflatten(-2, (H, P))
    return left_HPD @ bases_HPD.mT


def rate_of_moment(m_DD: Tensor, tokens: int, dimension: int, eps: float) -> Tensor:
    """1/2 log det(I + dimension / (tokens eps^2) M), (..., D, D) float64 -> (...).

    M is Z^T Z, or equally the Gram matrix Z Z^T.

    Raises:
        ConfigError: ``eps`` is not positive, or too small for what double precision resolves.
        DataError: there are no tokens.
        ModelError: M holds NaN or infinity.
    """
    require(0 < eps < math.inf, "eps", eps, "it must be above 0 and finite")
    if tokens < 1:
        raise DataError("There are no tokens: their coding rate is not defined.")
    scaled_DD = m_DD * (dimension / (tokens * eps**2))
    trace = _finite_trace(scaled_DD)
    largest = float(trace.max()) if trace.numel() else 0.0
    if largest > _LARGEST_TRACE:
        enough = eps * math.sqrt(largest / _LARGEST_TRACE)
        raise ConfigError(f"eps={eps!r} is too small for double precision: tokens as large need {enough:.1e} or more.")
    identity_DD = torch.eye(m_DD.shape[-1], dtype=m_DD.dtype, device=m_DD.device)
    with _one_thread():
        factor_DD, _ = torch.linalg.cholesky_ex(identity_DD + scaled_DD)
    return factor_DD.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def _finite_trace(m_DD: Tensor) -> Tensor:
    """Of a second moment; NaN anywhere is NaN here. LAPACK's eigenvalues of NaN may never come back."""
    trace = m_DD.detach().diagonal(dim1=-2, dim2=-1).sum(-1)
    if not torch.isfinite(trace).all():
        raise ModelError("Tokens hold NaN or infinity: nothing can be said of them; look at the weights.")
    return trace


def coding_rate(z_ND: Tensor, eps: float, dimension: int | None = None) -> Tensor:
    """R(Z) of each set of tokens, (..., N, D) -> (...), float64, in nats.

    Args:
        eps: distortion; the formula has its square.
        dimension: d of the prefactor; None: D.

    Raises:
        ConfigError, DataError, ModelError: see `rate_of_moment`.
    """
    N, D = z_ND.shape[-2:]
    moment = second_moment(z_ND) if N >= D else second_moment(z_ND.mT)
    return rate_of_moment(moment, N, D if dimension is None else dimension, eps)


def projected_rates(z_ND: Tensor, bases_HPD: Tensor, eps: float, dimension: int | None = None) -> Tensor:
    """R(U_h^T Z) for each subspace, (..., N, D) -> (..., H), float64, in nats.

    Args:
        bases_HPD: as `whitebox.models.attention.SubspaceLayer` has them; not assumed to be orthonormal.
        eps: distortion; the formula has its square.
        dimension: d of the prefactor; None: P.

    Raises:
        ConfigError, DataError, ModelError: see `rate_of_moment`.
    """
    P = bases_HPD.shape[1]
    moment_HPP = project_moment(second_moment(z_ND), bases_HPD)
    return rate_of_moment(moment_HPP, z_ND.shape[-2], P if dimension is None else dimension, eps)


def compression_rate(z_ND: Tensor, bases_HPD: Tensor, eps: float, dimension: int | None = None) -> Tensor:
    """R^c(Z | U), the sum of `projected_rates` over heads, (..., N, D) -> (...).

    Its gradient by ``z_ND`` is the direction an MSSA layer is derived to step against.
    """
    return projected_rates(z_ND, bases_HPD, eps, dimension).sum(-1)


def compression_gradient(z_ND: Tensor, bases_HPD: Tensor, eps: float) -> Tensor:
    """The gradient of R^c(Z | U) by Z, in closed form, (..., N, D) -> (..., N, D), float64.

    It is sum_h g_h U_h, see `coordinate_gradient` (arXiv 2306.01129, eq. 10).

    Raises:
        ModelError: the tokens hold NaN or infinity.
    """
    bases_HPD = float64(bases_HPD).to(z_ND.device)
    return from_heads(coordinate_gradient(in_heads(float64(z_ND), bases_HPD), eps), bases_HPD)


def coordinate_gradient(w_HNP: Tensor, eps: float) -> Tensor:
    """The gradient of sum_h R(w_h) by the coordinates, (..., H, N, P), float64: g_h = a w_h (I + a w_h^T w_h)^-1.

    With a = P / (N eps^2).

    Raises:
        ModelError: the coordinates hold NaN or infinity.
    """
    w_HNP = float64(w_HNP)
    N, P = w_HNP.shape[-2:]
    share = P / (N * eps**2)
    moment_HPP = share * second_moment(w_HNP)
    _finite_trace(moment_HPP)
    identity_PP = torch.eye(P, dtype=moment_HPP.dtype, device=moment_HPP.device)
    with _one_thread():
        inverse_HPP = torch.cholesky_inverse(torch.linalg.cholesky(identity_PP + moment_HPP))
    return share * (w_HNP @ inverse_HPP)


def rate_reduction(z_ND: Tensor, classes_N: Tensor, eps: float) -> Tensor:
    """Delta R, (..., N, D) -> (...), float64, in nats; at least 0, and 0 for tokens of a single class.

    Args:
        classes_N: index of each token's class, on any device.
        eps: distortion; the formula has its square.

    Raises:
        ConfigError, DataError, ModelError: see `rate_of_moment`.
    """
    N = len(classes_N)
    total = coding_rate(z_ND, eps)
    present = classes_N.unique().tolist()
    if len(present) == 1:
        return torch.zeros_like(total)
    for index in present:
        members = (classes_N == index).nonzero()[:, 0].to(z_ND.device)
        total = total - len(members) / N * coding_rate(z_ND[..., members, :], eps)
    return total


def eigenvalues(m_DD: Tensor) -> Tensor:
    """Of a second moment, largest first, none below 0; (..., D, D) -> (..., D).

    Raises:
        ModelError: it holds NaN or infinity.
    """
    _finite_trace(m_DD)
    with _one_thread():
        return torch.linalg.eigvalsh(m_DD).flip(-1).clamp_min(0)


def principal_directions(m_DD: Tensor, count: int) -> Tensor:
    """The eigenvectors of a second moment that have the largest eigenvalues, as columns, (..., D, D) -> (..., D, K).

    Raises:
        ModelError: it holds NaN or infinity.
    """
    _finite_trace(m_DD)
    with _one_thread():
        return torch.linalg.eigh(m_DD)[1][..., -count:].flip(-1)


def effective_rank(eigenvalues_D: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values (Roy and Vetterli, EUSIPCO 2007).

    (..., D) -> (...). From 1 (one direction) to D (all alike); 0 for tokens that are all zero.

    Args:
        eigenvalues_D: of the second moment: the squares of the singular values of Z.
    """
    singular_D = eigenvalues_D.sqrt()
    total = singular_D.sum(-1, keepdim=True)
    share_D = singular_D / torch.where(total > 0, total, 1)
    return torch.where(total[..., 0] > 0, torch.special.entr(share_D).sum(-1).exp(), 0)


def stable_rank(eigenvalues_D: Tensor) -> Tensor:
    """Sum of the eigenvalues over the largest, |Z|_F^2 / |Z|_2^2, (..., D) -> (...); 0 for tokens that are all zero."""
    largest = eigenvalues_D.amax(-1)
    return torch.where(largest > 0, eigenvalues_D.sum(-1) / torch.where(largest > 0, largest, 1), 0)


def numerical_rank(eigenvalues_D: Tensor, tokens: int) -> Tensor:
    """Number of singular values of Z above what float32 rounding can make, (..., D) -> (...), int64.

    The threshold is that of `numpy.linalg.matrix_rank` for the float32 matrix Z: the largest singular value times
    max(N, D) times 1.2e-7.
    """
    D = eigenvalues_D.shape[-1]
    relative = max(tokens, D) * torch.finfo(torch.float32).eps
    return (eigenvalues_D > eigenvalues_D.amax(-1, keepdim=True) * relative**2).sum(-1)


def components_for(eigenvalues_D: Tensor, share: float) -> Tensor:
    """How many of the largest eigenvalues sum up to ``share`` of all, (..., D) -> (...), int64; 0 where all are 0."""
    descending_D = eigenvalues_D.sort(-1, descending=True).values
    wanted = share * descending_D.sum(-1, keepdim=True)
    before_D = descending_D.cumsum(-1) - descending_D
    # a sum that misses the wanted share by rounding only has reached it
    return (before_D < wanted * (1 - 1e-12)).sum(-1)
