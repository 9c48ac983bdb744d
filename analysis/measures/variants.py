"""Variants of a trained decoder, each for the length of a block: a layer dropped, a step scaled, subspaces replaced.

Shapes: B windows, N tokens, D width, H heads, P subspace dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from analysis.maths.coding_rate import (
    coordinate_gradient,
    float64,
    from_heads,
    in_heads,
    principal_directions,
    second_moment,
)
from analysis.maths.moves import TRIED, constant
from analysis.maths.objectives import rates
from whitebox.errors import ConfigError
from whitebox.models import Segmentor, changeable, replace
from whitebox.models.attention import MHSA, Subspaces
from whitebox.models.changes import scale, zero

FACTORS = (0.0, 0.5, 2.0, -1.0)  # of a step
ALL = "all"  # layers


@dataclass(frozen=True)
class Variant:
    """One change.

    Attributes:
        kind: ``step``, ``head``, ``gradient``, or what the subspaces are replaced by.
        layer: its name; or ``all``.
        number: the factor of a step, a head, or a draw; None: there is only one.
        made: what is inside it has the changed decoder.
    """

    kind: str
    layer: str
    number: float | int | None
    made: Callable[[], AbstractContextManager[Any]]


def layers_of(model: Segmentor) -> dict[str, nn.Module]:
    """The decoder's layers that add something which can be changed."""
    modules = dict(model.named_modules())
    taps = [name for name in changeable(model) if name.startswith("decoder.") and name.endswith(".update")]
    return {name: modules[name] for name in (tap.removesuffix(".update") for tap in taps)}


def compressing(layers: Mapping[str, nn.Module]) -> dict[str, Subspaces]:
    """Those that are derived to lower R^c of the tokens that enter them."""
    return {
        name: layer for name, layer in layers.items() if isinstance(layer, Subspaces) and ".cross_layers." not in name
    }


def steps(model: Segmentor, layers: Mapping[str, nn.Module]) -> list[Variant]:
    """What each layer adds, and what all add, multiplied; by 0: the layer is dropped."""
    return [
        Variant("step", place, factor, partial(replace, model, {f"{name}.update": scale(factor) for name in names}))
        for factor in FACTORS
        for place, names in _places(layers).items()
    ]


Dropped = tuple[str, nn.Module, int]  # a layer's name, the layer, and a head of it


def heads(layers: Mapping[str, nn.Module], chosen: Collection[int] | None = None) -> list[Dropped]:
    """What can be dropped.

    Args:
        chosen: these heads of each layer; None: all.

    Raises:
        ConfigError: no layer has one that was chosen.
    """
    found = [
        (name, layer, head)
        for name, layer in layers.items()
        for head in range(head_count(layer))
        if chosen is None or head in chosen
    ]
    for head in sorted(set(chosen or ()) - {head for _, _, head in found}):
        most = max(head_count(layer) for layer in layers.values())
        known = f"layers have heads 0 to {most - 1}" if most else "no layer has heads"
        raise ConfigError(f"There is no head {head} to drop: {known}.")
    return found


def head_count(layer: nn.Module) -> int:
    """How many heads a layer has that can be dropped."""
    attention = layer if isinstance(layer, Subspaces) else getattr(layer, "attn", None)
    if isinstance(attention, MHSA):
        return attention.num_heads
    return attention.heads if isinstance(attention, Subspaces) else 0


@contextmanager
def without_heads(model: Segmentor, dropped: Sequence[Dropped]) -> Iterator[None]:
    """A subspace that sees zeros adds nothing; of a black-box head the columns of the output map are zero."""
    with ExitStack() as stack:
        for name, layer, head in dropped:
            if isinstance(layer, Subspaces):
                stack.enter_context(replace(model, {f"{name}.projected": zero(heads=[head])}))
            else:
                attention = cast("Any", layer).attn
                weight_DD = attention.proj.weight.detach().clone()
                weight_DD[:, head * attention.head_dim : (head + 1) * attention.head_dim] = 0
                stack.enter_context(parameter_as(attention.proj.weight, weight_DD))
        yield


def gradients(model: Segmentor, layers: Mapping[str, Subspaces], eps: float) -> list[Variant]:
    """The exact gradient step of R^c instead of what a layer adds, and of all; see `gradient_steps`."""
    return [
        Variant("gradient", place, None, partial(gradient_steps, model, {name: layers[name] for name in names}, eps))
        for place, names in _places(layers).items()
    ]


def _places(layers: Iterable[str]) -> dict[str, list[str]]:
    """Each layer, and where there are several, all."""
    names = list(layers)
    return {**{name: [name] for name in names}, **({ALL: names} if len(names) > 1 else {})}


@contextmanager
def gradient_steps(model: Segmentor, layers: Mapping[str, Subspaces], eps: float) -> Iterator[None]:
    """Each layer moves its tokens by a gradient step, at most as far as it has moved them itself; see `descended`.

    Of CRATE that is the attention; ISTA follows as it is.
    """
    entered: dict[str, Tensor] = {}

    def note(name: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        entered[name] = given[0]

    def update(name: str, update_BND: Tensor) -> Tensor:
        return descended(layers[name], entered[name], update_BND, eps)

    def compressed(name: str, y_BND: Tensor) -> Tensor:
        return entered[name] + descended(layers[name], entered[name], y_BND - entered[name], eps)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(partial(note, name)).remove)
            tap, change = ("compressed", compressed) if hasattr(layer, "compressed") else ("update", update)
            stack.enter_context(replace(model, {f"{name}.{tap}": partial(change, name)}))
        yield


def descended(layer: Subspaces, z_BND: Tensor, update_BND: Tensor, eps: float) -> Tensor:
    """The gradient step of R^c(LayerNorm(Z) | U) that lowers it most in each window, as an update.

    The length of ``update_BND`` is halved, up to twelve times, until the rate is below that of no step and half as long
    is no better. Tokens and step are projected once: through a LayerNorm only the length differs.
    """
    step_BND, w_BHNP = descent(layer, z_BND, eps)
    weight_D, bases_HPD, shift_H1P = _of_norm(layer, step_BND)
    length_B11, own_B11 = (each.norm(dim=(-2, -1), keepdim=True) for each in (step_BND, update_BND.to(step_BND)))
    step_BND = step_BND * (own_B11 / torch.where(length_B11 > 0, length_B11, 1.0))
    along_BHNP = float64(in_heads(weight_D * step_BND, bases_HPD))  # the step has mean 0, as the gradient has
    start_BND = float64(z_BND - z_BND.mean(-1, keepdim=True))
    parts = (start_BND, float64(step_BND))
    own_BN, both_BN, step_BN = ((x * y).mean(-1) for x, y in ((parts[0],) * 2, parts, (parts[1],) * 2))
    shift_H1P = float64(shift_H1P)
    start_BHNP = (float64(w_BHNP) - shift_H1P) * (own_BN + layer.norm.eps).sqrt()[:, None, :, None]

    def rate(factor: float, of_B: Tensor) -> Tensor:
        own, both, step = own_BN[of_B], both_BN[of_B], step_BN[of_B]
        spread_BN = (own + 2 * factor * both + factor**2 * step + layer.norm.eps).sqrt()
        w_BHNP = torch.add(start_BHNP[of_B], along_BHNP[of_B], alpha=factor).div_(spread_BN[:, None, :, None])
        return rates(w_BHNP.add_(shift_H1P), eps).sum(-1)

    seeking_B = torch.arange(len(z_BND), device=start_BND.device)
    none_B = rate(0.0, seeking_B)
    best_B, chosen_B = none_B.clone(), torch.zeros_like(none_B)
    for factor in TRIED[1:]:
        rate_B = rate(factor, seeking_B)
        better_B = rate_B < best_B[seeking_B]
        improved_B = seeking_B[better_B]
        best_B[improved_B], chosen_B[improved_B] = rate_B[better_B], factor
        seeking_B = seeking_B[better_B | (best_B[seeking_B] >= none_B[seeking_B])]
        if not len(seeking_B):
            break
    return (chosen_B[:, None, None].to(step_BND) * step_BND).to(update_BND)


def descent(layer: Subspaces, z_BND: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Minus the gradient of R^c(LayerNorm(Z) | U) by Z, through the LayerNorm, and the coordinates (B, H, N, P).

    In closed form, since a decoder is evaluated without autograd. Rates and inverses are float64, projections as exact
    as the tokens are, float32 at least.
    """
    z_BND = z_BND.to(torch.promote_types(z_BND.dtype, torch.float32))
    weight_D, bases_HPD, shift_H1P = _of_norm(layer, z_BND)
    centred_BND = z_BND - z_BND.mean(-1, keepdim=True)
    spread_BN1 = (centred_BND.square().mean(-1, keepdim=True) + layer.norm.eps).sqrt()
    whitened_BND = centred_BND / spread_BN1
    w_BHNP = in_heads(weight_D * whitened_BND, bases_HPD) + shift_H1P
    gradient_BND = weight_D * from_heads(coordinate_gradient(w_BHNP, eps).to(z_BND), bases_HPD)
    along_BN1 = (gradient_BND * whitened_BND).mean(-1, keepdim=True)
    step_BND = -(gradient_BND - gradient_BND.mean(-1, keepdim=True) - whitened_BND * along_BN1) / spread_BN1
    return step_BND, w_BHNP


def _of_norm(layer: Subspaces, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gain of a layer's norm, its bases, and what the norm's bias is in them, (H, 1, P), as ``like``."""
    bases_HPD = layer.bases.detach().to(like)
    return layer.norm.weight.detach().to(like), bases_HPD, in_heads(layer.norm.bias.detach().to(like)[None], bases_HPD)


def replaced_subspaces(
    layers: Mapping[str, Subspaces],
    moments: Mapping[str, Tensor],
    draws: int,
    seed: int,
    other: Mapping[str, Tensor] | None,
) -> list[Variant]:
    """All subspaces replaced at once.

    Args:
        moments: second moment of the tokens each layer projects, (D, D).
        draws: of random ones.
        other: those of another training, (H, P, D).
    """
    found = [Variant("principal", ALL, None, partial(bases_as, layers, _principal(layers, moments)))]
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed + draw)
        random = {name: torch.randn(layer.bases.shape, generator=generator) for name, layer in layers.items()}
        found.append(Variant("random", ALL, draw, partial(bases_as, layers, random)))
    if other is not None:
        found.append(Variant("other training", ALL, None, partial(bases_as, layers, other)))
    return found


def _principal(layers: Mapping[str, Subspaces], moments: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The leading directions, shared out over the heads in order, from the first again where there are not enough."""
    found = {}
    for name, layer in layers.items():
        directions_DD = principal_directions(moments[name], len(moments[name]))
        index = torch.arange(layer.heads * layer.head_dim) % directions_DD.shape[1]
        found[name] = directions_DD.mT[index.to(directions_DD.device)].unflatten(0, (layer.heads, layer.head_dim))
    return found


@contextmanager
def bases_as(layers: Mapping[str, Subspaces], bases: Mapping[str, Tensor]) -> Iterator[None]:
    """Layers with other bases (H, P, D), see `fitted`; output maps stay."""
    with ExitStack() as stack:
        for name, layer in layers.items():
            fitted_HPD = fitted(constant(bases[name], layer.basis), float64(layer.bases.detach()))
            stack.enter_context(parameter_as(layer.basis, fitted_HPD.flatten(0, 1).to(layer.basis)))
        yield


def fitted(new_HPD: Tensor, own_HPD: Tensor) -> Tensor:
    """Bases rotated within their subspaces to lie next to those they replace, each head as long as it was.

    The rotation is the orthogonal Procrustes solution (Schoenemann 1966). To MSSA it makes no difference; an output map
    of its own goes on to find in a coordinate what is most like what it has learned to find there.
    """
    left_HPP, _, right_HPP = torch.linalg.svd(own_HPD @ new_HPD.mT)
    turned_HPD = left_HPP @ right_HPP @ new_HPD
    own_H11, length_H11 = (each.norm(dim=(1, 2), keepdim=True) for each in (own_HPD, turned_HPD))
    return turned_HPD * (own_H11 / length_H11)


@contextmanager
def parameter_as(parameter: nn.Parameter, value: Tensor) -> Iterator[None]:
    """A parameter with another value."""
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(before)


@contextmanager
def moments_heard(layers: Mapping[str, Subspaces]) -> Iterator[dict[str, Tensor]]:
    """Second moments of the tokens that layers project, summed over all windows within the block, (D, D)."""
    sums: dict[str, Tensor] = {}

    def add(name: str, layer: Any, given: tuple[Any, ...]) -> None:
        sums[name] = sums.get(name, 0) + second_moment(layer.norm(given[0])).sum(0)

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(partial(add, name)).remove)
        yield sums
