"""Named activations: how analyses look inside a model.

A ``Tap`` is an identity module placed where the papers talk about a quantity; its module path is its name. Naming is
the same in every model:

    encoder.input                   of an ordinary ViT: tokens that enter the first block     (B, 1+N, D)
    encoder.layers.{i}.tokens       tokens after encoder block i, class tokens first          (B, 1+N, D)
    encoder.layers.{i}.attention    softmax weights of block i                                (B, H, 1+N, 1+N)
    decoder.input                   tokens that enter the first decoder layer                 (B, N, D)
    decoder.layers.{l}.tokens       tokens after decoder layer l                              (B, N, D)
    decoder.layers.{l}.update       what layer l adds to its input                            (B, N, D)
    decoder.layers.{l}.projected    tokens in the layer's subspaces, U_h^T LayerNorm(z)       (B, H, N, P)
    decoder.layers.{l}.attention    softmax weights of layer l                                (B, H, N, N)
    decoder.cross_layers.{l}.*      the same for cross-attention (rows: class embeddings)
    decoder.layers.{l}.attention    of CBSA: representatives (rows) over tokens               (B, H, R, N)
    decoder.layers.{l}.representatives            of CBSA: means of the projected patches     (B, H, R, P)
    decoder.layers.{l}.representative_attention   of CBSA: softmax weights among them         (B, H, R, R)
    decoder.layers.{l}.membership   of ToST, which has no attention: softmax over heads       (B, H, N)
    decoder.layers.{l}.compressed   of CRATE: tokens between attention and ISTA               (B, N, D)
    decoder.layers.{l}.sparse       of CRATE: what ISTA gives; its zeros are the sparsity     (B, N, D)
    decoder.cross_layers.{l}.masks  of SegViT: mean over heads of the attention logits        (B, K, N)
    decoder.memories.{s}.tokens     of SegViT: tokens of one encoder layer, projected         (B, N, D)
    encoder.layers.{i}.maps         of a ConvNeXt: the map of level i                         (B, C, h, w)
    encoder.dense                   of CLIP: the last map in the space of the names           (B, D, h, w)
    decoder.cost, decoder.embedded  of SED: cost volume; after the first convolution          (B, K, P or C, h, w)
    decoder.layers.{l}.spatial_maps, .class_maps, .maps   of SED: after each part of layer l  (B, K, C, h, w)
    decoder.layers.{l}.masks, decoder.masks   of SED: masks before layer l, and at the end    (B, K, h, w)
                                    (with early rejection -inf for what is rejected, and of a layer no maps)
    decoder.layers.{l}.kept         of SED's early rejection: what enters layer l             (B, K)
    decoder.layers.{l}.classes.weights   of SED: weights among classes at each place          (B h w, H, K, K)
    decoder.patches, decoder.classes   unit vectors whose dot product is the cosine           (B, N, D), (B, K, D)
    decoder.cosine                  mask logits before LayerNorm over classes                 (B, N, K)

Nothing is computed or kept while nobody listens: attention weights are recomputed from the layer's input only when
their tap is listened to, so the normal path stays fused. That is also why not all can be changed (`replace`): what
passes through a ``Readout`` is only said, and the model goes on with something else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial

from torch import Tensor, nn

from whitebox.errors import ModelError

Change = Callable[[Tensor], Tensor]


class Tap(nn.Module):
    """Identity with a name; hands what passes through it to whoever listens, after whoever changes it."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: list[Callable[[Tensor], None]] = []
        self._changes: list[Change] = []

    @property
    def listening(self) -> bool:
        """Whether anybody reads or changes it: ask before computing what the forward pass itself does not need."""
        return bool(self._listeners or self._changes)

    @property
    def changed(self) -> bool:
        """Whether anybody changes it."""
        return bool(self._changes)

    def forward(self, value: Tensor) -> Tensor:
        for change in self._changes:
            value = change(value)
        for listener in self._listeners:
            listener(value)
        return value

    def between(self, before: Tensor, after: Tensor) -> Tensor:
        """Let ``after - before`` pass, and go on with ``after``, to the last bit where nobody changes it."""
        if self._changes:
            return before + self(after - before)
        if self._listeners:
            self(after - before)
        return after

    def __getstate__(self) -> dict[str, object]:
        """A copy of a model (EMA, interventions) starts without those who listen to the original, or change it."""
        return {**self.__dict__, "_listeners": [], "_changes": []}


class Readout(Tap):
    """A tap of something the model does not go on with: it can be read, not changed."""


def tap_names(model: nn.Module) -> list[str]:
    """Names of all taps of ``model``, in order of definition."""
    return list(_taps(model))


@contextmanager
def record(model: nn.Module, *patterns: str) -> Iterator[dict[str, Tensor]]:
    """Collect the activations whose tap names match ``patterns`` (shell wildcards) during the ``with`` block.

    Yields a dictionary name -> tensor that is filled by the forward pass (a later pass overwrites an earlier one).
    Tensors are not detached: gradients flow through them unless the caller disables autograd.

    >>> with record(model, "decoder.*.tokens") as activations:      # doctest: +SKIP
    ...     model(images)
    >>> activations["decoder.layers.0.tokens"].shape                # doctest: +SKIP

    Raises:
        ModelError: a pattern matches no tap.
    """
    chosen = {name: tap for pattern in patterns for name, tap in _matching(model, pattern).items()}
    activations: dict[str, Tensor] = {}
    added: list[tuple[Tap, Callable[[Tensor], None]]] = []
    try:
        for name, tap in chosen.items():
            keep: Callable[[Tensor], None] = partial(activations.__setitem__, name)
            tap._listeners.append(keep)
            added.append((tap, keep))
        yield activations
    finally:
        for tap, keep in added:
            tap._listeners.remove(keep)


@contextmanager
def replace(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Change activations during the ``with`` block: the model goes on with what a function makes of each.

    Gradients flow through the functions. `record` within it reads what was changed. `whitebox.models.changes` has some
    functions ready.

    >>> with replace(model, {"decoder.layers.1.update": zero()}):      # doctest: +SKIP
    ...     model(images)

    Args:
        changes: names of taps (shell wildcards) -> value (B, ...) to value of the same shape; where several match one
            tap they act in order.

    Raises:
        ModelError: a name matches no tap, or one that can only be read; in the block: a function gave another shape.
    """
    added: list[tuple[Tap, Change]] = []
    for pattern, change in changes.items():
        for name, tap in _matching(model, pattern).items():
            if isinstance(tap, Readout):
                raise ModelError(
                    f"{name} can be read, not changed: the model does not go on with it. It has, to change: "
                    f"{', '.join(changeable(model))}."
                )
            added.append((tap, partial(_changed, name, change)))
    try:
        for tap, each in added:
            tap._changes.append(each)
        yield
    finally:
        for tap, each in added:
            tap._changes.remove(each)


def changeable(model: nn.Module) -> list[str]:
    """Names of the taps that `replace` takes."""
    return [name for name, tap in _taps(model).items() if not isinstance(tap, Readout)]


def _changed(name: str, change: Change, value: Tensor) -> Tensor:
    made = change(value)
    if made.shape != value.shape:
        raise ModelError(
            f"What replaces {name} has shape {tuple(made.shape)}, it takes {tuple(value.shape)}: give the same."
        )
    return made


def _taps(model: nn.Module) -> dict[str, Tap]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Tap)}


def _matching(model: nn.Module, pattern: str) -> dict[str, Tap]:
    """The taps whose names match a pattern.

    Raises:
        ModelError: there is none.
    """
    taps = _taps(model)
    matching = {name: tap for name, tap in taps.items() if fnmatchcase(name, pattern)}
    if not matching:
        raise ModelError(f"No activation is named {pattern!r}; this model has: {', '.join(taps) or 'none'}.")
    return matching
