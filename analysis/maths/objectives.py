"""What ToST, CBSA and CRATE are derived to improve, beside R^c (`coding_rate`): per head, differentiable, float64.

**ToST** (arXiv 2412.17810, section 3): with memberships pi_hn and N_h = sum_n pi_hn,

    R_var(Z, Pi | U) = sum_h N_h / (2 N) sum_p log(1 + P / eps^2 m_hp),    m_hp = 1/N_h sum_n pi_hn (u_hp z_n)^2

By Hadamard's inequality it is at least sum_h N_h / (2 N) log det(I + P / (N_h eps^2) U_h Z^T diag(pi_h) Z U_h^T), the
coding rate of the tokens that belong to each subspace, with equality where coordinates are uncorrelated; with pi = 1
this is R^c. TSSA's direction -U_h^T (pi w / (1 + m)) is its gradient at eps^2 = P, times N.

**CBSA** (arXiv 2509.16875): compression of representatives in place of all tokens, and the tokens follow. With
A_h (R x N) the weights of representatives over tokens and r_h what they hold, linear in the tokens,

    contraction   sum_h R(r_h)                         to fall
    tokens given them   sum_h R(w_h - B_h A_h w_h)     B_h = A_h^T, each row divided by its sum

B A w is what a token would be if it were told by the representatives that look at it (the two steps of an anchor graph,
Liu et al., ICML 2010): how far tokens are from them is what compression of representatives alone does not see.

**CRATE** (arXiv 2306.01129, eq. 1): R(Z) - R^c(Z | U) - lambda |Z|_1, to rise; MSSA lowers the second term, ISTA is
derived to raise the first and lower the third. Rates are those of a token on average, so |Z|_1 is, too.

Shapes: ... any leading axes, N tokens, D width, H heads, P subspace dimension, R representatives.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from analysis.maths.coding_rate import coding_rate, float64, in_heads, rate_of_moment, second_moment
from whitebox.errors import require


def projected(z_ND: Tensor, bases_HPD: Tensor) -> Tensor:
    """Coordinates in each subspace, (..., N, D) -> (..., H, N, P), float64."""
    return in_heads(float64(z_ND), float64(bases_HPD).to(z_ND.device))


def variational_rates(w_HNP: Tensor, membership_HN: Tensor, eps: float) -> Tensor:
    """The terms of R_var, (..., H, N, P) -> (..., H), in nats.

    Raises:
        ConfigError: ``eps`` is not positive.
    """
    require(0 < eps < math.inf, "eps", eps, "it must be above 0 and finite")
    members_H1 = membership_HN.sum(-1, keepdim=True)
    moments_HP = (membership_HN.unsqueeze(-1) * w_HNP.square()).sum(-2) / members_H1
    share_H = members_H1.squeeze(-1) / w_HNP.shape[-2]
    return share_H / 2 * torch.log1p(w_HNP.shape[-1] / eps**2 * moments_HP).sum(-1)


def variational_gradient(w_HNP: Tensor, membership_HN: Tensor, bases_HPD: Tensor, eps: float) -> Tensor:
    """The gradient of R_var by the tokens where memberships stay, in closed form, (N, D)."""
    scale = w_HNP.shape[-1] / eps**2
    weights_HN1 = membership_HN.unsqueeze(-1)
    moments_H1P = (weights_HN1 * w_HNP.square()).sum(-2, keepdim=True) / weights_HN1.sum(-2, keepdim=True)
    slope_HNP = scale / w_HNP.shape[-2] * weights_HN1 * w_HNP / (1 + scale * moments_H1P)
    return (slope_HNP @ bases_HPD).sum(0)


def rates(w_HNP: Tensor, eps: float) -> Tensor:
    """R of coordinates that have been projected, or of representatives, (..., H, N, P) -> (..., H), in nats."""
    return rate_of_moment(second_moment(w_HNP), w_HNP.shape[-2], w_HNP.shape[-1], eps)


def given_representatives(w_HNP: Tensor, weights_HRN: Tensor) -> Tensor:
    """Tokens minus what the representatives that look at them say of them, (H, N, P)."""
    back_HNR = weights_HRN.mT / weights_HRN.sum(-2).unsqueeze(-1).clamp_min(torch.finfo(weights_HRN.dtype).tiny)
    return w_HNP - back_HNR @ (weights_HRN @ w_HNP)


def sparse_rate(z_ND: Tensor, sparsity: float, eps: float) -> Tensor:
    """R(Z) and -lambda |Z|_1 of a token on average, (N, D) -> (2,)."""
    z_ND = float64(z_ND)
    return torch.stack([coding_rate(z_ND, eps), -sparsity * z_ND.abs().sum(-1).mean(-1)])
