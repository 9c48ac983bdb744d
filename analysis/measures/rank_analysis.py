"""How much information tokens hold along the layers of a model: coding rates, ranks, and what class embeddings span.

Of the patch tokens after every layer: coding rate R(Z), rate reduction with the ground truth, eigen-spectrum and ranks,
and the share of zeros, which is what CRATE's ISTA is for (arXiv 2306.01129, figure 3, has the share of non-zeros);
the rate of the tokens of every layer projected on the subspaces of every layer, R(P_l^T Z_j), and its ratio to R of
the same tokens; of the class embeddings R(Q) and the principal angles to the leading directions of the tokens. The
quantities themselves are in `analysis.maths.coding_rate`.

Sources: arXiv 2411.03033 (DEPICT), figure 7 (projected rates) and its appendix (R(Z), R(Q)), whose constants are not
published. Those of the released scripts are presets: ``crate``, ``vis_utils/coding_rate.py`` of
``Ma-Lab-Berkeley/CRATE``; ``cbsa``, ``coding_rate.py`` of ``QishuaiWen/CBSA``. Both measure the output of a layer's
projection, so tokens after the layer's LayerNorm, and write 0.01 where the formula has eps^2.

Stages. Z_0 enters the first decoder layer, Z_l leaves layer l. Where a decoder compresses patch tokens and class
embeddings together, the first are Z and the others Q; where class embeddings attend to tokens (``cross_layers``), Q_0
is what was learned and Q_l leaves cross-attention l. A subspace of ``layers`` is measured on Z, one of ``cross_layers``
on Q, which those layers project without a LayerNorm (as in the official code), whatever the convention.

Layout of ``measured``, ESTIMATE as in `analysis.maths.intervals.estimates`, positions counted in layers from Z_0::

    {"layers": [{"name": "decoder.layers.0", "position": 1, "width": 192, "rate": ESTIMATE, "reduction": ...,
                 "effective_rank": ..., "stable_rank": ..., "numerical_rank": ..., "components": [ESTIMATE, ...],
                 "zeros": ESTIMATE,
                 "spectrum": {"component": [1, 2, ...], "value": [...], "low": [...], "high": [...]}}, ...],
     "projections": [{"tokens": "Z", "subspaces": [{"name": "decoder.layers.0", "position": 1, "heads": 3}, ...],
                      "positions": [0, 1, ...], "rate": [[ESTIMATE of subspace l, stage j], ...], "ratio": ...}, ...],
     "classes": [{"name": "decoder.layers.0", "position": 1, "rate": ESTIMATE, "overlap": ESTIMATE}, ...],
     "angles": {"classes": 11, "width": 192, "overlap": ESTIMATE, "degrees": [ESTIMATE, ...], "random": [...]} or null,
     "notes": [...]}

Shapes: B windows, N tokens, D width, H heads, P subspace dimension, K classes, M entries kept of a spectrum.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, cast

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
from analysis.maths.intervals import RESAMPLES, estimates, mean_interval
from analysis.measures.images import Progress, Samples
from analysis.record import Record, describe_weights, new_record
from whitebox.data.images import IGNORE
from whitebox.errors import ConfigError, ModelError, require
from whitebox.models.attention import SubspaceLayer, subspace_layers
from whitebox.models.taps import record, tap_names
from whitebox.runs import Run

SHARES = (0.90, 0.95, 0.99)  # of the energy, in `components`
DRAWS = 100  # random subspaces to compare angles with
NUMBERS = ("rate", "reduction", "effective_rank", "stable_rank", "numerical_rank", "components", "zeros")  # of Z
_SPECTRUM = 48  # entries kept of a spectrum, at most
_NORM_EPS = 1e-5  # of the LayerNorm without gain and bias in R(Z)


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What is measured exactly: published codes differ in each of these, and curves with them.

    Attributes:
        tokens: ``normed``: after LayerNorm, as layers see them: R(P_l^T Z_j) is that of layer l, R(Z) has one without
            gain and bias. ``raw``: as they are, as the formula has it; rates then grow with their length.
        normalise: vectors scaled to length 1: ``none``; each ``token``, before it is projected; or each ``projected``
            token (in R(Z): each token). A zero vector stays zero.
        eps: the formula has its square.
        prefactor: of a projected rate, d / (N eps^2): d = P, the dimension of the ``subspace``, or D, the ``width``.
        heads: projected rates of a layer are the ``sum`` (R^c) or the ``mean`` over its heads.
        which: ``patches``, or ``all`` tokens a layer compresses together, so also class embeddings.

    Raises:
        ConfigError: an unknown word, or ``eps`` that is not positive.
    """

    tokens: str = "normed"
    normalise: str = "none"
    eps: float = 0.1
    prefactor: str = "subspace"
    heads: str = "sum"
    which: str = "patches"

    def __post_init__(self) -> None:
        require(0 < self.eps < float("inf"), "eps", self.eps, "it must be above 0 and finite")
        for key, words in _WORDS.items():
            require(getattr(self, key) in words, key, getattr(self, key), f"choose {' or '.join(words)}")

    @property
    def name(self) -> str:
        """Short, for file names: that of a preset, else its words."""
        return next((name for name, preset in PRESETS.items() if preset == self), "-".join(map(str, astuple(self))))


_WORDS = {
    "tokens": ("normed", "raw"),
    "normalise": ("none", "token", "projected"),
    "prefactor": ("subspace", "width"),
    "heads": ("sum", "mean"),
    "which": ("patches", "all"),
}

PRESETS = {"crate": Convention(normalise="projected", which="all"), "cbsa": Convention(which="all")}


def convention(preset: str | None = None, **changes: Any) -> Convention:
    """A preset (None: the defaults), with the ``changes`` that are not None.

    Raises:
        ConfigError: see `Convention`; an unknown preset.
    """
    require(preset is None or preset in PRESETS, "preset", preset, f"choose {' or '.join(PRESETS)}")
    base = Convention() if preset is None else PRESETS[preset]
    return replace(base, **{key: value for key, value in changes.items() if value is not None})


# ---- maths -----------------------------------------------------------------------------------------------------------


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


# ---- measurement -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    """Tokens at one place of a model."""

    name: str  # as records and tables have it
    tap: str  # "" for the learned class embeddings
    position: int  # layers after the first decoder layer's input; negative in the encoder
    classes: bool = False  # whether these are class embeddings alone


def _stages(run: Run, encoder: bool, layers: Sequence[str]) -> list[_Stage]:
    """The stages to measure, in order, patch tokens first.

    Raises:
        ConfigError: a name or pattern in ``layers`` that fits nothing.
    """
    model = run.model
    own, cross = (len(getattr(model.decoder, kind, ())) for kind in ("layers", "cross_layers"))
    found: list[_Stage] = []
    for tap in tap_names(model):
        parts = re.fullmatch(r"(encoder\.layers|decoder\.layers|decoder\.cross_layers)\.(\d+)\.tokens", tap)
        if tap == "decoder.input":
            found.append(_Stage(tap, tap, 0))
        elif parts is not None:
            first = {"encoder.layers": -model.encoder.depth, "decoder.layers": 1, "decoder.cross_layers": own + 1}
            of_classes = parts[1] == "decoder.cross_layers"
            found.append(_Stage(tap.removesuffix(".tokens"), tap, first[parts[1]] + int(parts[2]), of_classes))
    if cross:
        found.append(_Stage("decoder.class_embeddings", "", own, True))
    patterns = [*(layers or ["decoder.*"]), *(["encoder.*"] if encoder else [])]
    for pattern in patterns:
        if not any(fnmatchcase(stage.name, pattern) for stage in found):
            names = ", ".join(stage.name for stage in found)
            raise ConfigError(f"--layers {pattern!r} fits nothing in {run.name}; it has: {names}.")
    chosen = [stage for stage in found if any(fnmatchcase(stage.name, pattern) for pattern in patterns)]
    return sorted(chosen, key=lambda stage: (stage.classes, stage.position))


_Key = tuple[str, str]  # stage (or group of subspaces), quantity


class _Measurement:
    """What is measured of one window after another of a run."""

    def __init__(self, run: Run, rule: Convention, stages: Sequence[_Stage]) -> None:
        self.run, self.rule, self.stages = run, rule, stages
        found = subspace_layers(run.model)
        self.subspaces = {
            group: {name: layer for name, layer in found.items() if name.startswith(prefix)}
            for group, prefix in (("Z", "decoder.layers."), ("Q", "decoder.cross_layers."))
        }
        known = tap_names(run.model)
        self.taps = [stage.tap for stage in stages if stage.tap]
        self.taps += [name for name in ("decoder.patches", "decoder.classes") if name in known]

    @torch.inference_mode()
    def image(self, pixels_B3HW: Tensor, labels_Bhw: Tensor, name: str) -> dict[_Key, NDArray[np.float64]]:
        """The mean over the image's windows of every quantity.

        Raises:
            ModelError: tokens that are NaN or infinite.
        """
        parts: list[dict[_Key, Tensor]] = []
        batch = self.run.config.inference.batch
        for pixels, labels in zip(pixels_B3HW.split(batch), labels_Bhw.split(batch), strict=True):
            with record(self.run.model, *self.taps) as activations:
                self.run.model.masks(pixels)
            for tap, z_BND in activations.items():
                if not torch.isfinite(z_BND).all():
                    raise ModelError(
                        f"{tap} of {self.run.name} holds NaN or infinity for image {name}: its training has failed; "
                        "choose another checkpoint."
                    )
            parts.append(self.windows(activations, labels.flatten(1)))
        return {key: torch.cat([part[key] for part in parts]).nanmean(0).numpy() for key in parts[0]}

    def windows(self, activations: Mapping[str, Tensor], labels_Bn: Tensor) -> dict[_Key, Tensor]:
        """Every quantity of each window, (B, ...), float64, on the CPU."""
        found: dict[_Key, Tensor] = {}
        rates: dict[str, list[tuple[Tensor, Tensor]]] = {"Z": [], "Q": []}
        output_BND, output_BKD = activations.get("decoder.patches"), activations.get("decoder.classes")

        def add(name: str, numbers: Mapping[str, Tensor]) -> None:
            found.update({(name, key): value.cpu().double() for key, value in numbers.items()})

        for stage in self.stages:
            if stage.classes:
                q_BKD = activations[stage.tap] if stage.tap else self.learned(len(labels_Bn))
                add(stage.name, {"class_rate": coding_rate(Tokens(q_BKD, self.rule).vectors_BND, self.rule.eps)})
                if output_BND is not None:
                    add(stage.name, {"overlap": overlap(principal_angles(second_moment(output_BND), q_BKD))})
                if self.subspaces["Q"]:
                    queries = Tokens(q_BKD, replace(self.rule, tokens="raw"))
                    rates["Q"].append(projections(queries, list(self.subspaces["Q"].values())))
                continue
            patches_BND, joined_BKD = self.split(activations[stage.tap], labels_Bn.shape[1])
            patches = Tokens(patches_BND, self.rule)
            tokens = patches if self.rule.which == "patches" else Tokens(activations[stage.tap], self.rule)
            add(stage.name, {**token_numbers(tokens), "reduction": reductions(patches, labels_Bn)})
            if self.subspaces["Z"] and stage.position >= 0:
                rates["Z"].append(projections(tokens, list(self.subspaces["Z"].values())))
            if joined_BKD is not None:
                q_BKD = Tokens(joined_BKD, self.rule).vectors_BND
                add(stage.name, {"class_rate": coding_rate(q_BKD, self.rule.eps)})
                add(stage.name, {"overlap": overlap(principal_angles(patches.moment_BDD, q_BKD))})
        for group, measured in rates.items():
            if measured:
                rate_BjL, full_BjL = (torch.stack(each, 1) for each in zip(*measured, strict=True))
                add(group, {"projected": rate_BjL.mT, "ratio": (rate_BjL / full_BjL).mT})
        if output_BND is not None and output_BKD is not None:
            degrees_BK = principal_angles(second_moment(output_BND), output_BKD)
            add("angles", {"degrees": degrees_BK, "overlap": overlap(degrees_BK)})
        return found

    def learned(self, windows: int) -> Tensor:
        """The learned class embeddings, (B, K, D)."""
        learned_1KD = cast(Tensor, self.run.model.decoder.class_embeddings)
        return learned_1KD.detach().expand(windows, -1, -1)

    def split(self, z_BND: Tensor, patches: int) -> tuple[Tensor, Tensor | None]:
        """Patch tokens, and the class embeddings that are compressed together with them."""
        decoder, front = self.run.model.decoder, self.run.model.encoder.prefix_tokens
        extra = z_BND.shape[1] - patches
        if extra == decoder.num_classes and hasattr(decoder, "class_embeddings") and decoder.encoder_layers is None:
            return z_BND[:, :patches], z_BND[:, patches:]
        return (z_BND[:, front:] if extra == front else z_BND), None


def measure(
    run: Run,
    rule: Convention | None = None,
    *,
    encoder: bool = False,
    layers: Sequence[str] = (),
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    advance: Progress | None = None,
) -> Record:
    """Measure a run on images, windowed as for evaluation; memory grows by a few numbers an image.

    Args:
        rule: None: the defaults.
        encoder: also the encoder's layers.
        layers: names of stages, wildcards allowed; empty: all of the decoder.
        split: None: validation. limit: only the first images.
        seed: of the bootstrap over images, and of the random subspaces.

    Raises:
        ConfigError: an unknown layer, ``limit`` below 1, an eps too small.
        ModelError: tokens that are NaN or infinite; a model made for other classes.
        DataError: an image cannot be read.
    """
    rule = Convention() if rule is None else rule
    measurement = _Measurement(run, rule, _stages(run, encoder, layers))
    samples = Samples(run, split, limit)
    images = [measurement.image(each.pixels_B3HW, each.labels_Bhw, each.name) for each in samples.each(advance)]
    found = {key: np.stack([image[key] for image in images]) for key in images[0]}
    return new_record(
        "rank-analysis",
        model=run.name,
        data=samples.data,
        measured=_measured(measurement, found, seed),
        n=len(samples),
        weights=describe_weights(run.weights),
        variant="" if rule == Convention() else rule.name,
        seeds={"bootstrap": seed, "random": seed},
        settings={
            "convention": asdict(rule),
            "encoder": encoder,
            "layers": list(layers),
            **samples.settings,
            "resamples": RESAMPLES,
            "draws": DRAWS,
        },
    )


def _measured(measurement: _Measurement, found: Mapping[_Key, NDArray[np.float64]], seed: int) -> dict[str, Any]:
    """``measured`` of the record, from the numbers of all images."""
    model, stages = measurement.run.model, measurement.stages

    def estimate(name: str, quantity: str) -> Any:
        return estimates(found[name, quantity], seed=seed)

    layers = []
    for stage in stages:
        if not stage.classes:
            width = model.encoder.width if stage.position < 0 else model.decoder.width
            value, low, high = mean_interval(found[stage.name, "spectrum"], seed=seed)
            spectrum = {"component": kept_entries(width), "value": value, "low": low, "high": high}
            numbers = {key: estimate(stage.name, key) for key in NUMBERS}
            layers.append({"name": stage.name, "position": stage.position, "width": width, **numbers})
            layers[-1]["spectrum"] = spectrum
    projected = []
    for group, subspaces in measurement.subspaces.items():
        if (group, "projected") in found:
            first = len(getattr(model.decoder, "layers", ())) if group == "Q" else 0
            projected.append(
                {
                    "tokens": group,
                    "subspaces": [
                        {"name": name, "position": first + 1 + int(name.split(".")[2]), "heads": len(layer.bases)}
                        for name, layer in subspaces.items()
                    ],
                    "positions": [
                        stage.position for stage in stages if stage.classes == (group == "Q") and stage.position >= 0
                    ],
                    "rate": estimate(group, "projected"),
                    "ratio": estimate(group, "ratio"),
                }
            )
    classes = [
        {
            "name": stage.name,
            "position": stage.position,
            "rate": estimate(stage.name, "class_rate"),
            "overlap": estimate(stage.name, "overlap") if (stage.name, "overlap") in found else None,
        }
        for stage in stages
        if (stage.name, "class_rate") in found
    ]
    angles = None
    if ("angles", "degrees") in found:
        drawn = random_angles(model.num_classes, model.decoder.width, seed)
        edges = (drawn.mean(0), *np.percentile(drawn, (2.5, 97.5), axis=0))
        angles = {
            "classes": model.num_classes,
            "width": model.decoder.width,
            "overlap": estimate("angles", "overlap"),
            "degrees": estimate("angles", "degrees"),
            "random": [dict(zip(("value", "low", "high"), each, strict=True)) for each in zip(*edges, strict=True)],
        }
    notes = []
    if not any(measurement.subspaces.values()):
        notes.append("has no subspaces: projected coding rates do not apply.")
    if angles is None:
        notes.append("has no class embeddings beside patch tokens at its output: principal angles do not apply.")
    for layer in layers:
        missing_N = np.isnan(found[layer["name"], "reduction"])
        if missing_N.any():
            notes.append(
                f"{layer['name']}: {missing_N.sum()} of {len(missing_N)} images have no rate reduction (no labelled "
                "patch, or tokens that are not one a patch)."
            )
    return {"layers": layers, "projections": projected, "classes": classes, "angles": angles, "notes": notes}
