"""What an activation can be replaced by (`whitebox.replace`): each function here makes one that is applied to it.

Shapes: B images or windows, H heads, N tokens, D their width, ... any further axes; a value with heads is (B, H, N, P).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from whitebox.errors import ModelError, require
from whitebox.models.taps import Change


def zero(heads: Sequence[int] | None = None) -> Change:
    """Nothing.

    Args:
        heads: of these alone, where the value is (B, H, ...); None: all of it.

    Raises:
        ModelError: in use, there is no such head.
    """
    if heads is None:
        return lambda value: value.new_zeros(value.shape)
    return _of_heads(heads, lambda value: value.new_zeros(value.shape))


def scale(factor: float) -> Change:
    """So many times as much; below 0: the other way.

    Raises:
        ConfigError: ``factor`` is not finite.
    """
    require(math.isfinite(factor), "factor", factor, "it must be finite")
    return lambda value: factor * value


def mean(recorded: Tensor) -> Change:
    """The mean over images and tokens of what was recorded there, for each head and direction: mean ablation."""
    mean_value = recorded.mean((0, -2), keepdim=True)
    return lambda value: mean_value.to(value).expand_as(value)


def other(recorded: Tensor) -> Change:
    """What was recorded there of another image (1, ...), or of as many as there are: activation patching.

    Raises:
        ModelError: in use, shapes differ: images have another size.
    """

    def change(value: Tensor) -> Tensor:
        if recorded.shape[1:] != value.shape[1:] or len(recorded) not in (1, len(value)):
            raise ModelError(
                f"What was recorded of another image has shape {tuple(recorded.shape)}, here it is "
                f"{tuple(value.shape)}: take images of one size."
            )
        return recorded.to(value).expand_as(value)

    return change


def along(direction_D: Tensor, amount: float) -> Change:
    """A step of length ``amount`` along a direction added to each token: steering.

    Raises:
        ConfigError: ``amount`` is not finite.
        ModelError: the direction is zero or not finite; in use, it has another width than the value.
    """
    require(math.isfinite(amount), "amount", amount, "it must be finite")
    length = float(direction_D.norm())
    if direction_D.dim() != 1 or not 0 < length < math.inf:
        raise ModelError("A direction is a vector (D,), finite and not zero.")
    step_D = direction_D * (amount / length)

    def change(value: Tensor) -> Tensor:
        if value.shape[-1] != len(step_D):
            raise ModelError(f"The direction has {len(step_D)} numbers, the activation {value.shape[-1]}.")
        return value + step_D.to(value)

    return change


def _of_heads(heads: Sequence[int], change: Change) -> Change:
    """Of some heads alone."""

    def changed(value: Tensor) -> Tensor:
        if value.dim() != 4 or not all(0 <= head < value.shape[1] for head in heads):
            what = f"heads 0 to {value.shape[1] - 1}" if value.dim() == 4 else "no heads"
            raise ModelError(f"There is no head {', '.join(map(str, heads))}: this activation has {what}.")
        chosen = value.new_zeros(value.shape[1]).index_fill(0, value.new_tensor(list(heads)).long(), 1).bool()
        return change(value).where(chosen[:, None, None], value)

    return changed
