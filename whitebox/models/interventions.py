"""Altered copies of a model whose subspaces are replaced: what does a decoder lose without its learned bases?

The three operations are those of DEPICT's code (``model/utils.py``, ``ortho``), which applies them by hand inside
forward on a GPU; here they are seeded transformations of a model, on any device, in float64. Notation: U_h (P x D) is
the basis of head h (rows are directions), U (H * P x D) the heads stacked.

    head_ortho    U_h <- the nearest orthonormal basis of its row space. Needs P <= D and full row rank.
    head_trans    U_h <- Q_h U_h with Q_h a random orthogonal P x P matrix.
    ortho_trans   U <- Q U with Q a random orthogonal matrix of size H * P: mixes heads, changes the output.

MSSA and MSCA are exactly invariant under head_trans. A layer with an output map W of its own (CBSA, ToST, CRATE) takes
the same rotation there, W <- W Q^T, as the tied map U^T does; CBSA and CRATE are then invariant as well. ToST is not:
its second moments belong to single coordinates, so a rotation inside a head is a real change. Black-box layers have a
query projection in place of bases, and are no subject of these operations.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from whitebox.errors import ModelError
from whitebox.models.attention import Subspaces, UntiedSubspaces, white_box_layers

OPERATIONS = ("head_ortho", "head_trans", "ortho_trans")


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Uniformly (Haar) drawn orthogonal matrix, float64 (size, size): QR of a normal matrix with fixed signs.

    Source: Mezzadri, "How to generate random matrices from the classical compact groups", 2007, section 5.
    """
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return q * r.diagonal().sign()


def orthonormal_rows(basis_PD: Tensor) -> Tensor:
    """The orthonormal basis (P, D) of the row space of a full-rank (P, D) matrix that is nearest to it, float64.

    It is the orthogonal factor of the polar decomposition (Higham, "Computing the polar decomposition", 1986).

    Raises:
        ModelError: more rows than columns, or not of full row rank.
    """
    rows, columns = basis_PD.shape
    if rows > columns:
        raise ModelError(
            f"head_ortho needs subspaces no larger than the model: dimension {rows} exceeds the width {columns}."
        )
    u_PP, singular, v_PD = torch.linalg.svd(basis_PD.double(), full_matrices=False)
    if singular[-1] <= singular[0] * max(rows, columns) * torch.finfo(basis_PD.dtype).eps:
        raise ModelError("head_ortho needs bases of full row rank; this one is rank deficient.")
    return u_PP @ v_PD


def intervene(model: nn.Module, operation: str, layers: Sequence[str] | None = None, seed: int = 0) -> nn.Module:
    """A copy of ``model`` with the bases of its subspace layers replaced; the original is untouched.

    Args:
        operation: ``head_ortho``, ``head_trans`` or ``ortho_trans``.
        layers: names of the layers, e.g. ``["decoder.layers.0"]``; None: all subspace layers.
        seed: of the random matrices; each layer draws its own, by its position among all subspace layers.

    Raises:
        ModelError: unknown operation or layer, no subspace layers, or bases the operation cannot take.
    """
    if operation not in OPERATIONS:
        raise ModelError(f"Unknown intervention {operation!r}: choose from {', '.join(OPERATIONS)}.")
    altered = copy.deepcopy(model)
    found = white_box_layers(altered)
    if not found:
        raise ModelError("This model has no subspace attention, so there are no bases to replace.")
    for name in layers or ():
        if name not in found:
            raise ModelError(f"There is no subspace layer {name!r}: this model has {', '.join(found)}.")
    for position, (name, layer) in enumerate(found.items()):
        if layers is None or name in layers:
            generator = torch.Generator().manual_seed(seed + 1_000_003 * position)
            with torch.no_grad():
                if operation == "head_ortho":
                    bases_HPD = [orthonormal_rows(basis_PD) for basis_PD in layer.bases.cpu().double()]
                    layer.basis.copy_(torch.cat(bases_HPD))
                else:
                    _rotate(layer, _rotation(layer, operation, generator))
    return altered


def _rotation(layer: Subspaces, operation: str, generator: torch.Generator) -> Tensor:
    """Random orthogonal matrix (F, F), F = H * P: of blocks, one a head, or of one piece."""
    if operation == "ortho_trans":
        return random_orthogonal(layer.heads * layer.head_dim, generator)
    return torch.block_diag(*(random_orthogonal(layer.head_dim, generator) for _ in range(layer.heads)))


def _rotate(layer: Subspaces, q_FF: Tensor) -> None:
    layer.basis.copy_(q_FF @ layer.basis.cpu().double())
    if isinstance(layer, UntiedSubspaces):
        layer.output.weight.copy_(layer.output.weight.cpu().double() @ q_FF.T)
