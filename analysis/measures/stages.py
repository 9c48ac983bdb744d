"""The stages of a model, what is measured of each in one window, and the numbers over all images; see `rank_analysis`.

Shapes: B windows, N tokens, D width, H heads, P subspace dimension, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.maths.coding_rate import coding_rate, second_moment
from analysis.maths.conventions import Convention
from analysis.maths.intervals import estimates, mean_interval
from analysis.maths.tokens import (
    Tokens,
    kept_entries,
    overlap,
    principal_angles,
    projections,
    random_angles,
    reductions,
    token_numbers,
)
from analysis.measures.finite import finite
from whitebox.errors import ConfigError
from whitebox.models import Segmentor
from whitebox.models.attention import subspace_layers
from whitebox.models.taps import record, tap_names
from whitebox.runs import Run

NUMBERS = ("rate", "reduction", "effective_rank", "stable_rank", "numerical_rank", "components", "zeros")  # of Z


@dataclass(frozen=True)
class Stage:
    """Tokens at one place of a model."""

    name: str  # as records and tables have it
    tap: str  # "" for the learned class embeddings
    position: int  # layers after the first decoder layer's input; negative in the encoder
    classes: bool = False  # whether these are class embeddings alone


def stages_of(run: Run, encoder: bool, layers: Sequence[str]) -> list[Stage]:
    """The stages to measure, in order, patch tokens first.

    Raises:
        ConfigError: a name or pattern in ``layers`` that fits nothing.
    """
    model = run.model
    own, cross = (len(getattr(model.decoder, kind, ())) for kind in ("layers", "cross_layers"))
    found: list[Stage] = []
    for tap in tap_names(model):
        parts = re.fullmatch(r"(encoder\.layers|decoder\.layers|decoder\.cross_layers)\.(\d+)\.tokens", tap)
        if tap == "decoder.input":
            found.append(Stage(tap, tap, 0))
        elif parts is not None:
            first = {"encoder.layers": -model.encoder.depth, "decoder.layers": 1, "decoder.cross_layers": own + 1}
            of_classes = parts[1] == "decoder.cross_layers"
            found.append(Stage(tap.removesuffix(".tokens"), tap, first[parts[1]] + int(parts[2]), of_classes))
    if cross:
        found.append(Stage("decoder.class_embeddings", "", own, True))
    if not found:
        raise ConfigError(f"{run.name} has no tokens along its layers, but maps of each class: this does not apply.")
    patterns = [*(layers or ["decoder.*"]), *(["encoder.*"] if encoder else [])]
    for pattern in patterns:
        if not any(fnmatchcase(stage.name, pattern) for stage in found):
            names = ", ".join(stage.name for stage in found)
            raise ConfigError(f"--layers {pattern!r} fits nothing in {run.name}; it has: {names}.")
    chosen = [stage for stage in found if any(fnmatchcase(stage.name, pattern) for pattern in patterns)]
    return sorted(chosen, key=lambda stage: (stage.classes, stage.position))


_Key = tuple[str, str]  # stage (or group of subspaces), quantity


class StageNumbers:
    """What is measured of the stages of a run, one window after another."""

    def __init__(self, run: Run, rule: Convention, stages: Sequence[Stage]) -> None:
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
                finite(z_BND, f"{tap} (image {name})", self.run)
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
            patches_BND, joined_BKD = split(self.run.model, activations[stage.tap], labels_Bn.shape[1])
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


def split(model: Segmentor, z_BND: Tensor, patches: int) -> tuple[Tensor, Tensor | None]:
    """Patch tokens, and the class embeddings that are compressed together with them."""
    decoder, front = model.decoder, model.encoder.prefix_tokens
    extra = z_BND.shape[1] - patches
    of_classes = decoder.open_vocabulary or (hasattr(decoder, "class_embeddings") and decoder.encoder_layers is None)
    if extra == decoder.num_classes and of_classes:
        return z_BND[:, :patches], z_BND[:, patches:]
    return (z_BND[:, front:] if extra == front else z_BND), None


def measured_of(
    measurement: StageNumbers, found: Mapping[_Key, NDArray[np.float64]], seed: int, unit_N: Sequence[str]
) -> dict[str, Any]:
    """``measured`` of the record, from the numbers of all images."""
    model, stages = measurement.run.model, measurement.stages

    def estimate(name: str, quantity: str) -> Any:
        return estimates(found[name, quantity], seed=seed, unit_N=unit_N)

    layers = []
    for stage in stages:
        if not stage.classes:
            width = model.encoder.width if stage.position < 0 else model.decoder.width
            value, low, high = mean_interval(found[stage.name, "spectrum"], seed=seed, unit_N=unit_N)
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
