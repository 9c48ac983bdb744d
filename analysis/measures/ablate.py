"""Does compression do the work? A decoder without a layer, without a head, with another step or other subspaces.

Each variant is evaluated on the same images: its mIoU minus that of the decoder as it was trained, paired over units as
`whitebox compare` does; beside it the change of what layers are derived to lower,

    R^c = sum over layers of R^c(LayerNorm_l(Z_l) | U_l)        Z_l: tokens after layer l, U_l as trained

in percent, a mean over images, of one window of each, by chance and the same in all variants. The encoder runs once;
its tokens go through each variant of the decoder.

Variants. ``step``: what a layer adds, times 0 (the layer is dropped), 0.5, 2 and -1. ``head``: a head adds nothing; of
ToST it still takes its share of the membership. ``gradient``: what a layer adds is replaced by what its softmax
approximates, a step along the exact gradient of R^c(LayerNorm(Z) | U) (arXiv 2306.01129, eq. 10 to 13), the layer's own
update's length halved until that is no better (`variants.descended`). ``principal``, ``random``,
``other training``: the bases of all layers replaced by the leading principal directions of the tokens, by normal
matrices, by those of ``--other``; each head is as long as it was, and turned within its new subspace to lie next to the
learned one, since output maps of their own (CBSA, ToST, CRATE) stay. ``pruning``: heads dropped one after another, the
one whose loss alone costs least first. The order is never made on the images it is used on: units are shared out in
turn over two folds, and each takes the order of the other.

Layout of ``measured`` (fractions; of R^c nats and percent)::

    {"miou": ESTIMATE, "rate": ESTIMATE or null,
     "variants": [{"kind": "step", "layer": "decoder.layers.0" or "all", "number": 0.5 or null,
                   "miou": ESTIMATE of a difference, "rate": ESTIMATE in percent, or null}, ...],
     "pruning": [{"dropped": ["decoder.layers.1 2" in the first fold, in the second], "miou": ..., "rate": ...}, ...],
     "notes": [...]}

Shapes: N images, H heads, P subspace dimension, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from analysis.maths.conventions import EPS, RESAMPLES
from analysis.measurement import Measurement, Progress, Seed
from analysis.record import Answer
from whitebox.errors import ConfigError, ModelError, require

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from analysis.consumed import Chosen, EvaluatedImages
    from analysis.measures.decoder_scores import DecoderScores, Seen
    from analysis.measures.variants import Dropped
    from whitebox.models.attention import Subspaces
    from whitebox.runs import Run, SavedRun


@dataclass(frozen=True, kw_only=True)
class Ablate(Measurement):
    """Does compression do the work? mIoU and R^c without a layer or head, with other steps, directions and subspaces.

    \b
    whitebox ablate results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid --limit 50
    whitebox ablate results/depict-sa-tiny-camvid --layers decoder.layers.0 --other results/depict-sa-tiny-camvid-1
    """

    kind = "ablate"
    eps: Annotated[float, Option(help="Distortion of R^c; the formula has its square.")] = EPS
    layers: Annotated[
        str | None, Option(help="Change these, names with commas: decoder.layers.0,decoder.layers.2. Default: all.")
    ] = None
    heads: Annotated[str | None, Option(help="Drop these heads of each layer, 0,2. Default: all.")] = None
    draws: Annotated[int, Option(min=1, help="Random subspaces to replace the learned ones by.")] = 3
    other: Annotated[str | None, Option(help="A run whose subspaces replace the learned ones: another seed's.")] = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        require(0 < self.eps < math.inf, "--eps", self.eps, "it must be above 0 and finite")
        require(self.draws >= 1, "--draws", self.draws, "it must be at least 1")
        for head in self._heads or ():
            require(head >= 0, "--heads", self.heads, "heads count from 0")

    @property
    def _heads(self) -> frozenset[int] | None:
        if self.heads is None:
            return None
        try:
            return frozenset(int(head) for head in self.heads.split(","))
        except ValueError:
            raise ConfigError(f"--heads {self.heads!r} is impossible: give numbers with commas, 0,2.") from None

    def consumes(self, run: SavedRun | Run, chosen: Chosen) -> EvaluatedImages:
        """Images as evaluation segments them."""
        from analysis.consumed import EvaluatedImages

        return EvaluatedImages(run, chosen)

    @property
    def seeds(self) -> Mapping[str, int]:
        """Of the random subspaces, of the bootstrap over units, and of the window whose R^c is measured."""
        return {"random": self.seed, "bootstrap": self.seed, "windows": self.seed}

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """The other run is its weights.

        Raises:
            WhiteboxError: it cannot be read, or is the run itself.
        """
        from analysis.record import describe_weights
        from whitebox.interop.hub import weights_of

        other = None if self.other is None else describe_weights(weights_of(self.other)).sha256
        if other is not None and other == describe_weights(run.weights).sha256:
            raise ConfigError(f"--other {self.other} is {run.name} itself: give another training.")
        return {**super().settings(run), "other": other, "resamples": RESAMPLES}

    def measure(self, run: Run, consumed: EvaluatedImages, advance: Progress) -> Answer:
        """All variants of a run's decoder.

        Raises:
            ConfigError: an unknown layer or head.
            ModelError: weights that are NaN or infinite, or ``other`` has other subspaces.
            WhiteboxError: an image cannot be read, or does not fit.
        """
        from contextlib import nullcontext

        from analysis.measures.decoder_scores import DecoderScores
        from analysis.measures.variants import (
            Variant,
            compressing,
            gradients,
            heads,
            layers_of,
            moments_heard,
            replaced_subspaces,
            steps,
            without_heads,
        )

        chosen = self._chosen(layers_of(run.model))
        spaces = compressing(chosen)
        single = heads(chosen, self._heads) if chosen else []
        others = None if self.other is None or not spaces else _bases_of(Path(self.other), spaces)
        scores = DecoderScores(run, consumed, self.eps, self.seed)
        with moments_heard(spaces) as moments:
            before = scores.seen(nullcontext())
        changes = scores.changes_from(before)
        variants = steps(run.model, chosen)
        if spaces:
            variants += gradients(run.model, spaces, self.eps)
            variants += replaced_subspaces(spaces, moments, self.draws, self.seed, others)
        done, total = 0, len(variants) + len(single) + 2 * max(0, len(single) - 1)

        def seen(variant: Variant) -> Seen:
            nonlocal done
            found = scores.seen(variant.made())
            done += 1
            advance(done, total)
            return found

        def without(dropped: Sequence[Dropped]) -> Seen:
            name, _, head = dropped[0]
            return seen(Variant("head", name, head, lambda: without_heads(run.model, dropped)))

        def row(kind: str, layer: str, number: float | None, found: Seen) -> dict[str, Any]:
            return {"kind": kind, "layer": layer, "number": number, **changes(found)}

        rows = [row(each.kind, each.layer, each.number, seen(each)) for each in variants]
        alone = [without([each]) for each in single]
        rows += [row("head", name, head, found) for (name, _, head), found in zip(single, alone, strict=True)]
        pruning = _pruning(scores, changes, single, alone, without)
        advance(total, total)
        measured = {
            **scores.levels(before),
            "variants": rows,
            "pruning": pruning,
            "notes": _notes(chosen, spaces, scores.unit_N),
        }
        return Answer(measured=measured, n=len(consumed))

    def _chosen(self, every: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        """The layers to change; a model that has none is measured as it is.

        Raises:
            ConfigError: there is no such layer.
        """
        names = list(every) if self.layers is None else [name.strip() for name in self.layers.split(",")]
        for name in names:
            if every and name not in every:
                raise ConfigError(f"There is no layer {name!r} to change: this model has {', '.join(every)}.")
        return {name: layer for name, layer in every.items() if name in names}


def _pruning(
    scores: DecoderScores,
    changes: Callable[[Seen], dict[str, Any]],
    single: Sequence[Dropped],
    alone: Sequence[Seen],
    without: Callable[[Sequence[Dropped]], Seen],
) -> list[dict[str, Any]]:
    """Heads dropped one after another, each fold of units in the order of the other.

    Args:
        changes: see `DecoderScores.changes_from`.
        single: all heads. alone: what the decoder makes of the images without each of them.
        without: the same without several.
    """
    from analysis.measures.decoder_scores import folds

    fold_N = folds(scores.unit_N)
    ranked_on = [fold_N == 1, fold_N == 0] if fold_N.any() else [fold_N == 0] * 2
    orders = [
        sorted(range(len(single)), key=lambda index: -scores.miou(alone[index], ranked_N)) for ranked_N in ranked_on
    ]
    found = {frozenset([index]): each for index, each in enumerate(alone)}
    rows = []
    for count in range(1, len(single) + 1):
        seen = []
        for order in orders:
            dropped = frozenset(order[:count])
            if dropped not in found:
                found[dropped] = without([single[index] for index in sorted(dropped)])
            seen.append(found[dropped])
        names = [f"{single[order[count - 1]][0]} {single[order[count - 1]][2]}" for order in orders]
        rows.append({"dropped": names, **changes(seen[0].where(fold_N == 0, seen[1]))})
    return rows


def _notes(chosen: Mapping[str, nn.Module], spaces: Mapping[str, Subspaces], unit_N: Sequence[str]) -> list[str]:
    """What does not apply, and what would mislead."""
    from whitebox.models.attention import UntiedSubspaces

    if not chosen:
        return ["has no layer whose change of the tokens can be taken away."]
    notes = []
    if not spaces:
        notes.append("has no layers with subspaces: no gradient step, and nothing to replace them by.")
    if any(isinstance(layer, UntiedSubspaces) for layer in spaces.values()):
        notes.append("has output maps of its own, which stay where subspaces are replaced.")
    if len(set(unit_N)) == 1:
        notes.append("all images are of one unit: heads were pruned in an order made on the same images.")
    return notes


def _bases_of(path: Path, layers: Mapping[str, Subspaces]) -> dict[str, Tensor]:
    """The subspaces of another training.

    Raises:
        ModelError: it has other layers, or subspaces of another shape.
    """
    from whitebox.models.attention import subspace_layers
    from whitebox.runs import open_run

    theirs = {name: layer.bases.detach() for name, layer in subspace_layers(open_run(path, device="cpu").model).items()}
    for name, layer in layers.items():
        if name not in theirs or theirs[name].shape != layer.bases.shape:
            raise ModelError(
                f"{path} has no subspaces of {' x '.join(map(str, layer.bases.shape))} in {name}: --other takes "
                "another training of the same decoder."
            )
    return theirs
