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

**Signs.** A cosine is that of the update with the direction of steepest improvement: 1 a perfect gradient step, 0 no
better than a random one, negative a step the wrong way. Changes are those of the objective itself, in percent of its
value before (R^c; to fall) or in percentage points (inside; to rise). ``multiple`` says how many times the update would
have been best along its own line; 1: the learned step is optimal, negative: the other sign would have been better.

Layout of ``measured``, ESTIMATE as in `analysis.maths.intervals.estimates`, RANDOM a mean with the 2.5 % and 97.5 %
percentiles of single draws::

    {"layers": [{"name": "decoder.layers.0", "objective": "compression", "step": 0.8 or null, "before": ESTIMATE,
                 "cosine": ..., "derived": ESTIMATE or null, "change": ..., "gradient": ..., "multiple": ...,
                 "best": ..., "at_end": 0.25, "curve": [ESTIMATE of MULTIPLES, ...],
                 "random": {"cosine": RANDOM, "change": RANDOM},
                 "heads": [{"cosine": ESTIMATE or null, "change": ESTIMATE}, ...],
                 "captured": {"before": ESTIMATE, "after": ESTIMATE} or absent}, ...],
     "notes": [...]}

Shapes: M vectors that are moved (tokens, or class embeddings), N tokens, D width, H heads, P subspace dimension,
K classes, T terms of an objective (heads, or one), S draws, L multiples of an update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from analysis.maths.coding_rate import float64, numerical_rank, projected_rates, second_moment
from analysis.maths.intervals import RESAMPLES, estimates
from analysis.measures.images import Progress, Samples
from analysis.record import Record, RecordError, describe_weights, new_record
from analysis.show.figures import PAGE, figure_style, new_figure, save_figure
from analysis.show.tables import Cell, Column, Table, number, stored_cell
from whitebox.errors import ModelError, require
from whitebox.models import record
from whitebox.models.attention import SubspaceAttention, SubspaceLayer, attention_weights, subspace_layers
from whitebox.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

EPS = 0.1  # as in rank-analysis
DRAWS = 4  # random updates of each window and layer
_SCALES = (0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
MULTIPLES = (*(-scale for scale in reversed(_SCALES)), 0.0, *_SCALES)  # of an update: the objective is drawn there
_AT = ("tokens", "normed")
_CROSS = ".cross_layers."


# ---- maths -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Move:
    """What a layer did to the vectors of one window, and the objective it should have improved; all float64.

    Attributes:
        x_MD: vectors before. update_MD: what the layer added.
        terms: vectors (M, D) -> the objective's terms (T,); their sum is the objective.
        sense: -1 where the objective is to fall, 1 where it is to rise.
        heads_HMD: what each head added, summing up to the update; None where that is not defined.
        derived_MD: the direction of the derivation, see above; None where it is not defined.
    """

    x_MD: Tensor
    update_MD: Tensor
    terms: Callable[[Tensor], Tensor]
    sense: int
    heads_HMD: Tensor | None = None
    derived_MD: Tensor | None = None

    def after(self, multiple: float = 1.0) -> Tensor:
        """The objective when the update is added ``multiple`` times, a scalar."""
        return self.value(self.x_MD + multiple * self.update_MD)

    def value(self, x_MD: Tensor) -> Tensor:
        """The objective, a scalar."""
        return self.terms(x_MD).sum()


def cosine(first_MD: Tensor, second_MD: Tensor) -> Tensor:
    """Between two moves of all vectors (Frobenius inner product), (..., M, D) -> (...); NaN where one is zero."""
    product = (first_MD * second_MD).sum((-2, -1))
    return product / (first_MD.norm(dim=(-2, -1)) * second_MD.norm(dim=(-2, -1)))


def ascent(move: Move) -> Tensor:
    """For each term the direction that improves it most: its gradient times ``sense``, (T, M, D)."""
    with torch.enable_grad():
        x_MD = move.x_MD.clone().requires_grad_()
        gradients = [torch.autograd.grad(term, x_MD, retain_graph=True)[0] for term in move.terms(x_MD)]
    return move.sense * torch.stack(gradients)


def random_update(update_MD: Tensor, generator: torch.Generator) -> Tensor:
    """A normal draw in which each vector moves as far as in ``update_MD``."""
    drawn_MD = torch.randn(update_MD.shape, generator=generator, dtype=torch.float64).to(update_MD.device)
    return F.normalize(drawn_MD, dim=-1) * update_MD.norm(dim=-1, keepdim=True)


def best_multiple(move: Move, values_L: Sequence[float]) -> tuple[float, float]:
    """Line search: the multiple of the update at which the objective is best, and the objective there.

    The best of MULTIPLES (whose objectives are ``values_L``), refined between its neighbours to 0.01.
    """
    best = int(np.argmax(move.sense * np.asarray(values_L)))
    bounds = MULTIPLES[max(best - 1, 0)], MULTIPLES[min(best + 1, len(MULTIPLES) - 1)]
    refined = minimize_scalar(
        lambda multiple: -move.sense * float(move.after(multiple)),
        bounds=bounds,
        method="bounded",  # never reaches the bounds themselves
        options={"xatol": 0.01},
    )
    value = -move.sense * float(refined.fun)
    if move.sense * (value - values_L[best]) > 0:
        return float(refined.x), value
    return MULTIPLES[best], values_L[best]


def gradient_step(move: Move, ascent_MD: Tensor) -> Tensor:
    """The best objective along the steepest direction at no more than the update's length, a scalar.

    Tried are the whole length and twelve halvings of it, as in backtracking, and no step.
    """
    length = ascent_MD.norm()
    if length == 0:
        return move.value(move.x_MD)
    step_MD = ascent_MD * (move.update_MD.norm() / length)
    tried = [move.value(move.x_MD + scale * step_MD) for scale in (0.0, *(0.5**half for half in range(13)))]
    return move.sense * (move.sense * torch.stack(tried)).max()


def principal_subspace(z_ND: Tensor, dimension: int) -> Tensor:
    """The leading right singular vectors of tokens, (D, dimension); fewer where the tokens' rank is lower.

    Further directions would be arbitrary. The rank is that of float32 tokens, see `numerical_rank`.
    """
    energy_D, v_DD = torch.linalg.eigh(second_moment(z_ND))
    return v_DD[:, -min(dimension, int(numerical_rank(energy_D.clamp_min(0), len(z_ND)))) :]


def inside(q_KD: Tensor, v_DK: Tensor) -> Tensor:
    """Mean share of the vectors' energy that lies in a subspace with orthonormal basis V; a scalar in [0, 1]."""
    return ((q_KD @ v_DK).square().sum(-1) / q_KD.square().sum(-1)).mean()


def captured(q_KD: Tensor, z_ND: Tensor) -> Tensor:
    """Energy of tokens in the span of Q, over that in their own K leading directions; a scalar in [0, 1]."""
    u_DK, singular_K, _ = torch.linalg.svd(q_KD.mT, full_matrices=False)
    spanning = singular_K > singular_K.max() * 1e-12
    return (z_ND @ u_DK[:, spanning]).square().sum() / (z_ND @ principal_subspace(z_ND, len(q_KD))).square().sum()


def attended(layer: SubspaceAttention, q_HMP: Tensor, w_HNP: Tensor) -> Tensor:
    """U_h softmax(q w^T P^-1/2) w of each head, (H, M, D): what the layer's heads add up, before its step."""
    return attention_weights(q_HMP, w_HNP, layer.head_dim**-0.5) @ w_HNP @ constant(layer.bases, w_HNP)


def compression(
    layer: SubspaceLayer,
    tokens_ND: Tensor,
    update_ND: Tensor,
    projected_HNP: Tensor | None,
    eps: float = EPS,
    at: str = "tokens",
) -> Move:
    """The move of a layer that should have compressed tokens.

    Args:
        tokens_ND: what left the layer. update_ND: what it added to get there.
        projected_HNP: U_h^T LayerNorm(z), where the layer is a `SubspaceAttention`; else None.
        eps, at: see above.
    """
    bases_HPD, weight_D, bias_D = (
        constant(each, tokens_ND) for each in (layer.bases, layer.norm.weight, layer.norm.bias)
    )

    def normed(x_ND: Tensor) -> Tensor:
        return F.layer_norm(x_ND, weight_D.shape, weight_D, bias_D, layer.norm.eps)

    def rates(x_ND: Tensor) -> Tensor:
        return projected_rates(normed(x_ND) if at == "tokens" else x_ND, bases_HPD, eps)

    z_ND = tokens_ND - update_ND
    heads_HND = derived_ND = None
    if isinstance(layer, SubspaceAttention) and projected_HNP is not None:
        attended_HND = attended(layer, projected_HNP, projected_HNP)
        heads_HND = constant(layer.step_size, z_ND) * attended_HND
        derived_ND = (attended_HND - projected_HNP @ bases_HPD).sum(0)
    return Move(z_ND if at == "tokens" else normed(z_ND), update_ND, rates, -1, heads_HND, derived_ND)


def refinement(
    layer: SubspaceAttention, classes_KD: Tensor, update_KD: Tensor, projected_HNP: Tensor, patches_ND: Tensor
) -> Move:
    """The move of a cross-attention that should have brought class embeddings to the tokens' principal directions.

    Args:
        classes_KD: what left the layer. update_KD: what it added to get there.
        projected_HNP: U_h^T LayerNorm(z) of the tokens it attends to.
        patches_ND: the tokens, as unit vectors.
    """
    q_KD = classes_KD - update_KD
    v_DK = principal_subspace(patches_ND, len(q_KD))
    attended_HKD = attended(layer, q_KD @ constant(layer.bases, q_KD).mT, projected_HNP)
    heads_HKD = constant(layer.step_size, q_KD) * attended_HKD
    return Move(q_KD, update_KD, lambda x_KD: inside(x_KD, v_DK)[None], 1, heads_HKD)


def judge(move: Move, generator: torch.Generator, draws: int = DRAWS) -> dict[str, Array]:
    """All numbers of one move, see above; of random updates (S,), of heads (H,) or (T,), along the update (L,)."""
    ascent_TMD = ascent(move)
    ascent_MD = ascent_TMD.sum(0)
    before_T, after_T = move.terms(move.x_MD), move.terms(move.x_MD + move.update_MD)
    before = before_T.sum()
    curve_L = torch.stack([move.after(multiple) for multiple in MULTIPLES])
    multiple, best = best_multiple(move, curve_L.tolist())
    random = [random_update(move.update_MD, generator) for _ in range(draws)]

    def change(after: Tensor, before: Tensor = before) -> Tensor:
        """In percent of a rate before; in percentage points of a share."""
        return 100 * (after - before) / (before if move.sense < 0 else 1)

    found = {
        "before": before if move.sense < 0 else 100 * before,
        "cosine": cosine(move.update_MD, ascent_MD),
        "change": change(after_T.sum()),
        "gradient": change(gradient_step(move, ascent_MD)),
        "curve": change(curve_L),
        "multiple": torch.tensor(multiple),
        "best": change(torch.tensor(best, dtype=torch.float64)),
        "random_cosine": torch.stack([cosine(each_MD, ascent_MD) for each_MD in random]),
        "random_change": torch.stack([change(move.value(move.x_MD + each_MD)) for each_MD in random]),
        "head_change": change(after_T, before_T),
    }
    if move.derived_MD is not None:
        found["derived"] = cosine(move.derived_MD, ascent_MD)
    if move.heads_HMD is not None:
        found["head_cosine"] = cosine(move.heads_HMD, ascent_TMD)
    return {name: value.cpu().numpy() for name, value in found.items()}


def constant(parameter: Tensor, like: Tensor) -> Tensor:
    """A model's parameter in float64 beside ``like``, without its gradient."""
    return float64(parameter.detach()).to(like.device)


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(
    run: Run,
    *,
    eps: float = EPS,
    at: str = "tokens",
    draws: int = DRAWS,
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    advance: Progress | None = None,
) -> Record:
    """Measure every layer with subspaces in the decoder of a run, on the windows of evaluation.

    Args:
        eps, at: see above.
        draws: random updates of each window and layer.
        split: None: validation. limit: only the first images.
        seed: of the random updates, and of the bootstrap over images.

    Raises:
        ConfigError: ``eps`` not above 0, an unknown ``at``, ``draws`` below 1, ``limit`` below 1, an unknown split.
        ModelError: weights that are NaN or infinite, or classes that are not those of the dataset.
        DataError: there are no images, or one cannot be read.
    """
    require(0 < eps < math.inf, "--eps", eps, "it must be above 0 and finite")
    require(at in _AT, "--at", at, f"choose {' or '.join(_AT)}")
    require(draws >= 1, "--draws", draws, "it must be at least 1")
    samples = Samples(run, split, limit)
    layers = {name: layer for name, layer in subspace_layers(run.model).items() if name.startswith("decoder.")}
    rows: dict[str, list[dict[str, Array]]] = {name: [] for name in layers}
    generator = torch.Generator().manual_seed(seed)
    for sample in samples.each(advance) if layers else ():
        with torch.inference_mode(), record(run.model, *_taps(layers)) as activations:
            run.model.masks(sample.pixels_B3HW)
        with torch.no_grad():  # only where a gradient is asked for
            known = {tap: float64(value).clone() for tap, value in activations.items()}
            for tap, value in known.items():
                if not torch.isfinite(value).all():
                    raise ModelError(
                        f"NaN or infinite values in {tap} of {run.name}: look at its weights and at its training."
                    )
            for name, layer in layers.items():
                windows = [
                    _judge_window(
                        name, layer, {tap: value[window] for tap, value in known.items()}, eps, at, draws, generator
                    )
                    for window in range(len(sample.pixels_B3HW))
                ]
                rows[name].append({key: np.stack([window[key] for window in windows]) for key in windows[0]})
    return new_record(
        "alignment",
        model=run.name,
        data=samples.data,
        measured={
            "layers": [_summary(name, layer, rows[name], seed) for name, layer in layers.items()],
            "notes": [] if layers else ["has no subspaces: there is no objective its layers could follow."],
        },
        n=len(samples),
        weights=describe_weights(run.weights),
        variant="" if at == "tokens" else at,
        seeds={"random": seed, "bootstrap": seed},
        settings={
            **samples.settings,
            "eps": eps,
            "at": at,
            "draws": draws,
            "multiples": MULTIPLES,
            "resamples": RESAMPLES,
        },
    )


def _taps(layers: Mapping[str, SubspaceLayer]) -> list[str]:
    wanted = [f"{name}.{tap}" for name in layers for tap in ("update", "tokens")]
    wanted += [f"{name}.projected" for name, layer in layers.items() if isinstance(layer, SubspaceAttention)]
    wanted += [f"{name}.compressed" for name, layer in layers.items() if hasattr(layer, "compressed")]
    return [*wanted, "decoder.patches"] if any(_CROSS in name for name in layers) else wanted


def _judge_window(
    name: str,
    layer: SubspaceLayer,
    known: Mapping[str, Tensor],
    eps: float,
    at: str,
    draws: int,
    generator: torch.Generator,
) -> dict[str, Array]:
    after, update = known[f"{name}.tokens"], known[f"{name}.update"]
    if f"{name}.compressed" in known:  # of CRATE: ISTA follows, which is not there to compress
        after, update = known[f"{name}.compressed"], known[f"{name}.compressed"] - (after - update)
    if _CROSS not in name:
        return judge(compression(layer, after, update, known.get(f"{name}.projected"), eps, at), generator, draws)
    patches_ND = known["decoder.patches"]
    move = refinement(cast(SubspaceAttention, layer), after, update, known[f"{name}.projected"], patches_ND)
    numbers = judge(move, generator, draws)
    for when, q_KD in (("before", after - update), ("after", after)):
        numbers[f"captured_{when}"] = 100 * captured(q_KD, patches_ND).cpu().numpy()
    return numbers


def _summary(name: str, layer: SubspaceLayer, rows: Sequence[Mapping[str, Array]], seed: int) -> dict[str, Any]:
    """One layer over all images: means over an image's windows, then over images."""

    def over_images(key: str) -> Any:
        return estimates([row[key].mean(0) for row in rows], seed=seed) if key in rows[0] else None

    def over_draws(key: str) -> dict[str, float]:
        drawn = np.concatenate([row[key].ravel() for row in rows])
        low, high = np.percentile(drawn, (2.5, 97.5))
        return {"value": float(drawn.mean()), "low": float(low), "high": float(high)}

    ends = np.concatenate([np.isin(row["multiple"], (MULTIPLES[0], MULTIPLES[-1])) for row in rows])
    step = getattr(layer, "step_size", None)
    summary = {
        "name": name,
        "objective": "principal directions" if _CROSS in name else "compression",
        "step": step.item() if step is not None and step.numel() == 1 else None,
        **{key: over_images(key) for key in ("before", "cosine", "derived", "change", "gradient", "multiple", "best")},
        "at_end": float(ends.mean()),
        "curve": over_images("curve"),
        "random": {key: over_draws(f"random_{key}") for key in ("cosine", "change")},
    }
    cosines, changes = over_images("head_cosine"), over_images("head_change")
    if _CROSS in name:
        summary["heads"] = [{"cosine": each, "change": None} for each in cosines]
        summary["captured"] = {when: over_images(f"captured_{when}") for when in ("before", "after")}
    else:
        known = cosines or [None] * len(changes)
        summary["heads"] = [{"cosine": c, "change": each} for c, each in zip(known, changes, strict=True)]
    return summary


# ---- rendering -------------------------------------------------------------------------------------------------------


def render(records: Sequence[Record], stem: Path) -> dict[str, Table]:
    """Directions and changes at STEM, the objective along the update at ``STEM-steps``; see `analysis.show.render`.

    Raises:
        RecordError: measured under different conventions or on different images.
    """
    for key in ("eps", "at"):
        if len({each.settings[key] for each in records}) > 1:
            raise RecordError(f"These alignments were measured with different {key}; render them apart.")
    if any(each.data != records[0].data for each in records):
        raise RecordError("These alignments were measured on different images; render them apart.")
    shown = [each for each in records if each.measured["layers"]]
    if not shown:
        return {}
    _draw_directions(shown, stem)
    _draw_steps(shown, stem.with_name(f"{stem.name}-steps"))
    layers = [(each.model, layer) for each in shown for layer in each.measured["layers"]]
    compressing = [(model, layer) for model, layer in layers if _sense(layer) < 0]
    refining = [(model, layer) for model, layer in layers if _sense(layer) > 0]
    convention = _convention(records[0])
    tables = {
        "": _directions_table(layers, convention),
        "-change": _change_table(compressing, convention),
        "-heads": _heads_table(layers, convention),
    }
    if refining:
        tables["-classes"] = _classes_table(refining, convention)
    return tables


_Layers = Sequence[tuple[str, Mapping[str, Any]]]  # model, and an entry of measured["layers"]


def _directions_table(layers: _Layers, convention: str) -> Table:
    rows = [
        _row(
            model,
            layer,
            *(layer["cosine"], layer["random"]["cosine"], layer["derived"], layer["step"], layer["multiple"]),
        )
        for model, layer in layers
    ]
    columns = (Column("Cosine", 3), Column("random", 3), Column("Derived", 3), Column("Step", 2), Column("Multiple", 2))
    caption = (
        "Cosine of a layer's update with the steepest way to improve its objective: lower R^c; for cross_layers, class "
        "embeddings inside the principal subspace of the patch tokens. 1: a perfect gradient step; below 0: the wrong "
        "way. Derived: the same for softmax - 1, before -Z is dropped. Step: learned. Multiple: of the update, best "
        f"along its line in [{MULTIPLES[0]:.0f}, {MULTIPLES[-1]:.0f}]; 1: the learned step is optimal. {convention}"
    )
    return Table((*_FIRST, *columns), tuple(rows), caption)


def _change_table(layers: _Layers, convention: str) -> Table:
    rows = [
        _row(
            model,
            layer,
            *(layer["before"], layer["change"], layer["random"]["change"], layer["gradient"], layer["best"]),
        )
        for model, layer in layers
    ]
    columns = map(Column, ("R^c before", "Change (%)", "random", "gradient", "best"))
    caption = (
        "R^c in nats before a layer, and its change by the layer's update; by random updates that move each token as "
        "far; by the best step along the negative gradient that is at most as long; by the best multiple of the "
        f"update. Below 0: compressed. {convention}"
    )
    return Table((*_FIRST, *columns), tuple(rows), caption)


def _heads_table(layers: _Layers, convention: str) -> Table:
    rows = [
        _row(model, layer, index, head["cosine"], head["change"])
        for model, layer in layers
        for index, head in enumerate(layer["heads"])
    ]
    caption = (
        "Cosine: what one head adds, with the negative gradient of its own term of R^c (cross_layers: with the "
        "gradient of the whole objective); a black-box head has none. Change: of the head's own term by the whole "
        f"update. {convention}"
    )
    return Table((*_FIRST, Column("Head"), Column("Cosine", 3), Column("Change (%)")), tuple(rows), caption)


def _classes_table(layers: _Layers, convention: str) -> Table:
    rows = [
        _row(
            *(model, layer, layer["before"], layer["change"], layer["random"]["change"], layer["gradient"]),
            *(layer["captured"][when] for when in ("before", "after")),
        )
        for model, layer in layers
    ]
    columns = map(Column, ("Inside (%)", "Change", "random", "gradient", "Captured (%)", "captured after"))
    caption = (
        "Inside: energy of the class embeddings in the principal subspace of the unit patch tokens (as many dimensions "
        "as classes, not centred) before a layer, and its change in percentage points by the layer's update; by random "
        "updates as long; by the best step along the gradient that is at most as long. Captured: energy of the patch "
        f"tokens in the span of the class embeddings, over the most that so many dimensions can hold. {convention}"
    )
    return Table((*_FIRST, *columns), tuple(rows), caption)


_FIRST = (Column("Model"), Column("Layer"))


def _row(model: str, layer: Mapping[str, Any], *stored: Any) -> tuple[Cell, ...]:
    return (model, _short(layer), *map(stored_cell, stored))


def _convention(first: Record) -> str:
    settings, data = first.settings, first.data
    tokens = {"tokens": "tokens through the layer's LayerNorm", "normed": "Z the layer's normalised tokens"}
    return (
        f"R^c: {tokens[settings['at']]}, all tokens of a window, eps = {settings['eps']:g}, P / (N eps^2), sum over "
        f"heads, natural log. {data.name} {data.split}, n = {first.n} images; brackets: 95 % interval over images, "
        f"{settings['resamples']} bootstrap resamples, seed {first.seeds['bootstrap']}; of random: 2.5 % and 97.5 % "
        f"percentiles of {settings['draws']} draws a window, seed {first.seeds['random']}."
    )


def _shown_on(first: Record) -> str:
    return (
        f"{first.data.name} {first.data.split}, n = {first.n} images, 95 % intervals; Rᶜ of "
        f"{first.settings['at']}, eps = {first.settings['eps']:g}."
    )


def _sense(layer: Mapping[str, Any]) -> int:
    return -1 if layer["objective"] == "compression" else 1


def _short(layer: Mapping[str, Any]) -> str:
    return str(layer["name"]).removeprefix("decoder.")


def _draw_directions(records: Sequence[Record], stem: Path) -> None:
    """A row a layer; left the cosines, right by how much the objective improves: to the right is better in both."""
    labels: list[str] = []
    with figure_style() as colours:
        figure = new_figure(1.3 + 0.2 * sum(len(each.measured["layers"]) for each in records), PAGE)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1, 1.3])
        for each in records:
            for layer in each.measured["layers"]:
                row, sense = len(labels), _sense(layer)
                labels.append(f"{each.model}  {_short(layer)}")
                for axes, key, factor in ((left, "cosine", 1), (right, "change", sense)):
                    drawn = [factor * number(layer["random"][key][end]) for end in ("low", "high")]
                    axes.plot(
                        drawn, [row, row], color="0.75", linewidth=5, solid_capstyle="butt", label="random updates"
                    )
                _dot(left, row, layer["cosine"], 1, "o", colours[0], "update")
                _dot(left, row, layer["derived"], 1, "D", colours[1], "derived direction")
                _dot(right, row, layer["best"], sense, "|", colours[0], "best multiple of it")
                _dot(right, row, layer["gradient"], sense, "^", colours[2], "gradient step")
                _dot(right, row, layer["change"], sense, "o", colours[0], "update")
            if each is not records[-1]:
                left.axhline(len(labels) - 0.5, color="0.6", linewidth=0.6)
                right.axhline(len(labels) - 0.5, color="0.6", linewidth=0.6)
        for axes in (left, right):
            axes.axvline(0, color="0.3", linewidth=0.6)
        left.set_ylim(len(labels) - 0.5, -0.5)
        left.set_yticks(range(len(labels)), labels)
        left.set_xlabel("cosine with the steepest improvement")
        right.set_xscale("symlog", linthresh=1)
        right.xaxis.set_major_formatter("{x:g}")
        right.set_xlabel("improvement: Rᶜ (%), inside (points)")
        handles: dict[str, Any] = {}  # each label once
        for axes in (right, left):
            known, names = axes.get_legend_handles_labels()
            handles |= dict(zip(names, known, strict=True))
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=len(handles))
        figure.supxlabel(_shown_on(records[0]), fontsize=6.5)
        save_figure(figure, stem)


def _dot(axes: Axes, row: int, stored: Any, sense: int, marker: str, colour: Any, label: str) -> None:
    if stored is None or stored["value"] is None:
        return
    if stored["low"] is not None:
        axes.plot([sense * stored["low"], sense * stored["high"]], [row, row], color=colour, linewidth=1)
    axes.plot(sense * stored["value"], row, marker, color=colour, markersize=5 if marker != "|" else 8, label=label)


def _draw_steps(records: Sequence[Record], stem: Path) -> None:
    """A panel a model: how the objective improves along the line of each layer's update."""
    columns = min(3, max(2, len(records)))
    lines = -(-len(records) // columns)
    names = sorted({_short(layer) for each in records for layer in each.measured["layers"]}, key=lambda n: (len(n), n))
    handles: dict[str, Any] = {}
    with figure_style() as colours:
        figure = new_figure(0.8 + 2.1 * lines, PAGE)
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in panels.flat[len(records) :]:
            axes.set_axis_off()
        for axes, each in zip(panels.flat, records, strict=False):
            for layer in each.measured["layers"]:
                value, low, high = (
                    [_sense(layer) * number(estimate[key]) for estimate in layer["curve"]]
                    for key in ("value", "low", "high")
                )
                name = _short(layer)
                colour, dashes = colours[names.index(name) % len(colours)], "-" if _sense(layer) < 0 else "--"
                axes.fill_between(MULTIPLES, low, high, color=colour, alpha=0.2, linewidth=0)
                (handles[name],) = axes.plot(MULTIPLES, value, dashes, color=colour, linewidth=1.2)
            axes.axvline(1, color="0.3", linewidth=0.6)
            axes.axhline(0, color="0.3", linewidth=0.6)
            axes.set_title(each.model, fontsize=8)
            axes.set_xlabel("multiple of the update")
            axes.set_yscale("symlog", linthresh=1)
            axes.yaxis.set_major_formatter("{x:g}")
        figure.supxlabel(f"1: the learned step. {_shown_on(records[0])}", fontsize=6.5)
        figure.supylabel("improvement: Rᶜ (%), inside (points)", fontsize=8)
        figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=6)
        save_figure(figure, stem)
