"""Does each layer do what its derivation says? Its update beside the gradient of the objective it was derived from.

**Compression** (MSSA; any layer with ``bases``). The derivation: a layer is a gradient step that lowers

    R^c(Z | U) = 1/2 sum_h log det(I + P / (N eps^2) U_h Z^T Z U_h^T)            (`analysis.maths.coding_rate`)

Z are all tokens the layer compresses, patches and class embeddings. What they are exactly is a choice, ``at``:

- ``tokens`` (default): the layer's input and output as they are, measured as the layer sees them, so the objective is
  R^c(LayerNorm(Z) | U) and its gradient is taken through the LayerNorm. Everything downstream sees tokens through a
  LayerNorm, so only this change is real: a longer token has no larger rate.
- ``normed``: the derivation read literally, which knows no LayerNorm: Z is what the layer has normalised, the update is
  added to that. Here a step that lengthens tokens raises the rate.

MSSA comes out of the gradient in two steps (CRATE, arXiv 2306.01129, eq. 11 to 13): the inverse becomes a softmax, and
Z + c (MSSA(Z) - Z) becomes Z + step MSSA(Z), with a learned step of free sign. ``derived`` is the direction before the
second: sum_h U_h (softmax - 1) U_h^T y. For a black-box layer, the control, U is its query projection, and the update
all that the block adds.

**Principal directions** (MSCA, ``decoder.cross_layers``). The derivation: class embeddings move to the principal
directions of the tokens (arXiv 2411.03033: a low-rank approximation of Z that lies in its principal subspace). With V
the K leading right singular vectors of the unit patch tokens Z (tap ``decoder.patches``, not centred; fewer where Z has
a lower rank) and q_k the class embeddings

    inside(Q) = 1/K sum_k |V^T q_k|^2 / |q_k|^2        to rise; 1: all lie in the principal subspace
    captured(Q) = |Z Pi_Q|^2 / |Z V|^2                 Pi_Q projects on the span of Q; 1: that span is the subspace

``inside`` is the objective; it cannot see embeddings that all point the same way. ``captured`` depends on their span.

**A layer's own objective.** Where an operator is derived from something else, it is judged by that as well (formulas:
`analysis.maths.objectives`): ToST by its variational bound of R^c, memberships as the layer has them; CBSA by the rate
of its representatives, weights as the layer has them; of CRATE the attention by R^c, and ISTA by R(Z) - lambda |Z|_1 of
the tokens it takes and gives, with R, R^c and lambda |Z|_1 before the layer, after MSSA and after ISTA beside it.

**Signs.** A cosine is that of the update with the direction of steepest improvement: 1 a perfect gradient step, 0 no
better than a random one, negative a step the wrong way. Changes are those of the objective itself, in percent of its
value before (rates; to fall), in percentage points (inside; to rise) or in nats (sparse rate; to rise). ``gradient`` is
the best step along the gradient at most as long as the update, ``path`` the best place on a way of so many small ones.
``multiple`` says how many times the update would
have been best along its own line; 1: the learned step is optimal, negative: the other sign would have been better.

Layout of ``measured``, ESTIMATE as in `analysis.maths.intervals.estimates`, RANDOM one with ``single``, the 2.5 %
and 97.5 % percentiles of single draws (a mean over images is compared with the mean, not with single draws)::

    {"layers": [{"name": "decoder.layers.0", "objective": "compression", "step": 0.8 or null, "before": ESTIMATE,
                 "cosine": ..., "derived": ESTIMATE or null, "change": ..., "gradient": ..., "multiple": ...,
                 "best": ..., "at_end": 0.25, "curve": [ESTIMATE of MULTIPLES, ...],
                 "random": {"cosine": RANDOM, "change": RANDOM},
                 "heads": [{"cosine": ESTIMATE or null, "change": ESTIMATE}, ...],
                 "range": {"cosine": [ESTIMATE at each of DISTORTIONS, ...], "derived": [...] or null, "change": [...]},
                 "captured": {"before": ESTIMATE, "after": ESTIMATE}, of principal directions, which have no eps;
                 "given": ESTIMATE, of a contraction: change of the rate of tokens given their representatives;
                 "parts": {"total" | "rate" | "compression" | "sparsity": {"before", "by_mssa", "by_ista"}}}, ...],
     "notes": [...]}

Shapes: M vectors that are moved (tokens, or class embeddings), N tokens, D width, H heads, P subspace dimension,
K classes, T terms of an objective (heads, or one), S draws, L multiples of an update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from analysis.maths.conventions import DISTORTIONS, EPS, MULTIPLES, RESAMPLES, STEPS, UPDATES
from analysis.measurement import Measurement, Progress, Quantity, Seed
from analysis.record import Answer
from whitebox.errors import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from analysis.consumed import Images
    from whitebox.runs import Run, SavedRun

_AT = ("tokens", "normed")
_UNITS = {"principal directions": "points", "sparse rate": "nats"}  # of changes; those of rates are in percent


@dataclass(frozen=True, kw_only=True)
class Alignment(Measurement):
    """Does each layer do what its derivation says? Its update beside the gradient of its objective.

    \b
    whitebox alignment results/depict-sa-tiny-camvid results/segmenter-mask-tiny-camvid --limit 20 --data-root data
    whitebox alignment results/depict-ca-tiny-camvid --eps 1 --at normed --limit 20 --data-root data
    """

    kind = "alignment"
    eps: Annotated[float, Option(help="Distortion of R^c; the formula has its square.")] = EPS
    at: Annotated[
        str, Option(help="tokens: R^c through a layer's LayerNorm; normed: of the tokens it has normalised.")
    ] = "tokens"
    draws: Annotated[int, Option(min=1, help="Random updates of each window and layer.")] = UPDATES
    path: Annotated[int, Option(min=1, help="Small gradient steps that are together as long as an update.")] = STEPS
    windows: Annotated[
        int | None, Option(min=1, help="Judge so many windows of each image, by chance. Default: all.")
    ] = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        require(0 < self.eps < math.inf, "--eps", self.eps, "it must be above 0 and finite")
        require(self.at in _AT, "--at", self.at, f"choose {' or '.join(_AT)}")
        require(self.draws >= 1, "--draws", self.draws, "it must be at least 1")
        require(self.path >= 1, "--path", self.path, "it must be at least 1")
        require(self.windows is None or self.windows >= 1, "--windows", self.windows, "it must be at least 1")

    @property
    def variant(self) -> str:
        """Where R^c is measured, and its distortion, where they are not the usual ones."""
        words = ([] if self.at == "tokens" else [self.at]) + ([] if self.eps == EPS else [f"eps_{self.eps:g}"])
        return "-".join(words)

    @property
    def seeds(self) -> Mapping[str, int]:
        """Of the random updates, of the bootstrap over images, and of which windows are judged."""
        chosen = {} if self.windows is None else {"windows": self.seed}
        return {"random": self.seed, "bootstrap": self.seed, **chosen}

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """The options, where along an update the objective is measured, and at which other distortions."""
        along = {"multiples": MULTIPLES, "distortions": DISTORTIONS}
        own = dict(super().settings(run))
        if self.windows is None:  # as in records of before there was a choice
            del own["windows"]
        return {**own, **along, "resamples": RESAMPLES}

    def quantities(self, measured: Mapping[str, Any]) -> list[Quantity]:
        """Cosine, and changes of the objective; of layers of one objective apart."""
        found = []
        for key, name in (("cosine", "cosine"), ("change", "change"), ("gradient", "change by the gradient")):
            for objective in dict.fromkeys(layer["objective"] for layer in measured["layers"]):
                layers = [layer for layer in measured["layers"] if layer["objective"] == objective]
                unit = "" if key == "cosine" else f" ({_UNITS.get(objective, '%')})"
                title = f"{name}{unit}" if objective == "compression" else f"{name}, {objective}{unit}"
                found += [
                    Quantity(title, layer["name"], int(layer["name"].rpartition(".")[2]) + 1, layer[key])
                    for layer in layers
                ]
        return found

    def measure(self, run: Run, consumed: Images, advance: Progress) -> Answer:
        """Every layer with subspaces in the decoder, on the windows of evaluation.

        Raises:
            ModelError: weights that are NaN or infinite.
            DataError: an image cannot be read.
        """
        import numpy as np
        import torch

        from analysis.maths.coding_rate import float64
        from analysis.measures.finite import finite
        from analysis.measures.layer_moves import Way, judge_window, judged, summary, taps
        from whitebox.models import record
        from whitebox.models.attention import subspace_layers

        layers = {name: layer for name, layer in subspace_layers(run.model).items() if name.startswith("decoder.")}
        asked = judged(layers)
        rows: list[list[dict[str, Any]]] = [[] for _ in asked]
        generator, by_chance = torch.Generator().manual_seed(self.seed), np.random.default_rng(self.seed)
        for sample in consumed.each(run, advance) if layers else ():
            with torch.inference_mode(), record(run.model, *taps(layers)) as activations:
                masks_BKhw = run.model.masks(sample.pixels_B3HW)
            grid = (masks_BKhw.shape[-2], masks_BKhw.shape[-1])
            way = Way(self.eps, self.at, self.draws, self.path, grid, generator)
            with torch.no_grad():  # only where a gradient is asked for
                count = len(sample.pixels_B3HW)
                chosen = by_chance.permutation(count)[: self.windows] if self.windows else np.arange(count)
                known = {tap: finite(float64(value).clone(), tap, run) for tap, value in activations.items()}
                for each, found in zip(asked, rows, strict=True):
                    windows = [
                        judge_window(each, {tap: value[window] for tap, value in known.items()}, way)
                        for window in np.sort(chosen)
                    ]
                    found.append({key: np.stack([window[key] for window in windows]) for key in windows[0]})
        measured = {
            "layers": [
                summary(each, found, self.seed, consumed.units.of_N) for each, found in zip(asked, rows, strict=True)
            ],
            "notes": [] if layers else ["has no subspaces: there is no objective its layers could follow."],
        }
        return Answer(measured=measured, n=len(consumed))
